"""Laws of what acceptance emits, computed and counted, for toy models that can be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor
from transformers import PreTrainedModel

from specdec.acceptance import Verdict, accept_sampled
from specdec.sampling import normalised, sample_children
from specdec.tree import DraftTree, Siblings, Topology, static

ALMOST_ONE = 1 - 2.0**-53
VOCAB, LENGTH = 4, 3
TRIALS = 1500

Accept = Callable[[DraftTree, Callable[[int], Tensor], Sequence[float]], Verdict]


def law_at_root(tree: DraftTree, p: Tensor, accept: Accept = accept_sampled) -> np.ndarray:
    """Exact law ``(V,)`` of the first emitted token, given the tree, over the uniforms.

    The siblings' uniforms are independent and each is compared with one threshold, found by
    bisection; ``ALMOST_ONE`` rejects wherever rejection is possible. What is emitted after all
    rejections is monotone in the last uniform; its steps are bisected too.
    """

    def first(uniforms: Sequence[float]) -> tuple[int, int | None]:
        stream = [*uniforms, *itertools.repeat(0.5, len(tree))]
        path, token = accept(tree, lambda _: p, stream)
        return (tree.tokens[path[0]], path[0]) if path else (token, None)

    def threshold(holds: Callable[[float], bool]) -> float:
        """The u below which ``holds``."""
        if not holds(0.0):
            return 0.0
        if holds(ALMOST_ONE):
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(37):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    law = np.zeros(max(len(p), max(tree.tokens) + 1))
    reach = 1.0
    rejected: list[float] = []
    if tree.siblings != "deterministic":
        assert tree.q is not None
        for child in tree.topology.children[0]:
            if tree.q[0, tree.tokens[child]] == 0:
                continue  # not tried, takes no uniform
            chance = threshold(lambda u, c=child: first([*rejected, u])[1] == c)  # type: ignore[misc]
            law[tree.tokens[child]] += reach * chance
            reach *= 1 - chance
            if chance == 1.0:
                return law
            rejected.append(ALMOST_ONE)
    below = 0.0
    for token in range(len(p)):
        up_to = threshold(lambda u, t=token: first([*rejected, u])[0] <= t)  # type: ignore[misc]
        law[token] += reach * (up_to - below)
        below = up_to
    return law


def sibling_tuples(q: Tensor, k: int, mode: Siblings) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every tuple of siblings that can be drawn, with its probability, from the definitions."""
    if mode == "deterministic":
        yield tuple(q.argsort(descending=True)[:k].tolist()), 1.0
        return
    for tokens in itertools.product(range(len(q)), repeat=k):
        left, probability = q.double().clone(), 1.0
        for token in tokens:
            probability *= float(left[token] / left.sum())
            if mode == "without_replacement":
                left[token] = 0.0
        if probability > 0:
            yield tokens, probability


def decided_law(
    p: Tensor,
    q: Tensor,
    k: int,
    mode: Siblings,
    amend: Callable[[DraftTree], DraftTree] = lambda tree: tree,
    accept: Accept = accept_sampled,
) -> np.ndarray:
    """Exact law of the token decided at a node with ``k`` siblings, over draws and uniforms."""
    law = np.zeros(max(len(p), len(q)))
    for tokens, probability in sibling_tuples(q, k, mode):
        tree = DraftTree(static((k,)), (0, *tokens), q.expand(k + 1, -1), mode)
        given_tree = law_at_root(amend(tree), p, accept)
        law[: len(given_tree)] += probability * given_tree
    return law


def dist(*weights: float) -> Tensor:
    return normalised(torch.tensor(weights, dtype=torch.float64))


PAIRS = {
    "generic": (dist(4, 3, 2, 1), dist(1, 1, 4, 4)),
    "one-sided": (dist(5, 2, 2, 1), dist(1, 2, 3, 4)),
    "top-p": (dist(6, 0, 4, 0), dist(1, 4, 2, 3)),
    "equal": (dist(1, 2, 3), dist(1, 2, 3)),
    "disjoint": (dist(1, 2, 0, 0, 0), dist(0, 0, 1, 1, 3)),
    "sharp-drafter": (dist(3, 2, 1), dist(0.998, 0.001, 0.001)),
    "sharp-target": (dist(1e-9, 1, 1e-9), dist(3, 2, 1)),
}


