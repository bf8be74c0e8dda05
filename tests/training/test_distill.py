from __future__ import annotations

import json
from itertools import pairwise
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
from specdec.training import answers, distill, student
from specdec.training.answers import Example, Shards, Teacher
from specdec.training.prompts import Asked, Asking, FolderPrompts
from specdec.tree import chain
from specdec.verifiers import TransformersVerifier
from support import families, processors

SIZE = student.Size(layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = families.build("llava").model
    return Teacher(model, processors.build(), max_new_tokens=8, top=4)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prompts: two thirds with one image, the rest with two."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = []
    for i in range(30):
        processors.image(i).save(folder / f"{i}.png")
        text = processors.messages(i)[0]["content"][-1]["text"]
        images = {"image": f"{i}.png"} if i % 3 else {"images": [f"{i}.png", "0.png"]}
        rows.append(json.dumps({**images, "prompt": text}))
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def examples(teacher: Teacher) -> list[Example]:
    asked = [Asked(processors.messages(i), [processors.image(i)]) for i in range(8)]
    return [e for t in (0.0, 1.0) for e in teacher.answer(Asking(asked, t), seed=1)]


def test_answers_are_those_of_generate(teacher: Teacher) -> None:
    """Padding, dropped visual tokens and the end of an answer are all places to be off by one.
    A batch of ragged prompts must yield what each prompt alone does, and the recorded
    probabilities must be the model's own (1e-4: fp32, other shapes).
    """
    asked = [Asked(processors.messages(i, 2), [processors.image(i)] * 2) for i in range(4)]
    for each, example in zip(asked, teacher.answer(Asking(asked, 0.0), seed=0), strict=True):
        inputs = teacher.inputs([each])
        out: Any = teacher.model
        out = out.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        text = [token for token in out.sequences[0].tolist() if token != families.IMAGE]
        assert example.tokens.tolist() == text
        assert example.prompt_length == len(text) - len(out.logits)
        p = torch.cat(out.logits).softmax(-1).topk(4)
        assert torch.equal(example.top_ids, p.indices)
        torch.testing.assert_close(example.top_p, p.values, atol=1e-4, rtol=0)


def test_an_answer_ends_with_its_first_end(teacher: Teacher) -> None:
    """Rows that end before the others are padded by `generate`; padding is nothing to learn."""
    asked = [Asked(processors.messages(i), [processors.image(i)]) for i in range(4)]
    config: Any = teacher.model.generation_config
    before = [e.tokens.tolist() for e in teacher.answer(Asking(asked, 0.0), seed=0)]
    config.eos_token_id = before[0][-5]
    try:
        after = teacher.answer(Asking(asked, 0.0), seed=0)
    finally:
        config.eos_token_id = families.EOS
    for tokens, example in zip(before, after, strict=True):
        told = tokens[-8:]
        end = told.index(before[0][-5]) + 1 if before[0][-5] in told else 8
        assert example.tokens.tolist()[example.prompt_length :] == told[:end]
        assert len(example.top_ids) == len(example.top_p) == end


def test_sampling_follows_the_seed_only(teacher: Teacher) -> None:
    """A shard must not depend on what was drawn before it, nor disturb what is drawn after."""
    asking = Asking([Asked(processors.messages(0), [processors.image(0)])], 1.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = teacher.answer(asking, seed=3)[0].tokens
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(teacher.answer(asking, seed=3)[0].tokens, first)
    others = [teacher.answer(asking, seed=s)[0].tokens.tolist() for s in range(4, 9)]
    assert any(other != first.tolist() for other in others)


def test_shards_resume_to_the_same_answers(teacher: Teacher, prompts: Path, tmp_path: Path) -> None:
    """A run that is cut off between shards, or within one, must end with the very shards of an
    uninterrupted run, and must not answer anything twice.
    """

    def collect(folder: Path, wanted: int) -> list[int]:
        source, shards = FolderPrompts(prompts), Shards(folder)
        steps = answers.collect(teacher, source, shards, wanted=wanted, batch=8, minutes=9)
        return [count for count, _ in steps]

    whole = collect(tmp_path / "whole", 40)
    assert whole[-1] >= 40
    assert all(b - a <= 8 for a, b in pairwise([0, *whole]))
    collect(tmp_path / "parts", 10)
    (tmp_path / "parts" / "answers-00002.tmp").write_bytes(b"cut off")
    rest = collect(tmp_path / "parts", 40)
    assert rest == [count for count in whole if count > 16]
    for one, other in zip(
        Shards(tmp_path / "whole").read()[0], Shards(tmp_path / "parts").read()[0], strict=True
    ):
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(one, other, strict=True)
        )


def test_shards_return_what_was_written(examples: list[Example], tmp_path: Path) -> None:
    """Probabilities are kept in half precision: 1e-3 relative."""
    shards = Shards(tmp_path / "answers")
    shards.write(0, examples[:5], 2.0)
    shards.write(1, examples[5:], 3.5)
    read, seconds = shards.read()
    assert seconds == 5.5
    for one, other in zip(examples, read, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert one.prompt_length == other.prompt_length
        assert torch.equal(one.top_ids, other.top_ids)
        torch.testing.assert_close(one.top_p, other.top_p, rtol=1e-3, atol=1e-6)


def test_held_out_prompts_are_never_asked(prompts: Path) -> None:
    """Acceptance measured on prompts that were learned from would be worth nothing."""
    source = FolderPrompts(prompts)
    held_out = {json.dumps(each.messages) for each in source.held_out(99)}
    asked, temperatures, index = [], set(), 0
    while (batch := source.batch(index, 8)) is not None:
        assert len({len(each.images) for each in batch.asked}) == 1
        asked += [json.dumps(each.messages) for each in batch.asked]
        temperatures.add(batch.temperature)
        index += 1
    assert held_out
    assert not held_out & set(asked)
    assert len(asked) == 3 * (30 - len(held_out))
    assert temperatures == {0.0, 0.7, 1.0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 1: expected"),
        ('{"prompt": "w5"}', "'image'"),
        ('{"image": "no.png", "prompt": "w5"}', "there is no image"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(ValueError, match=reason):
        FolderPrompts(tmp_path)


def test_training_reads_what_the_drafter_will_read(teacher: Teacher) -> None:
    """Training and serving must agree on which tokens a drafter sees and at which positions, or
    acceptance collapses: the drafted token is the student's argmax on the training row.
    """
    asked = Asked(processors.messages(1, 2), [processors.image(1), processors.image(2)])
    [example] = teacher.answer(Asking([asked], 0.0), seed=0)
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
    for epoch in range(3):
        steps = range(6 * epoch, 6 * epoch + 6)
        assert sorted(i for step in steps for i in order(step)) == list(range(16))
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
