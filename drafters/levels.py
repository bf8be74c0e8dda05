"""Static shapes, level by level, as a drafter grows them. Knows no model."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from specdec.tree import Topology


class Level(NamedTuple):
    """Candidates of one depth of a static shape: rows of their parents in the frontier, which child
    each is, and which of them have children.
    """

    slots: list[int]
    ranks: list[int]
    inner: list[int]


class Levels(NamedTuple):
    each: list[Level]
    widest: int


@lru_cache(maxsize=256)
def levels_of(shape: Topology) -> Levels:
    """A static shape by levels. Candidates are numbered level by level, as siblings come."""
    each, frontier = list[Level](), [0]
    while frontier:
        nodes = [child for node in frontier for child in shape.children[node]]
        slots = [i for i, node in enumerate(frontier) for _ in shape.children[node]]
        ranks = [rank for node in frontier for rank in range(len(shape.children[node]))]
        inner = [i for i, node in enumerate(nodes) if shape.children[node]]
        each.append(Level(slots, ranks, inner))
        frontier = [nodes[i] for i in inner]
    return Levels(each, max(map(len, shape.children)))
