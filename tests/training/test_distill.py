from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import PreTrainedModel
from typer.testing import CliRunner

import specdec
from specdec.drafters import TextOnlyDrafter, load_drafter
from specdec.training import distill, student
from specdec.training.answers import Teacher
from specdec.training.examples import Example, Examples, without_visual
from specdec.training.prompts import Asked, Asking
from specdec.training.shards import AnswerShards
from specdec.tree import chain
from specdec.verifiers import TransformersVerifier
from support import families, processors

SIZE = student.Size(layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def examples(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    asked = [Asked(processors.messages(i), [processors.image(i)]) for i in range(8)]
    return read(teacher, asked, tmp_path_factory.mktemp("answers"))


def read(teacher: Teacher, asked: list[Asked], folder: Path) -> list[Example]:
    """Greedy and sampled answers, as a drafter has them that sees text only."""
    shards = AnswerShards(folder)
    for index, temperature in enumerate((0.0, 1.0)):
        shards.write(index, teacher.answer(Asking(asked, temperature), seed=1).answers, 1.0)
    return [without_visual(example) for example in Examples(shards, {families.IMAGE})]


def test_training_reads_what_the_drafter_will_read(teacher: Teacher, tmp_path: Path) -> None:
    """Training and serving must agree on which tokens a drafter sees and at which positions, or
    acceptance collapses: the drafted token is the student's argmax on the training row.
    """
    asked = Asked(processors.messages(1, 2), [processors.image(1), processors.image(2)])
    example, _ = read(teacher, [asked], tmp_path)
    for seed in range(5):
        model = student.build(teacher.model, SIZE, seed).eval()
        families.sharpen(model)
        row = example.tokens[: example.prompt_length + 1]
        drafter = TextOnlyDrafter(model)
        drafter.check(TransformersVerifier(teacher.model).spec)
        tokens = teacher.inputs([asked])["input_ids"][0].tolist() + row[-1:].tolist()
        request = specdec.DraftRequest(0, tokens, len(tokens) - 1, chain(1))
        [tree] = drafter.propose([request])
        with torch.no_grad():
            wanted = model(input_ids=row[None]).logits[0, -1].argmax()
        assert tree.tokens[1] == wanted


def test_loss_against_a_double_loop(teacher: Teacher, examples: list[Example]) -> None:
    """The loss must be of answer tokens only, each predicted at the token before it, and the
    probability beyond the kept tokens must count. 1e-5: fp32 sums in another order.
    """
    model = student.build(teacher.model, SIZE, 0).eval()
    hard, soft, count = 0.0, 0.0, 0
    for example in examples[:5]:
        with torch.no_grad():
            q = model(input_ids=example.tokens[None]).logits[0].double().softmax(-1)
        for step, (ids, p) in enumerate(zip(example.top_ids, example.top_p.double(), strict=True)):
            row = q[example.prompt_length + step - 1]
            hard -= float(row[ids[0]].log())
            soft -= sum(float(p[k] * row[ids[k]].log()) for k in range(4))
            soft -= float((1 - p.sum()) * (1 - row[ids].sum()).log())
            count += 1
    batch = student.collate(examples[:5])
    for weight in (0.0, 0.3, 1.0):
        wanted = ((1 - weight) * hard + weight * soft) / count
        loss = student.loss_of(model, batch, weight).item()
        assert loss == pytest.approx(wanted, rel=1e-5)


def test_training_learns(teacher: Teacher, examples: list[Example], tmp_path: Path) -> None:
    """A loss that does not reach the weights, or targets shifted by one, would leave agreement on
    the training answers near chance (1 in 160)."""
    model = student.build(teacher.model, SIZE, 0)
    before = student.agreement(model, examples)
    recipe = student.Recipe(batch=8, rate=2e-2, steps=150)
    student.train(model, examples, recipe, tmp_path / "state.safetensors")
    assert before < 0.1
    assert student.agreement(model, examples) > 0.8


def test_resumed_weights_are_bit_identical(
    teacher: Teacher, examples: list[Example], tmp_path: Path
) -> None:
    """Moments, step counts or the order of the answers lost at a checkpoint would show as another
    result than that of an uninterrupted run. Interrupted at two places, also within an epoch.
    """
    recipe = student.Recipe(batch=3, steps=14)

    class Interrupted(Exception):
        pass

    def cut(at: int) -> Any:
        def report(state: student.State) -> None:
            if state.step == at:
                raise Interrupted

        return report

    whole = student.build(teacher.model, SIZE, 0)
    student.train(whole, examples, recipe, tmp_path / "whole.safetensors")
    path = tmp_path / "parts.safetensors"
    for stop in (4, 9):
        parts = student.build(teacher.model, SIZE, 0)
        with pytest.raises(Interrupted):
            student.train(parts, examples, recipe, path, save_every=0, report=cut(stop))
    parts = student.build(teacher.model, SIZE, 0)
    state = student.train(parts, examples, recipe, path)
    assert state.step == 14
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    one, other = load_file(tmp_path / "whole.safetensors"), load_file(path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_answer_is_read_once_an_epoch(examples: list[Example]) -> None:
    order = student.Order([len(e.tokens) for e in examples], 3, seed=4)
    count = -(-len(examples) // 3)
    for epoch in range(3):
        steps = range(count * epoch, count * (epoch + 1))
        assert sorted(i for step in steps for i in order(step)) == list(range(len(examples)))
    assert order(7) == student.Order([len(e.tokens) for e in examples], 3, seed=4)(7)


def test_a_checkpoint_of_another_model_is_refused(
    teacher: Teacher, examples: list[Example], tmp_path: Path
) -> None:
    path, recipe = tmp_path / "state.safetensors", student.Recipe(batch=8, steps=1)
    student.train(student.build(teacher.model, SIZE, 0), examples, recipe, path)
    deeper = student.build(teacher.model, student.Size(2, 16, 24, 2, 1), 0)
    with pytest.raises(ValueError, match="another model"):
        student.train(deeper, examples, recipe, path)


def _run(*options: object) -> Any:
    app = typer.Typer()
    app.command()(distill.distill)
    return CliRunner().invoke(app, list(map(str, options)))


def test_command_distils_resumes_and_refuses(
    teacher: Teacher, prompts: Path, tmp_path: Path
) -> None:
    """The whole command on a saved verifier: the drafter loads, fits and names its figures; the
    folder is not overwritten, and going on needs the options it began with.
    """
    verifier, out = tmp_path / "verifier", tmp_path / "drafter"
    teacher.model.save_pretrained(verifier)
    teacher.processor.save_pretrained(verifier)
    options = ("--verifier", verifier, "--out", out, "--data", prompts, "--answers", 16,
               "--asking", 8, "--max-new-tokens", 6, "--held-out", 2, "--steps", 3, "--layers", 1,
               "--hidden", 16, "--intermediate", 24, "--heads", 2, "--kv-heads", 1)  # fmt: skip
    result = _run(*options)
    assert result.exit_code == 0, result.output
    model: PreTrainedModel = teacher.model
    drafter = load_drafter(out, model)
    drafter.check(TransformersVerifier(model).spec)
    settings = json.loads((out / "drafter.json").read_text())
    assert settings["verifier"] == "verifier"
    assert settings["answers"] >= 16
    assert [row["chain"] for row in settings["acceptance"]] == [4, 8]
    assert settings["acceptance"][0]["num_generated_tokens"] > 0
    assert str(tmp_path) not in (out / "drafter.json").read_text()
    assert {file.suffix for file in out.iterdir()} <= {".json", ".safetensors", ""}
    weights = load_file(out / "model.safetensors")

    assert "not empty" in _text(_run(*options))
    assert "begun with" in _text(_run(*options, "--resume", "--seed", 1))
    again = _run(*options, "--resume")
    assert again.exit_code == 0, again.output
    assert all(torch.equal(weights[n], w) for n, w in load_file(out / "model.safetensors").items())
    assert "nothing to resume" in _text(_run(*options[:2], "--out", tmp_path / "x", "--resume"))


def test_embedded_prompts_need_the_embedded_model(teacher: Teacher, tmp_path: Path) -> None:
    teacher.model.save_pretrained(tmp_path / "verifier")
    teacher.processor.save_pretrained(tmp_path / "verifier")
    result = _run("--verifier", tmp_path / "verifier", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--data" in _text(result)


def _text(result: Any) -> str:
    return " ".join(result.output.replace("│", " ").split())
