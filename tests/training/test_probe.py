"""Estimators from a table of tokens, and the command that makes the table, on small things."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from specdec.drafters.loading import save_drafter
from specdec.eval.reliance import reliance
from specdec.reliance import Evidence
from specdec.saved_reliance import load_reliance
from specdec.training import estimators, probe
from specdec.training.prompts import Asked, Asking
from specdec.training.readings import Reader, Tokens, collect, join
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.fingerprint import fingerprint
from support import processors
from support.small import Small


def made(count: int, seed: int, images: int = 40) -> Tokens:
    """Among mismatches the first direction of the hidden state, the second head and half of the
    divergence tell; among all others the same direction says the opposite.
    """
    generator = torch.Generator().manual_seed(seed)
    dependent = torch.rand(count, generator=generator) < 0.5
    mismatched = torch.rand(count, generator=generator) < 0.5
    sign = torch.where(mismatched, 1.0, -1.0) * torch.where(dependent, 1.0, -1.0)
    hidden = torch.randn(count, 6, generator=generator)
    hidden[:, 0] += 1.5 * sign
    mass = torch.rand(count, 3, generator=generator)
    mass[:, 1] += 0.4 * sign
    divergence = 0.5 * torch.rand(count, generator=generator) + 0.3 * dependent
    return Tokens(
        hidden,
        mass,
        divergence,
        dependent,
        mismatched,
        torch.randint(images, (count,), generator=generator),
    )


def test_known_directions_are_found() -> None:
    """Trained on all tokens, nothing could be told: the two halves say opposite things. A sum of
    normals 1.5 apart on each side is told apart with an area of 0.98."""
    trained = estimators.train(made(4000, 0))
    weight = trained.probe.weight
    assert weight[0] > 10 * weight[1:].abs().max()
    assert trained.combined is not None
    heads = trained.combined.attention.weight
    assert heads[1] > 5 * heads[[0, 2]].abs().max()
    found = estimators.figures(trained.kinds, made(4000, 1), resamples=50)
    among = {name: row["mismatches"]["auroc"] for name, row in found["auroc"].items()}
    assert among["probe"] > 0.97
    assert among["attention"] > 0.85
    assert among["divergence"] == pytest.approx(0.9, abs=0.1)
    assert among["combined"] > max(among["probe"], among["attention"], among["divergence"])
    assert found["tokens"] == 4000
    assert found["images"] == 40
    for row in found["auroc"].values():
        for where in ("all", "mismatches"):
            assert row[where]["low"] <= row[where]["auroc"] <= row[where]["high"]


def test_values_are_frequencies() -> None:
    """A policy reads them as probabilities: among mismatches with a value around 0.5, half must
    depend on the image. 0.1 is twice the error of the smallest bin's frequency."""
    trained = estimators.train(made(6000, 2))
    fresh = made(6000, 3)
    wrong = fresh.where(fresh.mismatched)
    for name in ("probe", "attention", "combined"):
        value = trained.kinds[name].values(wrong.evidence)
        for low in (0.0, 0.25, 0.5, 0.75):
            inside = (value >= low) & (value < low + 0.25)
            if int(inside.sum()) >= 100:
                frequency = float(wrong.dependent[inside].float().mean())
                assert frequency == pytest.approx(float(value[inside].mean()), abs=0.1)


def test_without_visual_mass_there_is_a_probe() -> None:
    tokens = made(1000, 4)
    trained = estimators.train(tokens._replace(visual_mass=torch.zeros(1000, 0)))
    assert trained.combined is None
    assert set(trained.kinds) == {"probe", "divergence"}


def test_images_that_validate_are_not_fitted_to() -> None:
    images = torch.arange(100).repeat_interleave(3)
    chosen = estimators._some_images(images, 0)
    assert int(chosen.sum()) == 3 * 20
    assert not set(images[chosen].tolist()) & set(images[~chosen].tolist())
    with pytest.raises(ValueError, match="too few to learn from"):
        estimators.train(made(50, 0, images=1))