class Toy(NamedTuple):
    """Random autoregressive models. Prefixes are numbered like a heap: the child of ``i`` by token
    ``t`` is ``i · VOCAB + 1 + t``; ``p`` and ``q`` have one row per prefix.
    """

    p: Tensor
    q: Tensor

    def sequences(self) -> np.ndarray:
        """Exact probability of every prefix of up to LENGTH tokens, by its number."""
        law = [1.0]
        for prefix in range(sum(VOCAB**n for n in range(LENGTH))):
            law += [law[prefix] * float(chance) for chance in self.p[prefix]]
        return np.array(law)


def toy(temperature: float, top_p: float, seed: int = 11, depth: int = 2) -> Toy:
    """A target after temperature and top-p, and a drafter that knows half of its logits.

    ``depth``: of the trees. The seed is one for which even the mildest of the planted bugs shows in
    TRIALS runs.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(VOCAB**n for n in range(LENGTH + depth + 1)), VOCAB)
    logits = 1.5 * torch.randn(shape, generator=generator)
    guess = 0.5 * logits + torch.randn(shape, generator=generator)
    p = (logits / temperature).softmax(-1)
    descending, order = p.sort(-1, descending=True)
    keep = descending.cumsum(-1) - descending < top_p
    p = torch.zeros_like(p).scatter(-1, order, descending * keep)
    return Toy(normalised(p), (guess / temperature).softmax(-1))


def draft(
    model: Toy, prefixes: Tensor, shape: Topology, mode: Siblings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tokens and prefix numbers ``(R, n)`` of one drafted tree per prefix ``(R,)``."""
    tokens = torch.zeros(len(prefixes), len(shape), dtype=torch.int64)
    at = tokens.clone()
    at[:, 0] = prefixes
    for node, children in enumerate(shape.children):
        drawn = sample_children(model.q[at[:, node]], len(children), mode, generator)
        for child, token in zip(children, drawn.unbind(-1), strict=True):
            tokens[:, child] = token
            at[:, child] = at[:, node] * VOCAB + 1 + token
    return tokens, at


def generated(
    model: Toy,
    shape: Topology,
    mode: Siblings,
    seed: int,
    accept: Accept = accept_sampled,
    amend: Callable[[DraftTree], DraftTree] = lambda tree: tree,
) -> np.ndarray:
    """How often each prefix of up to LENGTH tokens was generated in TRIALS runs of the loop."""
    generator = torch.Generator().manual_seed(seed)
    counts = np.zeros(sum(VOCAB**n for n in range(LENGTH + 1)), dtype=np.int64)
    outputs: list[list[int]] = [[] for _ in range(TRIALS)]
    running = list(range(TRIALS))
    while running:
        prefixes = torch.tensor([number(outputs[trial]) for trial in running])
        tokens, at = draft(model, prefixes, shape, mode, generator)
        q, p = model.q[at], model.p[at]
        uniforms = torch.rand(at.shape, dtype=torch.float64, generator=generator).tolist()
        for row, trial in enumerate(running):
            tree = amend(DraftTree(shape, tuple(tokens[row].tolist()), q[row], mode))
            path, token = accept(tree, p[row].__getitem__, uniforms[row])
            outputs[trial] += [*(tree.tokens[node] for node in path), token]
        running = [trial for trial in running if len(outputs[trial]) < LENGTH]
    for output in outputs:
        for length in range(LENGTH + 1):
            counts[number(output[:length])] += 1
    return counts


def number(output: Sequence[int]) -> int:
    prefix = 0
    for token in output:
        prefix = prefix * VOCAB + 1 + token
    return prefix


def least_tail(counts: np.ndarray, law: np.ndarray) -> float:
    """Bound on the probability that correct code is off by this much, too often or too rarely.

    Each prefix's count is binomial, whatever the others do: the least of all exact tails, both
    sides, times their number (Bonferroni).
    """
    n = counts[0]
    tails = np.minimum(binom.cdf(counts, n, law), binom.sf(counts - 1, n, law))
    return float(2 * len(counts) * tails.min())


def sequence_distribution(
    model: PreTrainedModel, ids: Tensor, length: int
) -> dict[tuple[int, ...], float]:
    """Probability of every sequence of that length behind ``ids``, by enumeration."""
    distribution = {(): 1.0}
    with torch.no_grad():
        for _ in range(length):
            rows = [torch.cat([ids[0], torch.tensor(s, dtype=torch.long)]) for s in distribution]
            probabilities = model(torch.stack(rows)).logits[:, -1].double().softmax(-1)
            distribution = {
                (*sequence, token): mass * float(probability)
                for (sequence, mass), row in zip(distribution.items(), probabilities, strict=True)
                for token, probability in enumerate(row)
            }
    return distribution
