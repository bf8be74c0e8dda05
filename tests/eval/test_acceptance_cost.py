"""The measurement of what accepting costs, on a very small model."""

from __future__ import annotations

import pytest

from specdec.eval import acceptance_cost
from specdec.eval.acceptance_cost import SHAPE, FreeDrafter, build, measure
from specdec.tree import DraftTree


def test_every_policy_is_timed() -> None:
    rows = measure(build(128, 1, 1024), steps=4)
    assert len(rows) == 12
    for row in rows.values():
        assert row["accept_ms"] > 0
        assert row["share"] == pytest.approx(row["accept_ms"] / row["verify_ms"])
    assert rows["uniform 1.0, greedy"]["mean_acceptance_length"] > 2


def test_no_time_where_greedy_answers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that lets everything through would time a broken rule."""
    monkeypatch.setattr(acceptance_cost, "_ties", lambda *_: False)
    with pytest.raises(ValueError, match="not that of plain decoding"):
        measure(build(128, 1, 1024), steps=2)


def test_the_drafted_tree_is_drawn_from_its_q() -> None:
    drafter = FreeDrafter(1024, seed=3)
    assert len(SHAPE) == 64
    tree = DraftTree(SHAPE, tuple(drafter.tokens), drafter.q, "without_replacement")
    for node, children in enumerate(SHAPE.children):
        tokens = [tree.tokens[child] for child in children]
        assert len(set(tokens)) == len(tokens)
        assert bool((drafter.q[node, tokens] > 0).all())
