"""What the bare forwards promise, and how much of it is reached."""

from __future__ import annotations

from typing import Any

import pytest

from specdec.drafters import NgramDrafter, TextOnlyDrafter
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_head import EagleHead
from specdec.eval.efficiency import Forwards, bare_forwards, efficiency, summed_up
from specdec.eval.suite import model_inputs
from specdec.stats import AcceptanceStats
from specdec.training.answers import Teacher
from specdec.training.kinds import Geometry, head_config
from specdec.tree import chain, static


def steps(drafted: int, accepted: int) -> AcceptanceStats:
    stats = AcceptanceStats()
    for _ in range(10):
        stats.record_step(drafted, accepted, accepted)
    return stats


def test_efficiency_is_that_worked_out_by_hand() -> None:
    """τ = 4 tokens a step, of 8 ms for 5 nodes and 4 levels of 0.5 ms, against 5 ms for one: at
    best 2.0 times as fast. A tree of 6 nodes on 2 levels takes 9 ms, between 5 and 9 nodes.
    """
    forwards = Forwards(20.0, 8.0, 5.0, {5: 8.0, 9: 10.0}, {"a": 0.5, "ngram": 0.0})
    assert efficiency(forwards, "a", chain(4), steps(4, 3), 1.8) == pytest.approx(0.9)
    tree = static((2, 2))
    promised = 3 * 5 / (9.0 + 2 * 0.5)
    assert efficiency(forwards, "a", tree, steps(6, 2), 1.2) == pytest.approx(1.2 / promised)
    assert efficiency(forwards, "ngram", chain(4), steps(4, 0), 0.5) == pytest.approx(0.8)
    assert efficiency(forwards, "other", chain(4), steps(4, 3), 1.8) is None


def test_every_drafter_that_can_be_timed_is(small: Any) -> None:
    """A level that is left out would count as one that takes no time."""
    inputs = model_inputs(small.model, small.processor, [small.questions[1]])
    head = EagleHead(head_config(Teacher(small.model, small.processor), Geometry()))
    drafters: Any = {
        "ngram": NgramDrafter(),
        "blind": TextOnlyDrafter(small.drafter),
        "head": EagleDrafter(head, small.model.get_input_embeddings()),
    }
    times = bare_forwards(small.model, drafters, inputs, [3, 5])
    assert summed_up([]) is None
    found = summed_up([times, {name: [0.0] for name in times}, {name: [1e9] for name in times}])
    assert found is not None
    assert found.levels["ngram"] == 0
    found = summed_up([times, times])
    assert found is not None
    assert set(found.nodes) == {3, 5}
    assert found.levels["ngram"] == 0
    assert min(found.vision, found.one, *found.nodes.values()) > 0
    assert found.vision < found.prefill
    assert min(found.levels["blind"], found.levels["head"]) > 0
    assert found.to_dict({name: name for name in drafters})["level_ms"] == found.levels