@pytest.fixture(scope="module")
def folder(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, its drafter, prompts, and a suite of questions."""
    folder = tmp_path_factory.mktemp("probe")
    small.model.save_pretrained(folder / "lvlm")
    small.processor.save_pretrained(folder / "lvlm")
    save_drafter(small.drafter, folder / "drafter", verifier="small")
    (folder / "prompts").mkdir()
    rows, asked = [], []
    for i in range(40):
        for place in (folder, folder / "prompts"):
            processors.image(i).save(place / f"{i}.png")
        messages = processors.messages(i)
        rows.append(json.dumps({"image": f"{i}.png", "prompt": messages[0]["content"][-1]["text"]}))
        asked.append({"task": "t", "images": [f"{i}.png"], "messages": messages})
    (folder / "prompts" / "p.jsonl").write_text("\n".join(rows))
    (folder / "questions.json").write_text(json.dumps(asked[:4]))
    return folder


def run(command: Any, *options: Any) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*map(str, options)])


def unwrapped(output: str) -> str:
    """Without the frame that typer sets a message in."""
    return " ".join(output.replace("│", " ").split())


def train(folder: Path, *options: Any) -> Any:
    given = ("--model", folder / "lvlm", "--drafter", folder / "drafter", "--prompts")
    how = ("--questions", 108, "--batch", 12, "--max-new-tokens", 10)
    return run(probe.train_probe, *given, folder / "prompts", *how, *options)


def test_the_whole_command(folder: Path, small: Small) -> None:
    """On saved files, with the default folder; then the figures are taken again from the files."""
    result = train(folder)
    assert result.exit_code == 0, result.output
    out = folder / "lvlm" / "reliance"
    facts = json.loads((out / "reliance.json").read_text())
    assert facts["kinds"] == ["probe", "attention", "combined"]
    assert (facts["verifier"], facts["drafter"]) == ("lvlm", "drafter")
    assert facts["fingerprint"] == fingerprint(small.model)
    assert set(facts["figures"]["auroc"]) == {"probe", "attention", "combined", "divergence"}
    assert str(folder) not in json.dumps(facts)
    assert sorted(path.name for path in out.iterdir()) == ["reliance.json", "reliance.safetensors"]
    text = small.model.config.get_text_config()
    heads = text.num_hidden_layers * text.num_attention_heads
    loaded = load_reliance(out, "combined", fingerprint=facts["fingerprint"])
    divergence = torch.ones(2)
    given = Evidence(torch.zeros(2, text.hidden_size), [torch.zeros(2, heads)], divergence)
    assert loaded.values(given).shape == (2,)

    measured = folder / "figures.json"
    options = ["--model", folder / "lvlm", "--drafter", folder / "drafter", "--suite", folder]
    options += ["--reliance", out, "--max-new-tokens", 6, "--out", measured]
    again = run(reliance, *options)
    assert again.exit_code == 0, again.output
    record = json.loads(measured.read_text())
    assert record["questions"] == 4
    assert set(record["auroc"]) == set(facts["figures"]["auroc"])


def test_what_is_read_is_read_once(small: Small, tmp_path: Path) -> None:
    """A run that is cut off, within a shard too, must end with the very tokens of an uninterrupted
    one; a sampled answer shows it if the seed depends on where the run began."""
    verifier = TransformersVerifier(small.model, hidden=True)
    reader = Reader(verifier, small.processor, small.drafter, max_new_tokens=6, batch=4)
    asked = [Asked(processors.messages(i), [processors.image(i)]) for i in range(4)]
    batches = [Asking(asked, temperature) for temperature in (0.0, 1.0, 1.0)]

    def tokens(name: str, count: int) -> list[Tokens]:
        return list(collect(reader, iter(batches[:count]), tmp_path / name, minutes=9, seed=0))

    whole = join(tokens("whole", 3))
    tokens("parts", 1)
    (tmp_path / "parts" / "00001.tmp").write_bytes(b"cut off")
    before = (tmp_path / "parts" / "00000.safetensors").stat().st_mtime_ns
    parts = join(tokens("parts", 3))
    assert (tmp_path / "parts" / "00000.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert len(load_file(tmp_path / "parts" / "00002.safetensors")["dependent"]) > 0
    none_left = collect(reader, iter(batches), tmp_path / "late", minutes=-1, seed=0)
    assert list(none_left) == []
    blind = Asking([Asked(processors.messages(0, 0), [])], 0.0)
    assert reader.read(blind, 0) is None


def test_mistakes_are_named_before_any_work(folder: Path, tmp_path: Path) -> None:
    refused = [
        (["--model", "demo"], "--out FOLDER"),
        (["--model", folder / "lvlm", "--prompts", folder / "prompts"], "--drafter DIR"),
        (["--model", folder / "lvlm", "--drafter", folder / "drafter"], "--prompts FOLDER"),
        (["--model", folder, "--drafter", folder / "drafter"], "no verifier could be loaded"),
    ]
    for options, message in refused:
        result = run(probe.train_probe, *options)
        assert result.exit_code == 2
        assert message in unwrapped(result.output)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "plan.json").write_text(json.dumps({"seed": 3}))
    result = train(folder, "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds readings with" in unwrapped(result.output)
