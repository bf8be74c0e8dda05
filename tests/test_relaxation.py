"""Relaxed acceptance: the bound holds, and what comes out follows the relaxed target exactly.

The relaxed target of a node is computed here a second time, from its definition: the distribution
that a linear program would find, built token by token. As in ``test_acceptance``, laws are computed
by integrating over uniforms, and counted over whole sequences; planted bugs must turn both red.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec import acceptance, relaxation
from specdec.acceptance import (
    Decision,
    Node,
    Verdict,
    accept,
    accept_greedy,
    accept_sampled,
    supply,
)
from specdec.guards import Guards
from specdec.relaxation import Relaxation, onto, regret, toward
from specdec.reliance import Constant
from specdec.sampling import normalised, residual, total_variation
from specdec.tree import (
    SIBLING_MODES,
    DraftTree,
    Siblings,
    chain,
    random_topology,
    static,
)
from support.laws import (
    ALMOST_ONE,
    LENGTH,
    PAIRS,
    VOCAB,
    Accept,
    Toy,
    decided_law,
    dist,
    generated,
    least_tail,
    sibling_tuples,
    toy,
)

FALSE_FAILURE = 1e-11  # of one counted test; with 7 of them, of the file below 1e-10
DRAWN: tuple[Siblings, ...] = ("with_replacement", "without_replacement")


def rule(
    epsilon: float, *fixed: int, gamma: float = 1.0, budget: float | None = None, vocab: int = VOCAB
) -> Relaxation:
    guards = Guards(None, vocab, (), stop_tokens=fixed)
    return Relaxation(epsilon, gamma, Constant(0.0), guards, guards.tokens, budget)


def accepting(relaxed: Relaxation, reliance: Callable[[int], float] = lambda _: 0.0) -> Accept:
    """``accept_sampled`` under a rule; ``reliance`` of each node."""

    def run(tree: DraftTree, target: Callable[[int], Tensor], uniforms: Sequence[float]) -> Verdict:
        uniform = supply(tree, uniforms)

        def decide(index: int) -> Decision:
            scores = target(index).log()
            node = Node(tree, index, scores, scores[None], reliance(index))
            return relaxed.sampled(node, uniform)

        return accept(tree, decide)

    return run


# From the definition


def nearest(p: Tensor, q: Tensor, epsilon: float, fixed: Sequence[int] = ()) -> np.ndarray:
    """Move ε of p's mass, as far as there is any, from where p exceeds q to where q exceeds p,
    tokens that p excludes and fixed ones left alone.
    """
    wanted = [float(q[token]) if token < len(q) else 0.0 for token in range(len(p))]
    free = [token for token in range(len(p)) if token not in fixed]
    over = {t: float(p[t]) - wanted[t] for t in free if p[t] > wanted[t]}
    under = {t: wanted[t] - float(p[t]) for t in free if 0 < p[t] < wanted[t]}
    moved = min(epsilon, sum(over.values()), sum(under.values()))
    result = p.double().numpy().copy()
    for token, surplus in over.items():
        result[token] -= moved * surplus / sum(over.values())
    for token, deficit in under.items():
        result[token] += moved * deficit / sum(under.values())
    return result


def gathered(
    p: Tensor, tokens: Sequence[int], epsilon: float, fixed: Sequence[int] = ()
) -> np.ndarray:
    """Move ε of p's mass, as far as there is any, from tokens outside onto those drafted."""
    inside = {t for t in tokens if t < len(p) and t not in fixed and p[t] > 0}
    outside = {t for t in range(len(p)) if t not in tokens and t not in fixed}
    result = p.double().numpy().copy()
    held, free = (sum(float(p[t]) for t in part) for part in (inside, outside))
    moved = min(epsilon, free) if inside else 0.0
    for token in inside:
        result[token] *= 1 + moved / held
    for token in outside if free > 0 else ():
        result[token] *= 1 - moved / free
    return result


# By integration


