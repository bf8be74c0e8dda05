"""Draft trees: topology, tokens and the distributions that the tokens were drawn from.

Knows nothing of models, caches or acceptance rules. Nodes are numbered so that a parent always
comes before its children; node 0 is the root, the request's last token, whose key and value are not
cached yet. A tree of one node is therefore plain decoding.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import torch
from torch import Tensor

Siblings = Literal["deterministic", "with_replacement", "without_replacement"]
SIBLING_MODES: tuple[Siblings, ...] = ("deterministic", "with_replacement", "without_replacement")


@dataclass(frozen=True, eq=False)
class Topology:
    """The shape of a tree, without tokens. Build it with :func:`topology`, which caches.

    Attributes:
        parents: parent of each node; ``-1`` for node 0, the root.
        depths: depth of each node; 0 for the root.
        children: children of each node, in sibling order.
        levels: the nodes of each depth.
    """

    parents: tuple[int, ...]
    depths: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[int, ...], ...]
    is_chain: bool

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def depth(self) -> int:
        """The depth of the deepest node."""
        return len(self.levels) - 1

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to ``node``, both included."""
        nodes = [node]
        while (node := self.parents[node]) >= 0:
            nodes.append(node)
        return tuple(reversed(nodes))

    @cached_property
    def ancestors(self) -> Tensor:
        """Bool ``(n, n)`` on the CPU; ``[i, j]``: j is i or an ancestor of i."""
        ancestors = torch.eye(len(self), dtype=torch.bool)
        for level in self.levels[1:]:
            nodes = list(level)
            ancestors[nodes] |= ancestors[[self.parents[node] for node in nodes]]
        return ancestors

    def truncate(self, depth: int) -> Topology:
        """The same shape without the nodes deeper than ``depth``; surviving nodes keep their
        order.
        """
        if depth >= self.depth:
            return self
        kept = [node for node in range(len(self)) if self.depths[node] <= depth]
        new = {old: index for index, old in enumerate(kept)} | {-1: -1}
        return topology(tuple(new[self.parents[node]] for node in kept))


@lru_cache(maxsize=4096)
def topology(parents: tuple[int, ...]) -> Topology:
    """The topology with these parents.

    Raises:
        ValueError: node 0 is not the only root, or a parent does not come before its child.
    """
    if not parents or parents[0] != -1:
        raise ValueError(f"parents[0] must be -1, the root; got parents={parents}")
    depths = [0]
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < node:
            raise ValueError(
                f"parents[{node}] = {parent}: a parent must come before its child, so 0..{node - 1}"
            )
        depths.append(depths[parent] + 1)
        children[parent].append(node)
    levels: list[list[int]] = [[] for _ in range(max(depths) + 1)]
    for node, depth in enumerate(depths):
        levels[depth].append(node)
    return Topology(
        parents=parents,
        depths=tuple(depths),
        children=tuple(map(tuple, children)),
        levels=tuple(map(tuple, levels)),
        is_chain=len(levels) == len(parents),
    )


def chain(k: int) -> Topology:
    """A root and ``k`` drafted tokens in a line; ``k = 0`` is plain decoding."""
    if k < 0:
        raise ValueError(f"a chain needs k >= 0 drafted tokens, got {k}")
    return topology(tuple(range(-1, k)))


def static(branching: Sequence[int]) -> Topology:
    """A tree in which each node at depth ``d`` has ``branching[d]`` children, in level order."""
    if any(width < 1 for width in branching):
        raise ValueError(f"every branching factor must be >= 1, got {tuple(branching)}")
    parents, level = [-1], [0]
    for width in branching:
        grown = []
        for node in level:
            for _ in range(width):
                grown.append(len(parents))
                parents.append(node)
        level = grown
    return topology(tuple(parents))


def random_topology(nodes: int, seed: int) -> Topology:
    """A uniformly random recursive tree of ``nodes`` nodes, the root included; for tests."""
    rng = random.Random(seed)
    return topology((-1, *(rng.randrange(node) for node in range(1, nodes))))


