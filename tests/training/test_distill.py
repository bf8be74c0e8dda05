from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner

import specdec
from specdec.drafters import TextOnlyDrafter, VisionPrunedDrafter, load_drafter
from specdec.drafters.calibration import Calibration
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_head import Vision
from specdec.interfaces import DraftRequest
from specdec.training import distill, kinds, recipes, small
from specdec.training.answers import Teacher
from specdec.training.examples import Example, Examples, OnlineExamples, without_visual
from specdec.training.features import FeatureReader, Reading
from specdec.training.prompts import Asked, Asking
from specdec.training.shards import AnswerShards
from specdec.tree import DraftTree, chain
from specdec.verifiers import TransformersVerifier
from support import families, processors

SIZE = small.Size(layers=1, hidden=16, intermediate=24, heads=2, kv_heads=1)


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
        model = small.build(teacher.model, SIZE, seed).eval()
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


class Listening(EagleDrafter):
    """Notes what it said of texts of which length."""

    said: dict[int, Tensor]

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        for request in batch:
            request.wants_q = True
        trees = super().propose(batch)
        for request, tree in zip(batch, trees, strict=True):
            if tree.q is not None:
                self.said[len(request.tokens)] = tree.q[0]
        return trees


@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_a_head_drafts_as_it_was_trained(teacher: Teacher, tmp_path: Path, vision: Vision) -> None:
    """A training row against the engine: other states, positions, keys of the image or tokens in
    training than in serving show as other distributions at the places of an answer, with two
    images. 1e-4: fp32 sums in another order.
    """
    asked = Asked(processors.messages(1, 2), [processors.image(1), processors.image(2)])
    shards = AnswerShards(tmp_path)
    shards.write(0, teacher.answer(Asking([asked], 0.0), seed=1).answers, 1.0)
    kind = kinds.Eagle(teacher, kinds.Geometry(vision=vision), 0, None, steps=2)
    reading = Reading(kind.head.config.layers, kind.head.config.shared_layer)
    [example] = OnlineExamples(shards, FeatureReader(teacher.model, teacher.processor, reading))
    batch = kind.collate([example])
    rows = batch["rows"][:, 0]
    slots = {k: v for k, v in batch.items() if k not in ("last", "rows", "weights")}
    del slots["total"], slots["tokens"]
    student: Any = kind.student
    with torch.no_grad():
        states = student.eval().states(**slots)[0].flatten(0, 1)[rows]
        logits = kind.head.logits(states)
    drafter = Listening(kind.head.eval(), teacher.model.get_input_embeddings())
    drafter.said = {}
    specdec.generate(
        teacher.model, drafter=drafter, tree=1, **teacher.inputs([asked]),
        max_new_tokens=teacher.max_new_tokens, do_sample=False,
    )  # fmt: skip
    assert len(drafter.said) >= 2
    for length, q in drafter.said.items():
        expected = logits[length - example.prompt_length]
        expected[families.IMAGE] = -torch.inf
        torch.testing.assert_close(q, expected.softmax(-1), atol=1e-4, rtol=1e-3)


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
    assert {file.suffix for file in out.iterdir()} <= {".json", ".safetensors", ".md", ""}
    card = (out / "README.md").read_text()
    assert "# A drafter for verifier" in card
    assert f"{settings['answers']} answers" in card
    assert f"{settings['acceptance'][1]['mean_acceptance_length']:.2f}" in card
    assert drafter.calibration == Calibration.from_dict(settings["calibration"])
    weights = load_file(out / "model.safetensors")

    assert "not empty" in _text(_run(*options))
    assert "begun with" in _text(_run(*options, "--resume", "--seed", 1))
    again = _run(*options, "--resume")
    assert again.exit_code == 0, again.output
    assert all(torch.equal(weights[n], w) for n, w in load_file(out / "model.safetensors").items())
    assert "nothing to resume" in _text(_run(*options[:2], "--out", tmp_path / "x", "--resume"))


