"""Acceptance: losslessness, shown three ways, and the contracts with the engine.

1. *By integration*: the law of the token decided at one node, with nothing sampled. Every tuple of
   siblings is enumerated with its probability, and the uniforms are integrated out by bisecting on
   them through the real code. Equal to p within 1e-10.
2. *By counting*: the whole loop draft → accept → commit on toy autoregressive models whose
   sequences can all be enumerated; counts of every prefix against exact binomial bounds.
3. *By planting bugs*: each wrong rule must turn the second test red, and the first where it
   concerns one node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec import acceptance
from specdec.acceptance import Decision, Verdict, accept_greedy, accept_sampled, uniforms_needed
from specdec.sampling import draw, normalised, residual
from specdec.tree import (
    SIBLING_MODES,
    DraftTree,
    Siblings,
    chain,
    random_topology,
    root_only,
    static,
    topology,
)
from support.laws import (
    ALMOST_ONE,
    PAIRS,
    Accept,
    decided_law,
    dist,
    generated,
    law_at_root,
    least_tail,
    sibling_tuples,
    toy,
)

DEPTH = 2
FALSE_FAILURE = 1e-11  # of one counted test; with 15 of them, of the file below 1e-9

# By integration


@pytest.mark.parametrize("mode", SIBLING_MODES)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("k", [1, 3])
def test_decided_token_follows_the_target_exactly(pair: str, k: int, mode: Siblings) -> None:
    """Nothing is sampled. Tolerance: 37 bisections leave 1e-11 per threshold, up to 7 add up."""
    p, q = PAIRS[pair]
    law = decided_law(p, q, k, mode)
    assert np.abs(law[: len(p)] - p.numpy()).max() < 1e-10


@pytest.mark.parametrize("mode", SIBLING_MODES)
@pytest.mark.parametrize("width", [2, 5])
def test_vocabularies_of_different_width(width: int, mode: Siblings) -> None:
    """Padded vocabularies: an index error, or a padding token that slips through."""
    p, q = dist(5, 3, 2), dist(*range(1, width + 1))
    law = decided_law(p, q, 2, mode)
    expected = np.pad(p.numpy(), (0, max(0, width - 3)))
    assert np.abs(law - expected).max() < 1e-10


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
def test_a_drawn_token_whose_q_was_rounded_to_zero(mode: Siblings) -> None:
    """The recorded q lost the mass of a token that can be drawn: p / q = x / 0 accepted for sure
    would overshoot, a rejection would subtract a q that was not drawn from.
    """
    p, drawn_from = dist(4, 3, 3), dist(3, 1, 6)
    recorded = drawn_from.clone()
    recorded[1] = 0.0
    law = np.zeros(3)
    for tokens, probability in sibling_tuples(drawn_from, 2, mode):
        tree = DraftTree(static((2,)), (0, *tokens), recorded.expand(3, -1), mode)
        law += probability * law_at_root(tree, p)
    assert np.abs(law - p.numpy()).max() < 1e-10


# By counting


SHAPES = {"chain": chain(DEPTH), "tree": topology((-1, 0, 0, 0, 1, 1, 2)), "pair": static((2,))}


@pytest.mark.parametrize(
    ("shape", "temperature", "top_p"),
    [
        ("chain", 0.7, 0.8),
        ("tree", 1.0, 1.0),
        ("tree", 1.0, 0.8),
        ("tree", 0.7, 1.0),
        ("tree", 0.7, 0.8),
    ],
)
@pytest.mark.parametrize("mode", SIBLING_MODES)
def test_sequences_follow_the_target(
    mode: Siblings, shape: str, temperature: float, top_p: float
) -> None:
    """Whole sequences of the full loop against their enumerated law; false-failure 1e-11 each."""
    model = toy(temperature, top_p)
    counts = generated(model, SHAPES[shape], mode, seed=1)
    assert least_tail(counts, model.sequences()) > FALSE_FAILURE


# By planting bugs


@dataclass(frozen=True)
class Bug:
    """A wrong rule: functions of the module to swap, or a wrapper, or a drafter that misreports."""

    mode: Siblings
    swap: tuple[tuple[str, Callable[..., object]], ...] = ()
    accept: Accept | None = None  # of the whole rule, called as accept_sampled
    amend: Callable[[DraftTree], DraftTree] = lambda tree: tree
    shape: str = "tree"


def bonus_from_the_drafter(
    tree: DraftTree, target: Callable[[int], Tensor], uniforms: Sequence[float]
) -> Verdict:
    path, token = accept_sampled(tree, target, uniforms)
    leaf = path[-1] if path else 0
    if tree.topology.children[leaf] or tree.q is None:
        return Verdict(path, token)
    return Verdict(path, draw(tree.q[leaf], uniforms[-1]))


def stale_target(tree: DraftTree, node: int, p: Tensor, uniform: Callable[[], float]) -> Decision:
    """Tries every sibling against the first p; only the final draw sees a residual."""
    assert tree.q is not None
    q = normalised(tree.q[node])
    for child in tree.topology.children[node]:
        if uniform() * q[tree.tokens[child]] < p[tree.tokens[child]]:
            return Decision(child, tree.tokens[child])
    left = residual(p, q) if tree.topology.children[node] else p
    return Decision(None, draw(left, uniform()))


def relabelled(mode: Siblings) -> Callable[[DraftTree], DraftTree]:
    return lambda tree: replace(tree, siblings=mode)


def sorted_siblings(tree: DraftTree) -> DraftTree:
    """The root's children by probability, as a drafter does that keeps its beams sorted."""
    assert tree.q is not None
    by_probability = tree.q[0].argsort(descending=True).tolist()
    return replace(tree, tokens=(0, *sorted(tree.tokens[1:], key=by_probability.index)))