@pytest.mark.parametrize("epsilon", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mode", SIBLING_MODES)
def test_the_decided_token_follows_the_relaxed_target(
    mode: Siblings, pair: str, epsilon: float
) -> None:
    """Nothing is sampled. With a fixed token, one that is drafted or not. Tolerance as there."""
    p, q = PAIRS[pair]
    for fixed in ((), (0,)):
        relaxed = accepting(rule(epsilon, *fixed, vocab=len(p)))
        law = decided_law(p, q, 2, mode, accept=relaxed)
        if mode == "deterministic":
            expected = gathered(p, q.argsort(descending=True)[:2].tolist(), epsilon, fixed)
        else:
            expected = nearest(p, q, epsilon, fixed)
        assert np.abs(law[: len(p)] - expected).max() < 1e-10
        assert law[len(p) :].sum() == 0


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("pair", ["generic", "one-sided", "sharp-drafter", "equal"])
def test_acceptance_probability(pair: str, epsilon: float) -> None:
    """``1 − max(0, TV − ε)``, integrated exactly: the share of u at which each draw passes."""
    p, q = PAIRS[pair]
    relaxed = accepting(rule(epsilon, vocab=len(p)))
    accepted = 0.0
    for tokens, probability in sibling_tuples(q, 1, "with_replacement"):
        tree = DraftTree(chain(1), (0, *tokens), q.expand(2, -1), "with_replacement")
        low, high = 0.0, 1.0
        if relaxed(tree, lambda _: p, [ALMOST_ONE, 0.5]).path:
            low = 1.0
        else:
            for _ in range(45):
                middle = (low + high) / 2
                passes = bool(relaxed(tree, lambda _: p, [middle, 0.5]).path)
                low, high = (middle, high) if passes else (low, middle)
        accepted += probability * low
    distance = float(total_variation(p, q))
    assert accepted == pytest.approx(1 - max(0.0, distance - epsilon), abs=1e-10)


# By counting

DEEP = {"chain": chain(LENGTH), "tree": static((2, 2, 2))}  # no leaf within LENGTH tokens


def reliances(model: Toy) -> Tensor:
    """One per prefix, 1 among them: there nothing may give way."""
    drawn = torch.rand(len(model.p), generator=torch.Generator().manual_seed(5)).double()
    return torch.where(drawn > 0.9, 1.0, drawn / 2)


@dataclass(frozen=True)
class Setting:
    """A toy, and how its target is relaxed. ``wrapped``: the rule as it is, or a wrong one."""

    model: Toy
    reliance: Tensor
    epsilon: float = 0.4
    fixed: tuple[int, ...] = (0,)

    def relaxed(self, mode: Siblings, siblings: int) -> Toy:
        """The toy whose target is the relaxed one."""
        rows = []
        for p, q, v in zip(self.model.p, self.model.q, self.reliance.tolist(), strict=True):
            within = self.epsilon * (1 - v) ** 2
            if mode == "deterministic":
                drafted = q.argsort(descending=True)[:siblings].tolist()
                rows.append(gathered(p, drafted, within, self.fixed))
            else:
                rows.append(nearest(p, q, within, self.fixed))
        return Toy(torch.from_numpy(np.stack(rows)), self.model.q)

    def counts(self, shape: str, mode: Siblings) -> np.ndarray:
        """Of the real loop. A node's prefix is known by the row of q that it was drafted from."""
        relaxed = rule(self.epsilon, *self.fixed, gamma=2.0)
        number = {tuple(row.tolist()): index for index, row in enumerate(self.model.q)}

        def run(
            tree: DraftTree, target: Callable[[int], Tensor], uniforms: Sequence[float]
        ) -> Verdict:
            q = tree.q
            assert q is not None
            prefixes = [number[tuple(row.tolist())] for row in q]
            within = accepting(relaxed, lambda node: float(self.reliance[prefixes[node]]))
            return within(tree, target, uniforms)

        return generated(self.model, DEEP[shape], mode, seed=3, accept=run)


def setting() -> Setting:
    """A drafter so bad that there are rejections to be had, relaxed or not."""
    model, other = (toy(temperature=0.7, top_p=0.95, seed=seed, depth=LENGTH) for seed in (12, 1))
    return Setting(Toy(model.p, other.q), reliances(model))


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("mode", SIBLING_MODES)
def test_sequences_follow_the_relaxed_target(mode: Siblings, shape: str) -> None:
    """Whole sequences, every prefix with its own reliance, a guarded token, a top-p target; each
    falsely red with a probability of 1e-11. Not even nearly the law of the unrelaxed target.
    """
    chosen = setting()
    counts = chosen.counts(shape, mode)
    siblings = len(DEEP[shape].children[0])
    assert least_tail(counts, chosen.relaxed(mode, siblings).sequences()) > FALSE_FAILURE
    assert least_tail(counts, chosen.model.sequences()) < FALSE_FAILURE


def without_ban(
    p: Tensor, q: Tensor, epsilon: float, fixed: Tensor | None = None, floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """ε spent on tokens that truncation has excluded."""
    weight = min(1.0, epsilon / max(float(total_variation(p, q)), 1e-12))
    return (1 - weight) * p + weight * q, torch.tensor(epsilon)


def relaxed_at_every_sibling(
    tree: DraftTree,
    node: int,
    p: Tensor,
    uniform: Callable[[], float],
    exact: Tensor | None = None,
) -> Decision:
    """ε spent again on what each rejection leaves."""
    assert tree.q is not None
    q = normalised(tree.q[node])
    for child in tree.topology.children[node]:
        token = tree.tokens[child]
        if uniform() * float(q[token]) < float(p[token]):
            return Decision(child, token)
        p, _ = toward(residual(p, q), q, 0.3)
    return acceptance.decide(replace(tree, siblings="deterministic"), node, p, uniform)


BUGS: dict[str, tuple[Siblings, object, str, Callable[..., object]]] = {
    "residual of the unrelaxed target": (
        "with_replacement",
        acceptance,
        "residual",
        lambda p, q: p,
    ),
    "q not renormalised after a sibling": (
        "without_replacement",
        acceptance,
        "_without",
        lambda q, token: q.index_fill(0, torch.tensor([token]), 0.0),
    ),
    "ε applied to what truncation excluded": (
        "with_replacement",
        relaxation,
        "toward",
        without_ban,
    ),
    "ε applied after each sibling": (
        "with_replacement",
        relaxation,
        "decide",
        relaxed_at_every_sibling,
    ),
    "ε whatever the reliance": (
        "with_replacement",
        Relaxation,
        "allowed",
        lambda self, node: self.epsilon,
    ),
}
# What happens behind a second rejection is rare: it takes the exact law to see it.
RARE = {"q not renormalised after a sibling", "ε applied after each sibling"}


@pytest.mark.parametrize("name", [name for name in BUGS if name not in RARE])
def test_counting_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: the same toy, trials and bound as above must call each wrong rule wrong."""
    mode, where, function, wrong = BUGS[name]
    monkeypatch.setattr(where, function, wrong)
    chosen = setting()
    counts = chosen.counts("tree", mode)
    assert least_tail(counts, chosen.relaxed(mode, 2).sequences()) < FALSE_FAILURE


@pytest.mark.parametrize("name", BUGS)
def test_integration_notices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power: wrong rules are far beyond the tolerance of 1e-10."""
    mode, where, function, wrong = BUGS[name]
    monkeypatch.setattr(where, function, wrong)
    p, q = dist(6, 6, 1, 0, 1), dist(5, 1, 4, 4, 1)
    relaxed = accepting(rule(0.2, vocab=5), lambda _: 0.5)
    law = decided_law(p, q, 2, mode, accept=relaxed)
    assert np.abs(law - nearest(p, q, 0.1)).max() > 1e-3


# The bound


@given(
    seed=st.integers(0, 10_000),
    epsilon=st.floats(0, 1),
    budget=st.none() | st.floats(0, 1),
    top_p=st.sampled_from([0.6, 1.0]),
)
def test_answers_stay_within_the_bound(
    seed: int, epsilon: float, budget: float | None, top_p: float
) -> None:
    """Exactly computed laws of all answers: their total variation is at most the expected sum of
    what was spent, that at most the largest sum of ε_v, and at most the budget.
    """
    model = toy(1.0, top_p, seed)
    reliance = torch.rand(len(model.p), generator=torch.Generator().manual_seed(seed)).tolist()
    laws = {0: (1.0, 1.0, 0.0, 0.0)}  # prefix: under p, under r, spent, allowed
    for prefix in range(sum(VOCAB**n for n in range(LENGTH))):
        plain, relaxed, spent, allowed = laws[prefix]
        within = epsilon * (1 - reliance[prefix])
        left = math.inf if budget is None else budget - spent
        r, moved = toward(model.p[prefix], model.q[prefix], max(0.0, min(within, left)))
        for token in range(VOCAB):
            laws[prefix * VOCAB + 1 + token] = (
                plain * float(model.p[prefix, token]),
                relaxed * float(r[token]),
                spent + float(moved),
                allowed + within,
            )
    answers = [law for prefix, law in laws.items() if prefix * VOCAB + 1 not in laws]
    distance = sum(abs(plain - relaxed) for plain, relaxed, _, _ in answers) / 2
    expected = sum(relaxed * spent for _, relaxed, spent, _ in answers)
    assert distance <= expected + 1e-12
    assert all(spent <= allowed + 1e-12 for _, _, spent, allowed in answers)
    assert budget is None or all(spent <= budget + 1e-12 for _, _, spent, _ in answers)


weights = st.lists(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 3.0]), min_size=2, max_size=6).filter(any)


