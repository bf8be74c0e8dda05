"""Goals of drafters, from tables worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from specdec.eval.drafter_goals import goals


def entry(tau: float, speed: float, *positions: float, **tasks: float) -> dict[str, Any]:
    def row(tau: float) -> dict[str, Any]:
        return {
            "mean_acceptance_length": tau,
            "acceptance_per_position": list(positions),
            "speedup_decode": {"median": speed},
            "speedup_end_to_end": {"median": speed - 0.4},
        }

    return {"tasks": {"all": row(tau)} | {task: row(each) for task, each in tasks.items()}}


def test_each_goal_names_who_comes_closest() -> None:
    """A ratio over another drafter's tree, or over the worse of two chains, shows here."""
    found = goals(
        {
            "text_only, chain of 4": entry(3.0, 2.0, 0.7, 0.5, 0.4, 0.4),
            "text_only, chain of 8": entry(4.0, 2.9, 0.7, 0.5, 0.4, 0.4, red=4.0, blue=5.0),
            "text_only, dynamic, 8 nodes": entry(4.8, 2.1, 0.8, red=4.0, blue=8.0),
            "eagle-shared, chain of 8": entry(6.4, 2.7, 0.9, 0.75, 0.55, red=8.0, blue=5.0),
            "eagle-shared, dynamic, 8 nodes": entry(7.0, 2.6, 0.9, red=6.0, blue=8.0),
            "ngram, chain of 8": entry(1.2, 1.0, 0.1, 0.0, 0.0),
        }
    )
    sight = found["tau_over_text_only"]
    assert (sight["value"], sight["by"], sight["met"]) == (1.6, "eagle-shared, chain of 8", True)
    assert sight["by_task"] == {"all": 1.6, "red": 2.0, "blue": 1.0}
    positions = found["acceptance_per_position"]
    assert (positions["value"], positions["by"]) == ([0.7, 0.5, 0.4], "text_only, chain of 8")
    assert not positions["met"]
    branching = found["dynamic_over_chain"]
    assert branching["value"] == pytest.approx(1.2)
    assert branching["by"] == "text_only, dynamic, 8 nodes"
    assert (found["speedup_decode"]["value"], found["speedup_decode"]["met"]) == (2.9, True)
    assert (found["speedup_end_to_end"]["value"], found["speedup_end_to_end"]["met"]) == (2.5, True)
    assert found["speedup_decode"]["by"] == "text_only, chain of 8"


def test_what_was_not_measured_is_no_goal() -> None:
    found = goals({"ngram, adaptive": entry(1.2, 1.0, 0.1)})
    assert found.keys() == {"speedup_decode", "speedup_end_to_end"}
    assert not found["speedup_decode"]["met"]