def hidden_low_siblings(tree: DraftTree) -> DraftTree:
    """Drops the drawn siblings whose own probability is small, as pruning by score does."""
    assert tree.q is not None
    kept = tuple(token for token in tree.tokens[1:] if tree.q[0, token] > 0.3)
    return DraftTree(
        static((len(kept),) if kept else ()), (0, *kept), tree.q[: len(kept) + 1], tree.siblings
    )


def unnormalised_residual(p: Tensor, q: Tensor) -> Tensor:
    owed = (p - q).clamp_min(0)
    return owed if owed.any() else p


def unnormalised_rest(q: Tensor, token: int) -> Tensor:
    return q.index_fill(0, torch.tensor([token]), 0.0)


BUGS = {
    "residual replaced by p": Bug("with_replacement", (("residual", lambda p, q: p),)),
    "residual not normalised": Bug("with_replacement", (("residual", unnormalised_residual),)),
    "residual of q minus p": Bug("with_replacement", (("residual", lambda p, q: residual(q, p)),)),
    "accepts with p": Bug("with_replacement", (("_accepted", lambda p, q, u: u < p),)),
    "stale p for the second sibling": Bug("with_replacement", (("decide", stale_target),)),
    "q not renormalised": Bug("without_replacement", (("_without", unnormalised_rest),)),
    "bonus token drawn from q": Bug("with_replacement", accept=bonus_from_the_drafter),
    "deterministic taken for drawn": Bug("deterministic", amend=relabelled("with_replacement")),
    "siblings sorted": Bug("without_replacement", amend=sorted_siblings, shape="pair"),
    "improbable siblings dropped": Bug("with_replacement", amend=hidden_low_siblings, shape="pair"),
}


@pytest.mark.parametrize("name", BUGS)
def test_counting_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: the same model, trials and bound as above must call each wrong rule wrong."""
    bug = BUGS[name]
    for function, wrong in bug.swap:
        monkeypatch.setattr(acceptance, function, wrong)
    model = toy(temperature=1.0, top_p=1.0)
    counts = generated(
        model, SHAPES[bug.shape], bug.mode, 1, bug.accept or accept_sampled, bug.amend
    )
    assert least_tail(counts, model.sequences()) < FALSE_FAILURE


@pytest.mark.parametrize("name", [name for name, bug in BUGS.items() if bug.accept is None])
def test_integration_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: wrong rules for one node are far beyond the tolerance of 1e-10."""
    bug = BUGS[name]
    for function, wrong in bug.swap:
        monkeypatch.setattr(acceptance, function, wrong)
    p, q = PAIRS["generic"]
    assert np.abs(decided_law(p, q, 2, bug.mode, bug.amend) - p.numpy()).max() > 1e-3


# Contracts


def random_tree(nodes: int, seed: int, mode: Siblings, vocab: int = 3) -> DraftTree:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (nodes,), generator=generator)
    q = torch.rand(nodes, vocab, generator=generator)
    return DraftTree(random_topology(nodes, seed), tuple(tokens.tolist()), normalised(q), mode)


@given(nodes=st.integers(1, 20), seed=st.integers(0, 10_000), mode=st.sampled_from(SIBLING_MODES))
def test_the_target_is_asked_once_per_emitted_token_in_order(
    nodes: int, seed: int, mode: Siblings
) -> None:
    """A stateful logits processor asked twice, or too early, would drift from plain decoding."""
    tree = random_tree(nodes, seed, mode)
    asked: list[int] = []
    generator = torch.Generator().manual_seed(seed + 1)

    def target(node: int) -> Tensor:
        asked.append(node)
        return torch.rand(3, generator=generator)

    uniforms = iter(torch.rand(nodes, generator=generator).tolist())
    verdict = accept_sampled(tree, target, itertools.islice(uniforms, uniforms_needed(tree)))
    assert asked == [0, *verdict.path]
    if verdict.path:
        assert tree.topology.path(verdict.path[-1]) == (0, *verdict.path)

    asked.clear()
    best = torch.randint(3, (nodes,), generator=generator)
    verdict = accept_greedy(tree, lambda node: (asked.append(node), int(best[node]))[1])  # type: ignore[func-returns-value]
    assert asked == [0, *verdict.path]