@given(p=weights, q=weights, epsilon=st.floats(0, 1), more=st.floats(0, 1), fixed=st.integers(0, 9))
def test_properties_of_moving_towards_the_drafter(
    p: list[float], q: list[float], epsilon: float, more: float, fixed: int
) -> None:
    """r is a distribution within ε of p, excluded and fixed tokens stay, and acceptance grows with
    ε by what is spent.
    """
    target, proposal = dist(*p), dist(*q)
    held = torch.arange(len(p)) == fixed
    r, spent = toward(target, proposal, epsilon, held)
    assert float(r.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(r.min()) >= 0
    assert float(total_variation(r, target)) == pytest.approx(float(spent), abs=1e-12)
    assert float(spent) <= epsilon
    assert bool((r[target == 0] == 0).all())
    assert torch.equal(r[held], target[held])
    nearer = float(total_variation(target, proposal)) - float(spent)
    assert float(total_variation(r, proposal)) == pytest.approx(nearer, abs=1e-12)
    wider = toward(target, proposal, min(1.0, epsilon + more), held)[1]
    assert float(wider) >= float(spent)
    if epsilon == 0:
        assert torch.equal(r, target)


@given(p=weights, tokens=st.lists(st.integers(-1, 7), max_size=3), epsilon=st.floats(0, 1))
def test_properties_of_moving_onto_children(
    p: list[float], tokens: list[int], epsilon: float
) -> None:
    target = dist(*p)
    r, spent = onto(target, tokens, epsilon)
    assert float(r.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(r.min()) >= 0
    assert float(total_variation(r, target)) == pytest.approx(float(spent), abs=1e-12)
    assert float(spent) <= epsilon
    assert bool((r[target == 0] == 0).all())


@given(data=st.data())
def test_many_nodes_at_once_are_as_one_after_the_other(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    p, q = (normalised(torch.rand(3, 7, generator=generator)) for _ in range(2))
    epsilon = torch.rand(3, 1, generator=generator).double()
    r, spent = toward(p, q, epsilon)
    for row in range(3):
        alone, its = toward(p[row], q[row], float(epsilon[row]))
        assert torch.equal(r[row], alone)
        assert spent[row] == its


@given(nodes=st.integers(1, 20), seed=st.integers(0, 10_000), mode=st.sampled_from(SIBLING_MODES))
def test_no_tolerance_is_lossless_bit_for_bit(nodes: int, seed: int, mode: Siblings) -> None:
    """The same uniforms, the same verdict, drawn or greedy, whether ε, v or a guard says so."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, (nodes,), generator=generator).tolist()
    q = normalised(torch.rand(nodes, 5, generator=generator))
    tree = DraftTree(random_topology(nodes, seed), tuple(tokens), q, mode)
    logits = torch.randn(nodes, 5, generator=generator)
    uniforms = torch.rand(nodes, dtype=torch.float64, generator=generator).tolist()
    drawn = accept_sampled(tree, lambda node: logits[node].softmax(-1), uniforms)
    greedy = accept_greedy(tree, logits.argmax(-1))
    off = [
        (rule(0.0, vocab=5), {"reliance": 0.0}),
        (rule(0.9, vocab=5), {"reliance": 1.0}),
        (rule(0.9, vocab=5), {"reliance": 0.0, "guarded": True}),
        (rule(0.9, vocab=5), {"reliance": 0.0, "left": 0.0}),
    ]
    for relaxed, how in off:
        uniform = supply(tree, uniforms)

        def node(index: int, how: dict[str, float] = how) -> Node:
            return Node(tree, index, logits[index], logits, **how)  # type: ignore[arg-type]

        assert drawn == accept(tree, lambda i: relaxed.sampled(node(i), uniform))  # noqa: B023
        assert greedy == accept(tree, lambda i: relaxed.greedy(node(i), uniform))  # noqa: B023


# Greedy


@given(
    scores=st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 1.5, 4.0]), min_size=4, max_size=4),
    tokens=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    epsilon=st.floats(0, 1),
    left=st.just(math.inf) | st.floats(0, 3),
)
def test_greedy_takes_the_best_child_within_the_bound(
    scores: list[float], tokens: list[int], epsilon: float, left: float
) -> None:
    """Against the definition, every token tried; token 3 is guarded."""
    if max(scores) == -math.inf:
        return
    row = torch.tensor(scores)
    p = row.double().softmax(-1)
    tree = DraftTree(static((len(tokens),)), (9, *tokens))
    decision = rule(epsilon, 3).greedy(
        Node(tree, 0, row, row[None], reliance=0.0, left=left), lambda: 0.0
    )
    best = int(row.argmax())
    assert decision.token == best or decision.relaxed
    if decision.token != best:
        ratio = float(p[decision.token] / p.max())
        assert ratio >= 1 - epsilon - 1e-6
        assert decision.spent == pytest.approx(-math.log(ratio), abs=1e-6)
        assert decision.spent <= left
        assert 3 not in (best, decision.token)
        assert best not in tokens
    elif best not in tokens and best != 3 and epsilon > 0:
        for token in tokens:  # what was refused is out of bounds
            if token < 3:
                gap = math.log(float(p.max())) - math.log(max(float(p[token]), 1e-300))
                most = min(left, -math.log1p(-epsilon) if epsilon < 1 else math.inf)
                assert gap > most - 1e-6 or p[token] == 0


@pytest.mark.parametrize(("scores", "guarded"), [([1.0, 0.0, 1.5], 2), ([1.0, 0.0, 1.5], 0)])
def test_greedy_relaxes_neither_into_nor_out_of_guarded_tokens(
    scores: list[float], guarded: int
) -> None:
    row = torch.tensor(scores)
    tree = DraftTree(chain(1), (9, 0))
    for fixed, child in (((guarded,), None), ((), 1)):
        node = Node(tree, 0, row, row[None], reliance=0.0)
        assert rule(0.9, *fixed, vocab=3).greedy(node, lambda: 0.0).child == child


def test_regret_is_in_nats() -> None:
    row = torch.tensor([2.0, 1.0, -math.inf])
    assert regret(row, [0, 1, 2, 3, -1]) == [0.0, 1.0, math.inf, math.inf, math.inf]


@pytest.mark.parametrize("mode", DRAWN)
def test_what_was_relaxed_is_told_apart(mode: Siblings) -> None:
    """A drafted token counts as relaxed where the same uniform would have refused it without."""
    p, q = dist(6, 3, 1), dist(1, 1, 8)
    tree = DraftTree(chain(1), (0, 2), q.expand(2, -1), mode)
    r, _ = toward(p, q, 0.3)
    strict, wide = float(p[2] / q[2]), float(r[2] / q[2])
    for u, relaxed in ((0.9 * strict, False), ((strict + wide) / 2, True)):
        node = Node(tree, 0, p.log(), p.log()[None], reliance=0.0)
        decision = rule(0.3, vocab=3).sampled(node, lambda u=u: u)  # type: ignore[misc]
        assert (decision.child, decision.relaxed) == (1, relaxed)
        assert decision.spent == pytest.approx(0.3)
    refused = rule(0.3, vocab=3).sampled(
        Node(tree, 0, p.log(), p.log()[None], reliance=0.0), lambda: (1 + wide) / 2
    )
    assert (refused.child, refused.relaxed) == (None, False)


# The floor


@given(p=weights, q=weights, epsilon=st.floats(0, 1), floor=st.floats(0, 1))
def test_what_is_below_the_floor_gains_nothing(
    p: list[float], q: list[float], epsilon: float, floor: float
) -> None:
    """Towards the drafter and onto its children; the bound holds as without."""
    target, proposal = dist(*p), dist(*q)
    low = target < floor * target.max()
    drafted = proposal.argsort(descending=True)[:2].tolist()
    for r, spent in (
        toward(target, proposal, epsilon, floor=floor),
        onto(target, drafted, epsilon, floor=floor),
    ):
        size = min(len(p), len(r))
        assert bool((r[:size][low] <= target[low]).all())
        assert float(total_variation(r, target)) == pytest.approx(float(spent), abs=1e-12)
        assert float(spent) <= epsilon
    free = toward(target, proposal, epsilon)
    if not bool((low & (target > 0)).any()):
        assert torch.equal(toward(target, proposal, epsilon, floor=floor)[0], free[0])


@pytest.mark.parametrize("mode", SIBLING_MODES)
def test_the_decided_token_follows_the_target_above_the_floor(mode: Siblings) -> None:
    """Integrated exactly: rejection is against the very distribution that the floor leaves."""
    p, q = dist(50, 20, 8, 2, 1), dist(1, 1, 1, 4, 3)
    relaxed = replace(rule(0.5, vocab=5), floor=0.1)
    law = decided_law(p, q, 2, mode, accept=accepting(relaxed))
    drafted = q.argsort(descending=True)[:2].tolist()
    if mode == "deterministic":
        expected = p.numpy()  # both children, 3 and 4, are below it
    else:
        expected = toward(p, q, 0.5, floor=0.1)[0].numpy()
        assert expected[2] > p[2]
        assert expected[3] == pytest.approx(float(p[3]))
    assert drafted == [3, 4]
    assert np.abs(law - expected).max() < 1e-10


def test_greedy_stays_above_the_floor() -> None:
    row = torch.tensor([0.5, 0.08, 0.04]).log()
    relaxed = replace(rule(1.0, vocab=3), floor=0.1)
    for token, taken in ((1, True), (2, False)):
        tree = DraftTree(chain(1), (9, token))
        decision = relaxed.greedy(Node(tree, 0, row, row[None], reliance=0.0), lambda: 0.0)
        assert (decision.child is not None) == taken
