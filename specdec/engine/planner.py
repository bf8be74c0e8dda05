"""What the engine asks before a step, and tells after it: how much is each request to draft?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from specdec.tree import Dynamic, Shape

if TYPE_CHECKING:
    from specdec.engine.target import Target


class Outcome(NamedTuple):
    """What became of a request's tree.

    Attributes:
        id: of the request.
        asked: depth of the shape that the drafter was given.
        nodes: drafted nodes of its tree.
        levels: depth of its tree.
        accepted: draft tokens that were handed out.
        tokens: all that were handed out.
        ended: the answer is complete; what lay behind its end was not judged.
        ran: nodes that the drafter ran for it, at most.
    """

    id: int
    asked: int
    nodes: int
    levels: int
    accepted: int
    tokens: int
    ended: bool
    ran: int = 0


def outcome_of(target: Target) -> Outcome:
    """What became of this one."""
    return Outcome(
        id=target.request.view.id,
        asked=target.request.view.shape.depth,
        nodes=len(target.tree) - 1,
        levels=target.tree.topology.depth,
        accepted=sum(emission.drafted for emission in target.emissions),
        tokens=len(target.emissions),
        ended=target.request.finished,
        ran=ran_for(target.request.view.shape, target.tree.topology.depth),
    )


def ran_for(shape: Shape, levels: int) -> int:
    """How many nodes a drafter runs for a tree of this shape that turns out so deep, at most: those
    that it looks behind, but the root.
    """
    if isinstance(shape, Dynamic):
        return shape.width * max(0, levels - 1)
    return sum(1 for level in shape.levels[1:levels] for node in level if shape.children[node])


class Planner(Protocol):
    """Says what each request is to draft."""

    @property
    def largest(self) -> Shape:
        """No shape is larger."""

    @property
    def learns(self) -> bool:
        """Whether it wants to know how long steps take."""

    def shapes(self, ids: Sequence[int], *, load: int = 0, timed: bool = True) -> list[Shape]:
        """The shapes for the requests of the next step.

        Args:
            ids: of the requests.
            load: how many would run if those whose prompts have not been run yet did, too.
            timed: the step's seconds will be told.
        """

    def observe(self, outcomes: Sequence[Outcome], seconds: float | None, drafting: float) -> None:
        """What became of that step.

        Args:
            outcomes: of all requests.
            seconds: that it took; ``None`` if more was done in it.
            drafting: seconds of these until the trees were there.
        """


class Fixed:
    """Always the same shape."""

    def __init__(self, shape: Shape) -> None:
        self.largest = shape

    learns = False

    def shapes(self, ids: Sequence[int], *, load: int = 0, timed: bool = True) -> list[Shape]:
        """The shape, for every request."""
        return [self.largest] * len(ids)

    def observe(self, outcomes: Sequence[Outcome], seconds: float | None, drafting: float) -> None:
        """Nothing follows from it."""


def within(shape: Shape, nodes: int) -> Shape:
    """The shape, or as much of it as has no more than so many drafted nodes."""
    if len(shape) - 1 <= nodes:
        return shape
    if isinstance(shape, Dynamic) and nodes:
        return replace(shape, budget=nodes)
    depth = shape.depth - 1
    while len(cut := shape.truncate(depth)) - 1 > nodes:
        depth -= 1
    return cut
