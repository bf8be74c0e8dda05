"""Acceptance: how much of a draft tree the target keeps, and which token follows.

Pure functions of (tree, target, uniforms): no cache, no model, no random generator inside.
Lossless: with p the target's distribution at a node and q the drafter's, the emitted tokens follow
p exactly, whatever q is. Both rules walk down from the root and ask for the target only at the
nodes they visit, once each and in the order of the emitted tokens, so that a stateful logits
processor sees just what plain decoding would have shown it. One token is decided at each such node:

``deterministic`` siblings (a point-mass proposal): draw y ~ p; descend if y is a child.

drawn siblings x_1 … x_k, tried in the order of their drawing (p_1 = p, q_1 = q):
    accept x_i with probability min(1, p_i(x_i) / q_i(x_i)) and descend, else
    p_{i+1} = norm((p_i - q_i)+), and q_{i+1} = q_i if drawn with replacement, else
    q_i without x_i, renormalised; when none is left, emit y ~ p_{k+1}.
Given that the elder siblings were rejected, x_i is a draw from q_i and p_i is what has to come out,
so every round is one speculative sampling step. For one sibling this is Leviathan et al.
(2211.17192), with replacement multi-step speculative sampling (SpecInfer, 2305.09781), without
replacement recursive rejection sampling (RSD, 2402.14160).

A rule that relaxes the target replaces p before its node is decided; the rejection stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.sampling import draw, normalised, residual
from specdec.tree import DraftTree


class Verdict(NamedTuple):
    """What one verified tree yields: the tokens of ``path``, then ``token``.

    Attributes:
        path: the accepted drafted nodes, each the child of the one before; without the root.
        token: the verifier's own token behind the last of them: the correction where siblings were
            refused, the bonus token where the path ended in a leaf.
    """

    path: tuple[int, ...]
    token: int


def accept_greedy(
    tree: DraftTree, argmax: Callable[[int], int] | Sequence[int] | Tensor
) -> Verdict:
    """Keep the path along which every token is the target's argmax.

    Args:
        argmax: the target's most probable token behind each node: a function, asked for visited
            nodes only, or one value per node, ``(n,)`` (read one by one, so a tensor on the CPU).
    """
    ask = argmax if callable(argmax) else argmax.__getitem__
    node, path = 0, list[int]()
    while True:
        token = int(ask(node))
        child = _child_with(tree, node, token)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(node := child)


def accept_sampled(
    tree: DraftTree, target: Callable[[int], Tensor], uniforms: Iterable[float]
) -> Verdict:
    """Keep a path such that the emitted tokens follow the target's distribution.

    Args:
        target: node to the target's distribution ``(V,)`` of the token behind it, after the
            request's logits processors; float32 or float64, renormalised here in float64. Its width
            may differ from that of ``tree.q``: a token that one side lacks has probability 0 there.
        uniforms: independent uniforms on ``[0, 1)``, at least ``uniforms_needed(tree)`` of them,
            independent also of those that drew the tree.

    Raises:
        ValueError: too few uniforms, or a target without mass or with nan.
    """
    stream = iter(uniforms)

    def uniform() -> float:
        u = next(stream, None)
        if u is None:
            raise ValueError(
                f"too few uniforms: a tree of {len(tree)} nodes may take {uniforms_needed(tree)}"
            )
        return float(u)

    node, path = 0, list[int]()
    while True:
        child, token = _decide(tree, node, normalised(target(node)), uniform)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(node := child)


def uniforms_needed(tree: DraftTree) -> int:
    """How many uniforms :func:`accept_sampled` may consume, at most.

    Each drafted node is tried at most once and the last token is drawn with one more: the number of
    nodes, the root included.
    """
    return len(tree)


def _decide(
    tree: DraftTree, node: int, p: Tensor, uniform: Callable[[], float]
) -> tuple[int | None, int]:
    """The token that follows ``node``, and the child that carries it if it was accepted.

    ``p``: float64 ``(V,)``, normalised.
    """
    if tree.siblings == "deterministic" or not tree.topology.children[node]:
        token = draw(p, uniform())
        return _child_with(tree, node, token), token
    assert tree.q is not None, "DraftTree refuses drawn siblings without q"
    q = normalised(tree.q[node].to(p.device))
    for child in tree.topology.children[node]:
        token = tree.tokens[child]
        chance = _at(q, token)
        if chance == 0.0:
            # Rounded away, or no token at all: as if not drafted. That is exact: a draw that does
            # fall among the tokens of recorded mass is a draw from q, the others leave p owed.
            continue
        if _accepted(_at(p, token), chance, uniform()):
            return child, token
        p = residual(p, q)
        if tree.siblings == "without_replacement":
            q = _without(q, token)
    return None, draw(p, uniform())


def _accepted(p: float, q: float, u: float) -> bool:
    """``u < min(1, p / q)``. Strict, so that a token of zero target probability never passes."""
    return u * q < p


def _without(q: Tensor, token: int) -> Tensor:
    """``q`` renormalised over the tokens other than ``token``; zero where nothing is left."""
    return normalised(q.index_fill(0, torch.tensor([token], device=q.device), 0.0))


def _at(p: Tensor, token: int) -> float:
    """Probability of ``token``; 0 outside the vocabulary of ``p``."""
    return float(p[token]) if 0 <= token < p.shape[0] else 0.0


def _child_with(tree: DraftTree, node: int, token: int) -> int | None:
    """The eldest child of ``node`` that carries ``token``."""
    for child in tree.topology.children[node]:
        if tree.tokens[child] == token:
            return child
    return None
