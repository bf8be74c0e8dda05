"""Throughput by load, at toy size: with one load and with two."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.drafters import TextOnlyDrafter
from specdec.eval import serve_throughput as module
from specdec.eval import suite
from specdec.eval.comparison import GateError
from specdec.eval.serve_throughput import by_label, goals, measure, ratios
from specdec.eval.timing import Inputs, Said


@pytest.fixture(scope="module")
def asked(small: Any) -> list[Inputs]:
    return [suite.model_inputs(small.model, small.processor, [q]) for q in small.questions[:3]]


@pytest.mark.parametrize("loads", [[1, 2], [2]], ids=["two loads", "one load"])
def test_every_way_at_every_load(small: Any, asked: list[Inputs], loads: list[int]) -> None:
    """A way or a load that is lost; goals of a smaller load that was not measured, by which all
    that was is lost.
    """
    drafters = {"text_only": TextOnlyDrafter(small.drafter)}
    cells = measure(small.model, asked, drafters, in_flight=loads, rounds=2, max_new_tokens=4)
    ways = ["off", "text_only, 4", "text_only, auto"]
    assert [(c.way, c.in_flight) for c in cells] == [(way, n) for n in loads for way in ways]
    for cell in cells:
        assert len(cell.rates) == 2
        assert cell.to_dict()["tokens_per_second"] > 0
        assert cell.stats.num_generated_tokens == 2 * sum(
            len(said.tokens) for said in module.plainly(small.model, asked, max_new_tokens=4)
        )
    found = ratios(cells)
    batched = [f"{way} @ 2" for way in ways] if len(loads) == 2 else []
    assert list(found["batched"]) == batched
    assert list(found["drafted"]) == [f"{way} @ {n}" for n in loads for way in ways[1:]]
    first = ["batched: off @ 2"] if batched else []
    assert list(goals(cells)) == [*first, "drafted: text_only, auto @ 2"]


def test_no_speed_of_wrong_answers(
    small: Any, asked: list[Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speeds of an engine that answers something else."""
    answers = module._answers

    def planted(*args: Any) -> Any:
        said, *rest = answers(*args)
        last = said[-1].tokens
        return [*said[:-1], Said([*last[:-1], last[-1] + 1])], *rest

    monkeypatch.setattr(module, "_answers", planted)
    with pytest.raises(GateError, match="off, 2 in flight: 1 of 3"):
        measure(small.model, asked, {}, in_flight=[2], rounds=1, max_new_tokens=4)


def test_drafters_that_are_called_alike(small: Any) -> None:
    """Of two heads of one kind, one that is dropped in silence."""
    two = [TextOnlyDrafter(small.drafter) for _ in range(2)]
    assert list(by_label(two[:1])) == ["text_only"]
    with pytest.raises(ValueError, match="two of the drafters are text_only"):
        by_label(two)


@pytest.mark.parametrize("loads", ["0", "a", "1,"])
def test_loads_that_are_none(loads: str) -> None:
    """A traceback after the models have been loaded."""
    app = typer.Typer()
    app.command()(module.serve_throughput)
    result = CliRunner().invoke(app, ["--in-flight", loads, "--requests", "1"])
    assert result.exit_code == 2
    assert "from 1 on" in result.output
