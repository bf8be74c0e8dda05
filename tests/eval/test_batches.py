"""Batch sizes compared at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.drafters import TextOnlyDrafter
from specdec.eval import batches, suite
from specdec.eval.batches import Method, measure
from specdec.eval.comparison import GateError
from specdec.eval.timing import Said, plainly
from specdec.tree import chain


def inputs_of(small: Any, count: int) -> list[dict[str, Any]]:
    asked = small.questions[:count]
    return [dict(suite.model_inputs(small.model, small.processor, [each])) for each in asked]


def right_of(small: Any, asked: list[dict[str, Any]], tokens: int) -> list[Said]:
    return plainly(small.model, asked, max_new_tokens=tokens, eos_token_id=None)


def test_every_size_answers_everything(small: Any) -> None:
    """A last batch that is not full is left out, or prompts' tokens are counted as decoded."""
    asked = inputs_of(small, 3)
    method, right = (
        Method("text_only", TextOnlyDrafter(small.drafter), chain(2)),
        right_of(small, asked, 6),
    )
    cells = list(measure(small.model, method, asked, right, batches=[1, 2], tokens=6, rounds=1))
    assert [(cell.method, cell.batch) for cell in cells] == [("text_only", 1), ("text_only", 2)]
    assert cells[0].over_one == 1
    assert all(cell.tokens_per_second > 0 and cell.others == 0 for cell in cells)
    assert all(1 <= cell.mean_acceptance_length <= 3 for cell in cells)


@pytest.mark.parametrize("wrong", [1, 2])
def test_gate_refuses_answers_that_are_not_those_of_generate(
    small: Any, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """Speeds of a batch whose requests read each other's keys must never be handed out; nor those
    of an engine that is wrong at every size, and in a round behind the first.
    """
    run, rounds = batches._run, list[int]()

    def planted(*args: Any) -> Any:
        found = run(*args)
        rounds.append(args[3])
        if args[3] >= wrong and len(rounds) > 2:
            found.answers[-1].tokens[-1] += 1
        return found

    monkeypatch.setattr(batches, "_run", planted)
    asked = inputs_of(small, 2)
    right, how = right_of(small, asked, 3), {"batches": [1, 2], "tokens": 3, "rounds": 1}
    with pytest.raises(GateError, match=f"{wrong} at a time: 1 of 2"):
        next(measure(small.model, Method("plain", None, chain(0)), asked, right, **how))


def test_one_at_a_time_is_always_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Speeds over "one" that are over another size; a size of 0 that ends in a traceback."""
    app, out = typer.Typer(), tmp_path / "batches.json"
    app.command()(batches.batches)
    asked = ["--questions", "1", "--tokens", "2", "--rounds", "1", "--only", "plain"]
    result = CliRunner().invoke(app, [*asked, "--batches", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [cell["batch"] for cell in json.loads(out.read_text())["cells"]] == [1, 2]
    result = CliRunner().invoke(app, [*asked, "--batches", "0"])
    assert result.exit_code == 2
    assert "from 1 on" in result.output
