"""Batch sizes compared at toy size."""

from __future__ import annotations

from typing import Any

import pytest

from specdec.drafters import TextOnlyDrafter
from specdec.eval import batches, suite
from specdec.eval.batches import Method, measure
from specdec.eval.comparison import GateError
from specdec.tree import chain


def inputs_of(small: Any, count: int) -> list[dict[str, Any]]:
    asked = small.questions[:count]
    return [dict(suite.model_inputs(small.model, small.processor, [each])) for each in asked]


def test_every_size_answers_everything(small: Any) -> None:
    """A last batch that is not full is left out, or prompts' tokens are counted as decoded."""
    asked = inputs_of(small, 3)
    method = Method("text_only", TextOnlyDrafter(small.drafter), chain(2))
    cells = list(measure(small.model, method, asked, batches=[1, 2], tokens=6, rounds=1))
    assert [(cell.method, cell.batch) for cell in cells] == [("text_only", 1), ("text_only", 2)]
    assert cells[0].over_one == 1
    assert all(cell.tokens_per_second > 0 and cell.others == 0 for cell in cells)
    assert all(1 <= cell.mean_acceptance_length <= 3 for cell in cells)


def test_gate_refuses_answers_that_depend_on_the_batch(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speeds of a batch whose requests read each other's keys must never be handed out."""
    run = batches._run

    def planted(*args: Any) -> Any:
        found = run(*args)
        if args[3] > 1:
            found.answers[-1][-1] += 1
        return found

    monkeypatch.setattr(batches, "_run", planted)
    with pytest.raises(GateError, match="2: 1"):
        next(
            measure(
                small.model,
                Method("plain", None, chain(0)),
                inputs_of(small, 2),
                batches=[1, 2],
                tokens=3,
                rounds=1,
            )
        )
