"""How much an engine takes on at once, and in which order. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from specdec.engine.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine takes on at once.

    Nobody waits for ever: the longest waiting of all is let in every ``turn``-th time whatever its
    priority, nobody overtakes one whose turn it is and for whom there is no room yet, and the
    oldest of those who run is never preempted. So a request before which n others came is let in
    after at most ``turn`` · (n + 1) admissions.

    Attributes:
        max_batch: requests that run at once. Rows of one prompt that cannot be run in pieces are
            let in together, however many.
        max_step_tokens: tokens of a step: nodes of trees, and pieces of prompts.
        max_waiting: requests beyond those that run, after which no more are taken. Each holds its
            prompt on the model's device, images' pixels and features included, which no budget
            counts.
        turn: of so many that are let in, one is the longest waiting.
    """

    max_batch: int = 32
    max_step_tokens: int = 512
    max_waiting: int = 256
    turn: int = 4

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ValueError(f"{each.name} must be at least 1, got {getattr(self, each.name)}")


UNLIMITED = Limits(1 << 30, 1 << 30, 1 << 30)


class Waiting:
    """Those who wait: rows of one prompt each, by the first one's priority and age.

    Args:
        turn: as in :class:`Limits`.
    """

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._let_in = 0
        self._groups: list[list[Request]] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    def __iter__(self) -> Iterator[Request]:
        return (row for rows in self._groups for row in rows)

    def add(self, rows: list[Request]) -> None:
        """Rows of one prompt; those that have ended meanwhile are left out."""
        if rows := [row for row in rows if not row.finished]:
            self._groups.append(rows)

    def first(self) -> list[Request] | None:
        """Whose turn it is; ``None`` if nobody waits."""
        if self._let_in % self._turn == self._turn - 1:
            return min(self._groups, key=_age, default=None)
        return min(self._groups, key=lambda rows: (-rows[0].priority, _age(rows)), default=None)

    def take(self, rows: list[Request]) -> None:
        """They are let in."""
        self._groups.remove(rows)
        self._let_in += 1

    def put_back(self, *parts: list[Request]) -> None:
        """There was no room for those who were taken last: it is their turn as before."""
        self._let_in -= 1
        for rows in parts:
            self.add(rows)

    def drop(self, request: Request) -> None:
        """It does not wait any more."""
        self._groups = [
            rest for rows in self._groups if (rest := [row for row in rows if row is not request])
        ]

    def clear(self) -> None:
        """Nobody waits any more."""
        self._groups.clear()


def who_gives_way(there: Sequence[Request]) -> Request | None:
    """Whose keys are given up when pages run out: the least urgent and youngest's, but never the
    oldest's; ``None`` if nobody may be parted from the others.
    """
    oldest = min(there, key=lambda request: request.view.id)
    others = [r for r in there if r is not oldest and r.decoding.together is None]
    return max(others, key=lambda r: (-r.priority, r.view.id), default=None)


def _age(rows: list[Request]) -> int:
    """Less for those that came earlier: ids only grow."""
    return rows[0].view.id
