"""From waiting to running: prompts that are run whole, or piece by piece beside others' trees.

Knows verifiers and drafters through their interfaces only, and nothing of acceptance.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from specdec.cache import OutOfPages
from specdec.engine.limits import Limits, Waiting
from specdec.engine.request import Request
from specdec.interfaces import Piece, Prefilled, Reads, Verifier
from specdec.stats import AcceptanceStats


class Start(NamedTuple):
    """A request whose prompt has been run, and the logits ``(V,)`` behind it."""

    request: Request
    logits: Tensor


class Intake:
    """Who waits, and who is being let in.

    Args:
        verifier: runs the prompts.
        reads: what the drafter reads of them.
        limits: how many may be there at once.
        stats: of the engine.
        room: tokens beyond the longest answer that a request may have for a while.

    Attributes:
        waiting: those who wait.
        prefilling: those whose prompts are being run piece by piece.
        full: the pages do not suffice for those who wait, until somebody gives some back.
        entering: those who are being let in, or were last.
    """

    def __init__(
        self, verifier: Verifier, reads: Reads, limits: Limits, stats: AcceptanceStats, room: int
    ) -> None:
        self.waiting = Waiting(limits.turn)
        self.prefilling: list[Request] = []
        self.full = False
        self.entering: list[Request] = []
        self._verifier = verifier
        self._reads = reads
        self._limits = limits
        self._stats = stats
        self._room = room

    def admit(self, running: Sequence[Request]) -> list[Start] | None:
        """Let in as many as there is room for: prompts that can be run in pieces are begun, and the
        first that cannot be is run.

        Returns:
            Those whose prompts have been run; ``None`` if none had to be run whole.

        Raises:
            OutOfPages: not even a single request fits.
        """
        self.entering = []
        while not self.full and (rows := self.waiting.first()):
            there = len(running) + len(self.prefilling)
            if there and there + len(rows) > self._limits.max_batch:
                return None
            self.entering = rows
            if rows[0].prompt.encoded is None:
                self.waiting.take(rows)
                return self._whole(rows, alone=not there)
            if not self._begin(rows[0], there):
                return None
            self.waiting.take(rows)
        return None

    @property
    def coming(self) -> int:
        """Requests that would run if their prompts had been."""
        return len(self.prefilling) + (0 if self.full else len(list(self.waiting)))

    def pieces(self, most: int) -> list[tuple[Request, Piece]]:
        """What to run next of prompts that were begun, ``most`` tokens in all."""
        pieces = []
        for request in self.prefilling:
            if most <= 0:
                break
            count = min(most, self._verifier.lacks(request.handle).tokens)
            pieces.append((request, Piece(request.handle, count)))
            most -= count
        return pieces

    def begun(self, request: Request, prefilled: Prefilled) -> Start:
        """The last piece of its prompt has been run."""
        self.prefilling.remove(request)
        self._count(request, prefilled.cached[0])
        self._show(request, prefilled, 0)
        return Start(request, prefilled.logits[0])

    def _begin(self, request: Request, there: int) -> bool:
        """Begin to run its prompt in pieces, if its time has come."""
        beside = [other.handle for other in self.prefilling]
        said = request.output[:-1]
        handle = self._verifier.begin(request.prompt, said, self._expected(request), beside)
        if handle is None:
            return False
        left = self._verifier.pages_left
        if left is not None and there:
            # Those who are there will want more: those who run a page each, for a start.
            begun = sum(self._verifier.lacks(other).pages for other in beside)
            if self._verifier.lacks(handle).pages + begun + there > left:
                self._verifier.release(handle)
                return False
        request.handle = handle
        self.prefilling.append(request)
        return True

    def _whole(self, rows: list[Request], *, alone: bool) -> list[Start] | None:
        """Run the prompts of these rows, or of some of them if the pages do not suffice; ``None``
        if it is none.
        """
        began = time.perf_counter()
        try:
            return self._prefill(rows)
        except OutOfPages:
            if rows[0].decoding.together is not None:
                raise  # its rows must not be parted
            half = len(rows) // 2
            self.waiting.put_back(rows[:half], rows[half:])
            if half:
                return []
            if alone:
                raise
            self.full = True
            return None
        finally:
            self._stats.times.prefill += time.perf_counter() - began

    def _prefill(self, rows: list[Request]) -> list[Start]:
        room = self._expected(rows[0])
        prefilled = self._verifier.prefill(rows[0].prompt, room, [request.row for request in rows])
        try:
            for index, request in enumerate(rows):
                self._show(request, prefilled, index)
                self._catch_up(request, prefilled.handles[index])
        except BaseException:
            for handle in prefilled.handles:
                self._verifier.release(handle)
            raise
        for request, handle, cached in zip(rows, prefilled.handles, prefilled.cached, strict=True):
            request.handle = handle
            self._count(request, cached)
        return [Start(*each) for each in zip(rows, prefilled.logits, strict=True)]

    def _catch_up(self, request: Request, handle: Any) -> None:
        """Compute the keys of what the request had said before it was preempted, its last token
        excepted.
        """
        said = request.output[:-1]
        if said:
            states = self._verifier.append(handle, said)
            if states is not None:
                request.view.states.append(states)

    def _show(self, request: Request, prefilled: Prefilled, index: int) -> None:
        """Let the drafter see what it reads of the prompt."""
        view = request.view
        view.states = [prefilled.states[index]] if prefilled.states and request.drafts else []
        if prefilled.positions:
            view.positions = prefilled.positions[index]
        view.gaze = prefilled.gaze[index] if prefilled.gaze else None
        if self._reads.pages:
            view.source = self._verifier.source(prefilled.handles[index])

    def _expected(self, request: Request) -> int:
        return request.decoding.max_length + self._room

    def _count(self, request: Request, cached: int) -> None:
        """Count its prompt, the first time that it is run."""
        if request.stats.num_prompt_tokens:
            return
        for stats in (request.stats, self._stats):
            stats.num_prompt_tokens += request.view.prompt_length
            stats.num_cached_tokens += cached
