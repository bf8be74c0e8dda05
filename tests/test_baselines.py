"""Others' rules do what their papers say, each against its definition at one node."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec import baselines
from specdec.acceptance import Decision, Node
from specdec.reliance import Constant
from specdec.tree import DraftTree, chain, root_only, static

rows = st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]), min_size=5, max_size=5)
drafts = st.lists(st.integers(0, 6), min_size=1, max_size=3)


def no_uniform() -> float:
    raise AssertionError("nothing is drawn here")


def node(scores: Sequence[float], tokens: Sequence[int]) -> Node:
    row = torch.tensor(scores)
    return Node(DraftTree(static((len(tokens),)), (9, *tokens)), 0, row, row[None])


def probabilities(scores: Sequence[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def best_admitted(
    scores: Sequence[float], tokens: Sequence[int], admits: Callable[[float], bool]
) -> int | None:
    """The most probable drafted token that is admitted; none if the argmax is drafted."""
    p = probabilities(scores)
    admitted = [t for t in tokens if t < len(p) and admits(p[t])]
    return max(admitted, key=p.__getitem__, default=None)


def check(
    decision: Decision, scores: Sequence[float], tokens: Sequence[int], wanted: int | None
) -> None:
    own = int(torch.tensor(scores).argmax())
    if own in tokens:
        assert decision == Decision(1 + tokens.index(own), own)
    elif wanted is None:
        assert decision == Decision(None, own)
    else:
        assert decision.relaxed
        assert decision.child is not None
        assert tokens[decision.child - 1] == decision.token
        assert scores[decision.token] == scores[wanted]


@given(scores=rows, tokens=drafts, epsilon=st.floats(0.01, 1), delta=st.floats(0.01, 1))
def test_typical(scores: list[float], tokens: list[int], epsilon: float, delta: float) -> None:
    entropy = -sum(p * math.log(p) for p in probabilities(scores))
    least = min(epsilon, delta * math.exp(-entropy))
    decision = baselines.Typical(epsilon, delta).greedy(node(scores, tokens), no_uniform)
    check(decision, scores, tokens, best_admitted(scores, tokens, lambda p: p >= least - 1e-7))


@given(scores=rows, tokens=drafts, k=st.integers(1, 9), delta=st.floats(0, 1))
def test_top_k(scores: list[float], tokens: list[int], k: int, delta: float) -> None:
    p = sorted(probabilities(scores), reverse=True)
    least = max(p[min(k, len(p)) - 1], p[0] - delta)
    decision = baselines.TopK(k, delta).greedy(node(scores, tokens), no_uniform)
    check(decision, scores, tokens, best_admitted(scores, tokens, lambda p: p >= least - 1e-7))


@pytest.mark.parametrize("rule", [baselines.Typical(), baselines.TopK(2, 0.5)])
def test_sampling_draws_what_is_not_admitted(rule: Any) -> None:
    """The drawn token is emitted, or the drafted one if it is admitted; never a third."""
    scores = [2.0, 1.9, -3.0]
    p = probabilities(scores)
    admitted = rule.sampled(node(scores, [1]), lambda: 0.0)
    assert (admitted.child, admitted.token, admitted.relaxed) == (1, 1, True)
    assert rule.sampled(node(scores, [1]), lambda: p[0] + 0.01) == Decision(1, 1)
    assert rule.sampled(node(scores, [2]), lambda: 0.0) == Decision(None, 0)


def test_random_accepts_the_eldest_so_often() -> None:
    scores = [3.0, 0.0, -1.0]
    rule = baselines.Random(0.5)
    assert rule.greedy(node(scores, [2, 1]), lambda: 0.49) == Decision(1, 2, True)
    assert rule.greedy(node(scores, [2, 1]), lambda: 0.5) == Decision(None, 0)
    assert rule.greedy(node(scores, [2, 0]), no_uniform) == Decision(2, 0)
    row = torch.tensor(scores)
    leaf = Node(root_only(9), 0, row, row[None])
    assert rule.greedy(leaf, no_uniform) == Decision(None, 0)


def test_random_when_sampling() -> None:
    """Losslessly first, and only then by chance."""
    q = torch.tensor([0.1, 0.8, 0.1])
    tree = DraftTree(chain(1), (9, 1), q.expand(2, -1), "with_replacement")
    row = torch.tensor([0.8, 0.1, 0.1]).log()
    place = Node(tree, 0, row, row[None])
    rule = baselines.Random(0.5)
    stream = iter([0.05, 0.9, 0.3, 0.4, 0.9, 0.3, 0.6])
    assert rule.sampled(place, stream.__next__) == Decision(1, 1)
    assert rule.sampled(place, stream.__next__) == Decision(1, 1, True)
    assert rule.sampled(place, stream.__next__) == Decision(None, 0)


FLAT = [0.1, 0.0, 0.0, 0.0]
SHARP = [9.0, 0.0, 0.0, 0.0]


def fly(logits: Sequence[Sequence[float]], tokens: Sequence[int], rule: baselines.FLy) -> Decision:
    table = torch.tensor(logits)
    tree = DraftTree(chain(len(tokens)), (9, *tokens))
    return rule.greedy(Node(tree, 0, table[0], table), no_uniform)


def test_fly_keeps_a_mismatch_that_the_target_goes_on_from() -> None:
    """Unsure at the mismatch, and two drafted tokens behind it are the target's own."""
    rule = baselines.FLy(window=2, entropy=0.3)
    agrees = [FLAT, SHARP, SHARP, SHARP]
    assert fly(agrees, [1, 0, 0], rule) == Decision(1, 1, True)
    assert fly(agrees, [1, 0, 2], rule) == Decision(None, 0)  # another mismatch in the window
    assert fly(agrees[:3], [1, 0], rule) == Decision(None, 0)  # too little is drafted behind it
    assert fly([SHARP, *agrees[1:]], [1, 0, 0], rule) == Decision(None, 0)  # it is sure
    assert fly(agrees, [0, 2, 2], rule) == Decision(1, 0)


def test_fly_is_for_greedy_decoding_of_raw_logits() -> None:
    with pytest.raises(ValueError, match="sampling"):
        baselines.FLy().check(do_sample=True, processed=False)
    with pytest.raises(ValueError, match="logits processors"):
        baselines.FLy().check(do_sample=False, processed=True)
    baselines.FLy().check(do_sample=False, processed=False)


def test_uniform_is_relaxed_without_weights() -> None:
    policy = baselines.uniform(0.3, budget=2.0)
    assert (policy.epsilon, policy.gamma, policy.guards, policy.budget) == (0.3, 0.0, (), 2.0)
    assert policy.reliance == Constant(0.0)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (baselines.Random, (1.5,)),
        (baselines.Typical, (0.0,)),
        (baselines.TopK, (0,)),
        (baselines.TopK, (3, -0.1)),
        (baselines.FLy, (0,)),
        (baselines.FLy, (3, 1.5)),
        (baselines.uniform, (1.01,)),
    ],
)
def test_numbers_out_of_range(make: Callable[..., object], wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="="):
        make(*wrong)
