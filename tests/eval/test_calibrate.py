"""`specdec calibrate`: what passes, what is written, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from specdec.cli import app
from specdec.demo import ASSETS, load
from specdec.drafters.loading import save_drafter
from specdec.eval import devset
from specdec.eval.calibration import Grid, judge
from specdec.eval.devset import DevQuestion, Metric
from specdec.policies import load_policy
from specdec.training.prompts import Asked
from support import families, processors
from support.command_line import expect_error

GRID = Grid("divergence", (1.0, 4.0), (0.2, 0.5, 0.8))
needs_demo = pytest.mark.skipif(
    not (ASSETS / "lvlm").exists(), reason="no demonstration model here yet"
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def test_testing_stops_at_the_first_that_fails() -> None:
    """Going on behind a failure would test again and again with the same error probability."""
    lost = {0.2: np.zeros(3000), 0.5: np.full(3000, 0.02), 0.8: np.zeros(3000)}
    policies = GRID.policies()
    losses = [lost[p.epsilon] if p.gamma == 1 else np.zeros(3000) for p in policies]
    tried = judge(policies, losses, [2.0] * 6, max_loss=0.005, confidence=0.95)
    assert [each.passed for each in tried] == [True, False, False, True, True, True]
    assert tried[2].bound is None


def test_error_probability_is_shared_by_the_gammas() -> None:
    """As many questions as suffice for one γ do not for two."""
    policies = GRID.policies()
    losses = [np.zeros(740)] * 6
    both = judge(policies, losses, [2.0] * 6, max_loss=0.005, confidence=0.95)
    one = judge(policies[:3], losses[:3], [2.0] * 3, max_loss=0.005, confidence=0.95)
    assert not any(each.passed for each in both)
    assert all(each.passed for each in one)


@pytest.mark.slow
def test_what_passes_loses_no_more_than_it_may() -> None:
    """Calibrations over and over where the truth is known: most policies lose a little more than
    they may. One in 20 may pass such a policy; 45 of 400 or more have a probability below 1e-6.
    """
    rng, wrong = np.random.default_rng(2), 0
    true = {0.2: 0.001, 0.5: 0.021, 0.8: 0.03}
    policies = GRID.policies()
    for _ in range(400):
        losses = [(rng.random(400) < true[p.epsilon]).astype(float) for p in policies]
        tried = judge(policies, losses, [2.0] * 6, max_loss=0.02, confidence=0.95)
        wrong += any(each.passed and true[each.policy.epsilon] > 0.02 for each in tried)
    assert wrong < 45


def test_qualities() -> None:
    asked = Asked([], [], "grid_cell")
    facts = DevQuestion(asked, fields={"number": "6"})
    right = {"text": "It is 6.", "lossless": ""}
    assert devset.quality(Metric.FIELDS, facts, **right, ended=True) == 1
    assert devset.quality(Metric.FIELDS, facts, **right, ended=False) == 0
    expected = DevQuestion(asked, answer="A  red Car")
    for text, good in (("Well, a red  car.", 1), ("a red cart", 0), ("", 0)):
        assert devset.quality(Metric.ANSWER, expected, text, "", ended=True) == good
    alike = devset.quality(Metric.SIMILARITY, DevQuestion(asked), "a b c d", "a b x d", ended=True)
    assert alike == 0.75


@needs_demo
def test_policy_is_written_and_serves_its_model_only(tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    options = ("--model", "demo", "--questions", 14, "--max-loss", "40%", "--gammas", "1")
    options += ("--reliance", "divergence", "--epsilons", "0.9,0.3", "--out", out)
    result = run(*options)
    assert result.exit_code == 0, result.output
    model = load().model
    policy = load_policy(out, model)
    assert policy.reliance == "divergence"
    assert policy.epsilon in (0.3, 0.9)
    found = json.loads(out.read_text())["calibration"]
    assert found["questions"] == 14
    assert found["metric"] == "fields"
    assert found["loss"] <= found["bound"] <= 0.4
    assert found["tau"] > found["lossless_tau"]
    assert f"τ {found['tau']:.2f}" in result.output
    with pytest.raises(ValueError, match="was calibrated for a model with fingerprint"):
        load_policy(out, families.build("llava").model)


@needs_demo
def test_too_few_questions_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    options = ("--model", "demo", "--questions", 3, "--reliance", "divergence")
    result = run(*options, "--epsilons", "0.1", "--gammas", "1", "--out", out)
    assert result.exit_code == 1, result.output
    assert not out.exists()
    assert "it takes 7" in result.output
    assert "even if none of them loses anything" in result.output


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a drafter, and questions with answers."""
    folder = tmp_path_factory.mktemp("calibrate")
    families.build("llava").model.save_pretrained(folder / "lvlm")
    processors.build().save_pretrained(folder / "lvlm")
    save_drafter(families.causal_lm(seed=3), folder / "drafter", verifier="llava")
    rows = []
    for i in range(8):
        (folder / "dev").mkdir(exist_ok=True)
        processors.image(i).save(folder / "dev" / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": f"w1{i} w12", "answer": "w5"})
    (folder / "dev" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_folder_of_ones_own(saved: Path, tmp_path: Path) -> None:
    """Any model, its own questions, likeness to the lossless answer."""
    options: tuple[Any, ...] = ("--model", saved / "lvlm", "--drafter", saved / "drafter")
    options += ("--dev", saved / "dev", "--reliance", "divergence", "--max-new-tokens", 8)
    options += ("--gammas", "2", "--epsilons", "0,0.5", "--max-loss", "0.9")
    result = run(*options, "--metric", "similarity", "--out", tmp_path / "policy.json")
    assert result.exit_code == 0, result.output
    assert "loss of quality (similarity)" in result.output
    natural = run(*options, "--out", tmp_path / "policy.json")
    assert natural.exit_code == 0, natural.output
    assert "loss of quality (answer)" in natural.output


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--max-loss", "5 pounds"), "--max-loss 5 pounds: expected a share"),
        (("--max-loss", "0"), "expected a share"),
        (("--confidence", 95), "--confidence 95.0 is not between 0 and 1"),
        (("--gammas", "one"), "--gammas one: expected numbers"),
        (("--epsilons", "0.1,2"), "epsilon=2.0"),
        (("--metric", "beauty"), "--metric beauty: known are fields, answer, similarity"),
        (("--metric", "fields"), "--metric fields: only the demonstration model"),
        (("--metric", "similarity", "--temperature", 1), "differ losslessly, too"),
        (("--dev", "{saved}/lvlm"), "has no questions"),
        (("--drafter", "{saved}/nowhere"), "nowhere"),
        (("--model", "{saved}/nowhere"), "no vision-language model"),
        (("--dtype", "int3"), "--dtype int3"),
        (("--reliance", "probe"), "reliance.json.*train-probe"),
        (("--reliance", "sight"), "'sight' is not known"),
    ],
)
def test_mistakes_are_one_line(saved: Path, options: tuple[Any, ...], pattern: str) -> None:
    whole: tuple[Any, ...] = ("--model", saved / "lvlm", "--drafter", saved / "drafter")
    whole += ("--dev", saved / "dev", "--reliance", "divergence")
    result = run(*whole, *(str(option).format(saved=saved) for option in options))
    expect_error(result, pattern)


def test_lines_that_are_none_are_named(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((saved / "dev" / "0.png").read_bytes())
    row = {"image": "0.png", "prompt": "w5", "answer": 7}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl line 1: \"answer\" is no text: 7"):
        devset.from_folder(tmp_path)