@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_command_distils_eagle_heads(
    teacher: Teacher, prompts: Path, tmp_path: Path, vision: Vision
) -> None:
    """The head loads, reads what it was trained to read, and was measured by the engine while it
    learned; a reduced vocabulary holds the answers' most frequent tokens.
    """
    verifier, out = tmp_path / "verifier", tmp_path / "drafter"
    teacher.model.save_pretrained(verifier)
    teacher.processor.save_pretrained(verifier)
    result = _run("--verifier", verifier, "--out", out, "--data", prompts, "--answers", 16,
                  "--asking", 8, "--max-new-tokens", 6, "--held-out", 2, "--steps", 4,
                  "--kind", "eagle", "--vision", vision, "--draft-vocabulary", 40,
                  "--measure-every", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    drafter = load_drafter(out, teacher.model)
    assert isinstance(drafter, EagleDrafter)
    assert drafter.head.config.vision == vision
    shards = AnswerShards(out / "unfinished" / "answers")
    texts = [shards.numbers(*shards.place(number)) for number in range(len(shards))]
    told = torch.cat([text.tokens[text.prompt_length :] for text in texts])
    counts = torch.bincount(told, minlength=families.VOCAB)
    spoken = drafter.head.spoken
    others = torch.ones(families.VOCAB, dtype=torch.bool).index_fill_(0, spoken, False)
    assert len(spoken) == 40
    assert counts[spoken].min() >= counts[others].max()
    settings = json.loads((out / "drafter.json").read_text())
    assert settings["training_steps"] == 4
    assert settings["best_measured"] >= 1
    log = [json.loads(line) for line in (out / "unfinished" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "truth" in line] == [2, 4]


def test_command_distils_small_lvlms(teacher: Teacher, prompts: Path, tmp_path: Path) -> None:
    """It sees images while it learns, some of them two, and drafts from the share that was asked
    for.
    """
    verifier, out = tmp_path / "verifier", tmp_path / "drafter"
    teacher.model.save_pretrained(verifier)
    teacher.processor.save_pretrained(verifier)
    result = _run("--verifier", verifier, "--out", out, "--data", prompts, "--answers", 16,
                  "--asking", 8, "--max-new-tokens", 6, "--held-out", 2, "--steps", 2,
                  "--kind", "vision_pruned", "--keep", 0.5, "--hidden", 16, "--intermediate", 24,
                  "--heads", 2, "--kv-heads", 1, "--measure-every", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    drafter = load_drafter(out, teacher.model)
    assert isinstance(drafter, VisionPrunedDrafter)
    assert drafter.ratio == 0.5
    out_ids = specdec.generate(
        teacher.model, drafter=drafter, do_sample=False, max_new_tokens=6,
        **teacher.inputs([Asked(processors.messages(1), [processors.image(1)])]),
    )  # fmt: skip
    assert out_ids.stats.num_draft_tokens > 0


def test_runs_share_answers_and_recipes(teacher: Teacher, prompts: Path, tmp_path: Path) -> None:
    """A second drafter asks nothing that was answered; options go before the recipe; answers of
    other prompts are not taken for one's own.
    """
    verifier, shared = tmp_path / "verifier", tmp_path / "shared"
    teacher.model.save_pretrained(verifier)
    teacher.processor.save_pretrained(verifier)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"verifier: {verifier}\ndata: {prompts}\nanswers-in: {shared}\nanswers: 16\nasking: 8\n"
        "max-new-tokens: 6\nheld_out: 2\nsteps: 2\nlayers: 1\nhidden: 16\nintermediate: 24\n"
        "heads: 2\nkv-heads: 1\n"
    )
    first = _run("--recipe", recipe, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.output
    times = {file: file.stat().st_mtime_ns for file in shared.glob("answers-*")}
    assert times
    second = _run("--recipe", recipe, "--out", tmp_path / "two", "--steps", 3, "--kind", "eagle")
    assert second.exit_code == 0, second.output
    shares = ("--kind", "eagle", "--vision", "shared", "--heads", 4)
    third = _run("--recipe", recipe, "--out", tmp_path / "three", *shares)
    assert third.exit_code == 0, third.output  # other states, of the same answers
    assert {file: file.stat().st_mtime_ns for file in shared.glob("answers-*")} == times
    settings = [json.loads((tmp_path / n / "drafter.json").read_text()) for n in ("one", "two")]
    assert [each["training_steps"] for each in settings] == [2, 3]
    assert settings[0]["answers"] == settings[1]["answers"]
    assert all(str(tmp_path) not in json.dumps(each) for each in settings)
    other = _run("--recipe", recipe, "--out", tmp_path / "four", "--max-new-tokens", 7)
    assert "max_new_tokens=6, this run's of 7" in _text(other)
    assert "no YAML" in _text(_run("--recipe", prompts / "0.png", "--out", tmp_path / "x"))


@pytest.mark.parametrize("recipe", recipes.shipped())
def test_shipped_recipes_are_of_options_that_there_are(recipe: str, tmp_path: Path) -> None:
    """Read as the command reads them, up to the verifier, which this folder is not."""
    result = _run("--recipe", recipe, "--out", tmp_path / "out", "--verifier", tmp_path)
    assert "no verifier could be loaded" in _text(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--kind", "probe"), "train-probe"),
        (("--device", "tpu"), "--device tpu: there are cpu"),
        (("--visual-weight", "2"), "only eagle weighs"),
        (("--recipe", "none"), "eagle-shared"),
        (("--kind", "eagel"), "text_only, eagle"),
        (("--kind", "eagle", "--vision", "seen"), "hidden, compressed, shared"),
        (("--loss", "tv:1"), "tv=1,ce=0.1"),
        (("--loss", "l2=1"), "unknown losses l2"),
        (("--kind", "eagle", "--taps", "0,99"), "99"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    teacher: Teacher, prompts: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    teacher.model.save_pretrained(tmp_path / "verifier")
    teacher.processor.save_pretrained(tmp_path / "verifier")
    result = _run("--verifier", tmp_path / "verifier", "--out", tmp_path / "out", "--data", prompts,
                  *options)  # fmt: skip
    assert result.exit_code == 2
    assert words in _text(result)


def test_embedded_prompts_need_the_embedded_model(teacher: Teacher, tmp_path: Path) -> None:
    teacher.model.save_pretrained(tmp_path / "verifier")
    teacher.processor.save_pretrained(tmp_path / "verifier")
    result = _run("--verifier", tmp_path / "verifier", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--data" in _text(result)


def _text(result: Any) -> str:
    return " ".join(result.output.replace("│", " ").split())
