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

A rule that relaxes the target (:mod:`specdec.relaxation`) replaces p before its node is decided;
the rejection stays as it is. Rules are asked node by node through :func:`accept`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from specdec.sampling import draw, normalised, residual
from specdec.tree import DraftTree

if TYPE_CHECKING:
    from specdec.guards import Guards
    from specdec.reliance import Reliance


class Verdict(NamedTuple):
    """What one verified tree yields: the tokens of ``path``, then ``token``.

    Attributes:
        path: the accepted drafted nodes, each the child of the one before; without the root.
        token: the verifier's own token behind the last of them: the correction where siblings were
            refused, the bonus token where the path ended in a leaf.
    """

    path: tuple[int, ...]
    token: int


class Decision(NamedTuple):
    """The token that follows a node.

    Attributes:
        child: the drafted node that carries it, if it was accepted.
        token: the token.
        relaxed: lossless acceptance would have refused it.
        epsilon: by how much the target could give way here.
        spent: by how much it did: total variation when sampling, nats of regret when greedy.
    """

    child: int | None
    token: int
    relaxed: bool = False
    epsilon: float = 0.0
    spent: float = 0.0


@dataclass(frozen=True, slots=True)
class Node:
    """A visited node as a rule sees it.

    Attributes:
        tree: the tree that it belongs to.
        index: its number there.
        scores: float32 ``(V,)`` behind it, after the request's logits processors.
        logits: ``(n, V)`` behind all nodes of the tree, as the verifier gave them.
        reliance: how much the token behind it depends on the image, in [0, 1].
        guarded: that token must be the target's own, whichever it is.
        left: what is left of the request's budget.
    """

    tree: DraftTree
    index: int
    scores: Tensor
    logits: Tensor
    reliance: float = 1.0
    guarded: bool = False
    left: float = float("inf")

    @property
    def children(self) -> tuple[int, ...]:
        """Its drafted children."""
        return self.tree.topology.children[self.index]

    @property
    def tokens(self) -> list[int]:
        """Their tokens."""
        return [self.tree.tokens[child] for child in self.children]

    @property
    def p(self) -> Tensor:
        """The target's distribution behind it, float64 ``(V,)``."""
        return normalised(self.scores.softmax(-1))

    @property
    def q(self) -> Tensor | None:
        """The distribution that its children were drafted from, ``(W,)``."""
        return None if self.tree.q is None else self.tree.q[self.index]


class Rule(Protocol):
    """Decides the token behind one node after another. Holds nothing that changes."""

    @property
    def reliance(self) -> Reliance | None:
        """Estimates the nodes' ``reliance``; ``None`` leaves it at 1."""

    @property
    def guards(self) -> Guards | None:
        """Say which nodes are ``guarded``; ``None``: none is."""

    @property
    def budget(self) -> float | None:
        """The most that a whole answer may spend; ``None`` is without end."""

    @property
    def coins(self) -> int:
        """Uniforms that a node may take beside those of lossless acceptance."""

    def check(self, *, do_sample: bool, processed: bool) -> None:
        """Refuse what the rule is not made for.

        Args:
            do_sample: the target draws its tokens.
            processed: its logits are processed.

        Raises:
            ValueError: the rule does not go with that.
        """

    def greedy(self, node: Node, uniform: Callable[[], float]) -> Decision:
        """The token where the target alone would take the most probable one."""

    def sampled(self, node: Node, uniform: Callable[[], float]) -> Decision:
        """The token where the target alone would draw one."""


def accept(tree: DraftTree, decide: Callable[[int], Decision]) -> Verdict:
    """Walk down from the root as far as ``decide`` accepts children; it is asked once for each node
    on the way, in the order of the emitted tokens.
    """
    node, path = 0, list[int]()
    while True:
        child, token, *_ = decide(node)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(node := child)


def accept_greedy(
    tree: DraftTree, argmax: Callable[[int], int] | Sequence[int] | Tensor
) -> Verdict:
    """Keep the path along which every token is the target's argmax.

    Args:
        argmax: the target's most probable token behind each node: a function, asked for visited
            nodes only, or one value per node, ``(n,)`` (read one by one, so a tensor on the CPU).
    """
    ask = argmax if callable(argmax) else argmax.__getitem__

    def decide(node: int) -> Decision:
        token = int(ask(node))
        return Decision(child_with(tree, node, token), token)

    return accept(tree, decide)


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
    uniform = supply(tree, uniforms)
    return accept(tree, lambda node: decide(tree, node, normalised(target(node)), uniform))


def supply(tree: DraftTree, uniforms: Iterable[float]) -> Callable[[], float]:
    """Hands them out one by one.

    Raises:
        ValueError: when there are no more.
    """
    stream: Iterator[float] = iter(uniforms)

    def uniform() -> float:
        u = next(stream, None)
        if u is None:
            raise ValueError(
                f"too few uniforms: a tree of {len(tree)} nodes may take {uniforms_needed(tree)}"
            )
        return float(u)

    return uniform


def uniforms_needed(tree: DraftTree) -> int:
    """How many uniforms :func:`accept_sampled` may consume, at most.

    Each drafted node is tried at most once and the last token is drawn with one more: the number of
    nodes, the root included.
    """
    return len(tree)


def decide(
    tree: DraftTree,
    node: int,
    p: Tensor,
    uniform: Callable[[], float],
    exact: Tensor | None = None,
) -> Decision:
    """The token that follows ``node``, drawn from ``p`` whatever the drafter proposed.

    Args:
        p: float64 ``(V,)``, normalised.
        uniform: hands out independent uniforms on ``[0, 1)``: at most one per child, and one more.
        exact: what ``p`` was before it was relaxed, if it was; tells which tokens are owed to that.
    """
    if tree.siblings == "deterministic" or not tree.topology.children[node]:
        u = uniform()
        token = draw(p, u)
        child = child_with(tree, node, token)
        relaxed = exact is not None and child is not None and draw(exact, u) != token
        return Decision(child, token, relaxed)
    assert tree.q is not None, "DraftTree refuses drawn siblings without q"
    q = normalised(tree.q[node].to(p.device))
    for child in tree.topology.children[node]:
        token = tree.tokens[child]
        chance = _at(q, token)
        if chance == 0.0:
            # Rounded away, or no token at all: as if not drafted. That is exact: a draw that does
            # fall among the tokens of recorded mass is a draw from q, the others leave p owed.
            continue
        u = uniform()
        if _accepted(_at(p, token), chance, u):
            relaxed = exact is not None and not _accepted(_at(exact, token), chance, u)
            return Decision(child, token, relaxed)
        # A draw that was rejected would have been rejected without relaxation, too.
        p, exact = residual(p, q), None
        if tree.siblings == "without_replacement":
            q = _without(q, token)
    return Decision(None, draw(p, uniform()))


def _accepted(p: float, q: float, u: float) -> bool:
    """``u < min(1, p / q)``. Strict, so that a token of zero target probability never passes."""
    return u * q < p


def _without(q: Tensor, token: int) -> Tensor:
    """``q`` renormalised over the tokens other than ``token``; zero where nothing is left."""
    return normalised(q.index_fill(0, torch.tensor([token], device=q.device), 0.0))


def _at(p: Tensor, token: int) -> float:
    """Probability of ``token``; 0 outside the vocabulary of ``p``."""
    return float(p[token]) if 0 <= token < p.shape[0] else 0.0


def child_with(tree: DraftTree, node: int, token: int) -> int | None:
    """The eldest child of ``node`` that carries ``token``."""
    for child in tree.topology.children[node]:
        if tree.tokens[child] == token:
            return child
    return None