@dataclass(frozen=True, slots=True)
class Dynamic:
    """A tree that grows where the drafter is surest: best first by path probability.

    A node's path probability is the product of the drafter's probabilities from the root down to
    it: how probable it is that the verifier gets there (Li et al., EAGLE-2, 2406.16858). At every
    level the ``width`` best nodes are expanded; of all that were looked at, the best ``budget``
    make the tree.

    Attributes:
        budget: most drafted nodes.
        depth: deepest node.
        width: most nodes that are expanded at a level, and most children of a node; 1 is a chain
            that ends where the drafter is unsure.
        least: path probability below which a node is not worth verifying.

    Raises:
        ValueError: a number that makes no tree.
    """

    budget: int
    depth: int
    width: int = 4
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.budget < 0 or self.depth < 0 or self.width < 1 or not 0 <= self.least <= 1:
            raise ValueError(
                f"{self}: expected budget >= 0, depth >= 0, width >= 1 and least in [0, 1]"
            )

    def __len__(self) -> int:
        """Most nodes, the root included."""
        return 1 + (self.budget if self.depth else 0)

    @property
    def is_chain(self) -> bool:
        """Whether its trees never branch."""
        return self.width == 1

    def truncate(self, depth: int) -> Dynamic:
        """The same without nodes deeper than ``depth``."""
        return self if depth >= self.depth else replace(self, depth=max(depth, 0))


Shape = Topology | Dynamic


@dataclass(frozen=True, slots=True, eq=False)
class DraftTree:
    """What a drafter proposes for one request.

    Attributes:
        topology: the shape; node 0 is the root.
        tokens: token id of each node; ``tokens[0]`` is the request's last token.
        q: float tensor ``(n, V)``, row u: the draft distribution that the children of node u were
            drawn from; rows of leaves are ignored. ``None`` where nothing was drawn (deterministic
            siblings).
        siblings: how the children of a node were chosen from its q:
            ``deterministic`` (top-k, look-up: a point-mass proposal, q is not needed),
            ``with_replacement`` (independent draws), ``without_replacement`` (each drawn from q
            renormalised over what its elder siblings left).

    Raises:
        ValueError: the parts disagree in length, or drawn siblings come without q.
    """

    topology: Topology
    tokens: tuple[int, ...]
    q: Tensor | None = field(default=None, repr=False)
    siblings: Siblings = "deterministic"

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.topology):
            raise ValueError(
                f"{len(self.tokens)} tokens for a topology of {len(self.topology)} nodes"
            )
        if self.siblings not in SIBLING_MODES:
            raise ValueError(f"siblings={self.siblings!r}; known: {', '.join(SIBLING_MODES)}")
        if self.siblings != "deterministic" and len(self) > 1:
            if self.q is None:
                raise ValueError(f"siblings drawn {self.siblings} need the q they were drawn from")
            if self.q.ndim != 2 or self.q.shape[0] != len(self):
                raise ValueError(f"q has shape {tuple(self.q.shape)}, expected ({len(self)}, V)")

    def __len__(self) -> int:
        return len(self.tokens)

    def follow(self, tokens: Iterable[int]) -> Iterator[int]:
        """The nodes that carry these tokens, from a child of the root downwards, as far as they
        go.
        """
        node = 0
        for token in tokens:
            for child in self.topology.children[node]:
                if self.tokens[child] == token:
                    node = child
                    break
            else:
                return
            yield node

    def truncate(self, depth: int) -> DraftTree:
        """The tree without the nodes deeper than ``depth``."""
        if depth >= self.topology.depth:
            return self
        kept = [node for node in range(len(self)) if self.topology.depths[node] <= depth]
        return DraftTree(
            topology=self.topology.truncate(depth),
            tokens=tuple(self.tokens[node] for node in kept),
            q=None if self.q is None else self.q[kept],
            siblings=self.siblings,
        )


def root_only(token: int) -> DraftTree:
    """The tree that drafts nothing behind ``token``."""
    return DraftTree(chain(0), (token,))