@given(nodes=st.integers(1, 20), seed=st.integers(0, 10_000))
def test_greedy_follows_plain_decoding(nodes: int, seed: int) -> None:
    """The emitted tokens are those of one-by-one decoding, as far as the tree holds them."""
    tree = random_tree(nodes, seed, "deterministic")
    best = torch.randint(3, (nodes,), generator=torch.Generator().manual_seed(seed + 1))
    verdict = accept_greedy(tree, best)
    assert verdict == accept_greedy(tree, best.tolist())
    assert verdict == accept_greedy(tree, lambda node: int(best[node]))
    node = 0
    for accepted in verdict.path:
        assert tree.topology.parents[accepted] == node
        assert tree.tokens[accepted] == best[node]
        node = accepted
    assert verdict.token == best[node]
    assert all(tree.tokens[child] != best[node] for child in tree.topology.children[node])


@given(nodes=st.integers(1, 20), seed=st.integers(0, 10_000), mode=st.sampled_from(SIBLING_MODES))
def test_a_certain_target_samples_greedily(nodes: int, seed: int, mode: Siblings) -> None:
    tree = random_tree(nodes, seed, mode)
    best = torch.randint(3, (nodes,), generator=torch.Generator().manual_seed(seed + 1))
    certain = torch.nn.functional.one_hot(best, 3).float()
    uniforms = torch.rand(nodes, generator=torch.Generator().manual_seed(seed + 2)).tolist()
    assert accept_sampled(tree, certain.__getitem__, uniforms) == accept_greedy(tree, best)


@pytest.mark.parametrize("mode", SIBLING_MODES)
def test_a_forbidden_token_never_comes_out(mode: Siblings) -> None:
    """Zero target probability is a promise (top-p, grammars), at u = 0 above all."""
    p = torch.tensor([0.0, 0.6, 0.0, 0.4])
    for tokens in itertools.product(range(4), repeat=2):
        tree = DraftTree(static((2,)), (0, *tokens), torch.full((3, 4), 0.25), mode)
        for uniforms in itertools.product([0.0, 0.5, ALMOST_ONE], repeat=3):
            path, token = accept_sampled(tree, lambda _: p, uniforms)
            assert {token, *(tree.tokens[node] for node in path)} <= {1, 3}


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
def test_a_perfect_drafter_is_always_accepted(mode: Siblings) -> None:
    """τ = depth + 1 where q = p, in the float32 that models deliver."""
    p = torch.rand(5, 1000, generator=torch.Generator().manual_seed(3)).softmax(-1)
    tree = DraftTree(chain(4), (0, 5, 17, 998, 2), p.clone(), mode)
    verdict = accept_sampled(tree, p.__getitem__, [ALMOST_ONE] * 5)
    assert verdict == Verdict((1, 2, 3, 4), 999)


def test_duplicate_siblings() -> None:
    """The elder one counts: its subtree is the one that was drafted first."""
    tree = DraftTree(topology((-1, 0, 0, 1, 2)), (9, 1, 1, 0, 2))
    assert accept_greedy(tree, [1, 0, 2, 1, 1]) == Verdict((1, 3), 1)
    certain = torch.nn.functional.one_hot(torch.tensor([1, 0, 2, 1, 1]), 3).float()
    assert accept_sampled(tree, certain.__getitem__, [0.5] * 3) == Verdict((1, 3), 1)


@pytest.mark.parametrize("mode", ["with_replacement", "without_replacement"])
def test_filler_siblings_are_no_tokens(mode: Siblings) -> None:
    """``sample_children`` ends short rows in -1, which Python would read as the last token."""
    q = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, -1)
    tree = DraftTree(static((2,)), (0, 0, -1), q, mode)
    p = torch.tensor([0.0, 0.0, 1.0])
    assert accept_sampled(tree, lambda _: p, [0.0, 0.0]) == Verdict((), 2)


def test_plain_decoding_is_a_tree_of_one_node() -> None:
    p = torch.tensor([0.25, 0.25, 0.5])
    for u, token in ((0.0, 0), (0.25, 1), (0.5, 2), (ALMOST_ONE, 2)):
        assert accept_sampled(root_only(7), lambda _: p, [u]) == Verdict((), token)
    assert accept_greedy(root_only(7), [2]) == Verdict((), 2)


def test_errors() -> None:
    tree = DraftTree(chain(2), (0, 1, 1), torch.full((3, 2), 0.5), "with_replacement")
    half = torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="a tree of 3 nodes may take 3"):
        accept_sampled(tree, lambda _: half, [0.5])
    with pytest.raises(ValueError, match="nan or infinite"):
        accept_sampled(root_only(0), lambda _: half * float("nan"), [0.5])
    with pytest.raises(ValueError, match="nan or infinite"):
        accept_sampled(tree, lambda _: half * float("nan"), [0.5] * 3)
    with pytest.raises(ValueError, match="all 2 probabilities are zero"):
        accept_sampled(root_only(0), lambda _: half * 0, [0.5])
