"""The step: schedule → draft → verify → accept → commit, for a ragged batch of requests.

There is no other decode loop: ``generate`` and everything else that produces tokens drives this
one. Knows verifiers, drafters and acceptance rules through their interfaces only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch

from specdec.cache import OutOfPages
from specdec.engine.accepting import decide, look, tell
from specdec.engine.controller import Adaptive, planner_for
from specdec.engine.drafting import Drafting
from specdec.engine.estimates import estimates
from specdec.engine.intake import Intake, Start
from specdec.engine.limits import UNLIMITED, Limits, who_gives_way
from specdec.engine.planner import outcome_of
from specdec.engine.request import Decoding, Emission, FinishReason, Request, rows_of
from specdec.engine.target import Target
from specdec.interfaces import Drafter, Piece, Prompt, Verified, Verifier, reads_of
from specdec.stats import AcceptanceStats
from specdec.tree import DraftTree, Shape, chain, root_only

DEFAULT_SHAPE = chain(4)


class Engine:
    """Runs requests through one verifier and one drafter. One thread at a time may use it.

    Args:
        verifier: the model that decides.
        drafter: the model that proposes; ``None`` decodes plainly.
        shape: the largest tree to propose; an :class:`Adaptive` proposes as much as pays.
        limits: how much may be there at once; ``None`` is no limit but that of the pages.
        isolates: what goes wrong with one request ends that one only, as an ``error`` of it, and
            what goes wrong with the drafter nobody; else it is raised by :meth:`step`.

    Raises:
        ValueError: the drafter does not fit the verifier, or the shape does not.
    """

    def __init__(
        self,
        verifier: Verifier,
        drafter: Drafter | None,
        shape: Shape | Adaptive = DEFAULT_SHAPE,
        limits: Limits | None = None,
        *,
        isolates: bool = False,
    ) -> None:
        if drafter is not None:
            drafter.check(verifier.spec)
        reads = reads_of(drafter)
        if drafter is not None and reads.layers not in ((), verifier.taps):
            raise ValueError(
                f"drafter {drafter.name} reads the inputs of layers {reads.layers}, and "
                f"verifier {verifier.spec.name} gives those of {verifier.taps}: make it with "
                f"taps={reads.layers}"
            )
        planner = planner_for(shape, drafter, verifier)
        self.verifier = verifier
        self.drafter = drafter
        self.shape = planner.largest
        self.limits = limits or UNLIMITED
        self.stats = AcceptanceStats()
        self._isolates = isolates
        self._drafting = Drafting(drafter, planner, self.stats, isolates=isolates)
        self._intake = Intake(verifier, reads, self.limits, self.stats, len(self.shape))
        self._running: list[Request] = []
        self._kept: list[Any] = []  # handles of finished requests
        self._ids = count()

    def submit(
        self, prompt: Prompt, decoding: Decoding | Sequence[Decoding], priority: int = 0
    ) -> list[Request]:
        """Queue the rows of ``prompt``.

        They are run in one go, while the others pause, unless the prompt is encoded: then piece by
        piece beside them.

        Args:
            prompt: the rows; ``verifier.encode(prompt)`` encodes it.
            decoding: how to decode them, or each of them.
            priority: see :class:`Limits`.

        Raises:
            ValueError: the prompt leaves no room for an answer.
        """
        rows = len(prompt.input_ids)
        each = [decoding] * rows if isinstance(decoding, Decoding) else decoding
        requests = self.requests(prompt, each, priority)
        self.enqueue(requests)
        return requests

    def requests(
        self, prompt: Prompt, each: Sequence[Decoding], priority: int = 0
    ) -> list[Request]:
        """The first half of :meth:`submit`, which any thread may do."""
        return rows_of(prompt, each, self._ids, priority)

    def enqueue(self, requests: list[Request]) -> None:
        """The second half: rows of one prompt, in order."""
        self._intake.waiting.add(requests)

    def cancel(
        self,
        request: Request,
        reason: FinishReason = "cancelled",
        error: BaseException | None = None,
    ) -> None:
        """End a request, wherever it is, and give back what it holds."""
        if request.finished:
            return
        request.finish_reason, request.error = reason, error
        self._intake.waiting.drop(request)
        for there in (self._running, self._intake.prefilling):
            if request in there:
                there.remove(request)
                self._release(request)
                return
        self.stats.merge_tokens(request.stats)  # it had said something, and was preempted

    def abort(self, error: BaseException) -> None:
        """End all requests by an error."""
        for request in [*self._running, *self._intake.prefilling, *self._intake.waiting]:
            self.cancel(request, "error", error)

    @property
    def num_running(self) -> int:
        """Requests whose answers grow."""
        return len(self._running)

    @property
    def num_prefilling(self) -> int:
        """Requests whose prompts are being run piece by piece."""
        return len(self._intake.prefilling)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._intake.prefilling or self._intake.waiting)

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Let in whom there is room for; then run a prompt in one go, or else advance every running
        request by one tree, and prompts that were begun by their next pieces.

        Where the pages do not suffice, those who wait wait on, and some of those who run give
        theirs up; they are computed again when there is room.

        Returns:
            The new tokens, in order within each request.

        Raises:
            OutOfPages: not even a single request fits.
        """
        starts = self._admit()
        if starts is not None:
            return _emissions(self._start(starts))
        if not (self._running or self._intake.prefilling):
            return []
        timed = self._drafting.timed(bool(self._running), bool(self._intake.prefilling))
        began = time.perf_counter()
        with self.timed("draft"):
            share = 0.75 if self._intake.prefilling else 1.0  # leave prompts a part of the step
            most = int(share * self.limits.max_step_tokens)
            load = min(len(self._running) + self._intake.coming, self.limits.max_batch)
            trees = self._drafting.trees(self._running, most, load=load, timed=timed)
        drafting = time.perf_counter() - began
        left = self.limits.max_step_tokens - sum(map(len, trees))
        pieces = [] if timed else self._intake.pieces(left)
        targets, begun = self._advance(list(zip(self._running, trees, strict=True)), pieces)
        if targets:
            seconds = time.perf_counter() - began if timed else None
            outcomes = [outcome_of(target) for target in targets]
            self._drafting.planner.observe(outcomes, seconds, drafting)
        return _emissions([*targets, *self._start(begun)])

    def close(self) -> None:
        """Drop every request and give back what they hold."""
        for request in [*self._running, *self._intake.prefilling]:
            self._release(request)
        for handle in self._kept:
            self.verifier.release(handle)
        self._kept.clear()
        self._running.clear()
        self._intake.prefilling.clear()
        self._intake.waiting.clear()

    def _admit(self) -> list[Start] | None:
        try:
            return self._intake.admit(self._running)
        except Exception as error:
            if not (self._isolates and self._intake.entering):
                raise
            for request in self._intake.entering:
                self.cancel(request, "error", error)
            return []

    def _start(self, starts: Sequence[Start]) -> list[Target]:
        """Let these run, and those of them that have not said anything say their first token."""
        targets = []
        for request, logits in starts:
            self._running.append(request)
            if not request.output:
                # A prompt of embeddings has no tokens.
                root = request.view.tokens[-1] if request.view.tokens else 0
                targets.append(Target(request, root_only(root), logits[None]))
        if targets:
            logits = torch.cat([target.logits for target in targets])
            decide(targets, logits, isolates=self._isolates)
        self._retire()
        return targets

    def _advance(
        self, drafted: list[tuple[Request, DraftTree]], pieces: list[tuple[Request, Piece]]
    ) -> tuple[list[Target], list[Start]]:
        """Verify, accept and commit these trees, and run these pieces; in one forward, or, if that
        fails, each for itself, to see who is to blame.
        """
        try:
            with self.timed("verify"):
                verified = self._verify(drafted, pieces)
        except Exception as error:
            if not self._isolates:
                raise
            return self._apart(drafted, pieces, error)
        with self.timed("accept"):
            running, trees = [each for each, _ in drafted], [tree for _, tree in drafted]
            blocks = verified.logits.split([len(tree) for tree in trees])
            look(running, verified)
            known = estimates(running, trees, verified)
            targets = [Target(*parts) for parts in zip(running, trees, blocks, known, strict=True)]
            decide(targets, verified.logits, isolates=self._isolates)
            if verified.states is not None:
                tell(targets, verified.states)
        with self.timed("commit"):
            for target in targets:
                self._commit(target)
            self._retire()
        ends = zip(pieces, verified.begun, strict=True)
        return targets, [
            self._intake.begun(request, prefilled)
            for (request, _), prefilled in ends
            if prefilled is not None
        ]

    def _apart(
        self,
        drafted: list[tuple[Request, DraftTree]],
        pieces: list[tuple[Request, Piece]],
        error: Exception,
    ) -> tuple[list[Target], list[Start]]:
        """Each of these for itself; one that is alone ends by this error."""
        if len(drafted) + len(pieces) == 1:
            for request, _ in [*drafted, *pieces]:
                self.cancel(request, "error", error)
            return [], []
        targets, starts = list[Target](), list[Start]()
        for one in drafted:
            if one[0] in self._running:  # and was not preempted for another
                targets += self._advance([one], [])[0]
        for part in pieces:
            if part[0] in self._intake.prefilling:
                starts += self._advance([], [part])[1]
        return targets, starts

    def _verify(
        self, drafted: list[tuple[Request, DraftTree]], pieces: list[tuple[Request, Piece]]
    ) -> Verified:
        """What lies behind all nodes; requests that are preempted for it are taken out."""
        before = self.verifier.model_seconds
        while True:
            handles = [request.handle for request, _ in drafted]
            trees = [tree for _, tree in drafted]
            try:
                verified = self.verifier.verify(handles, trees, [piece for _, piece in pieces])
                break
            except OutOfPages:
                victim = who_gives_way([*self._running, *self._intake.prefilling])
                if victim is None:
                    raise
                self._preempt(victim)
                drafted[:] = [each for each in drafted if each[0] is not victim]
                pieces[:] = [each for each in pieces if each[0] is not victim]
        self.stats.times.model_forward += self.verifier.model_seconds - before
        return verified

    def _preempt(self, request: Request) -> None:
        """It gives up its keys and waits."""
        for there in (self._running, self._intake.prefilling):
            if request in there:
                there.remove(request)
        self.verifier.release(request.handle)
        request.handle = request.view.source = None
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self._intake.waiting.add([request])
        self._intake.full = True
        for stats in (request.stats, self.stats):
            stats.num_preemptions += 1

    def _commit(self, target: Target) -> None:
        request, tree = target.request, target.tree
        if target.verdict is None:  # it failed, and is let go of
            return
        accepted = sum(emission.drafted for emission in target.emissions)
        self.verifier.commit(request.handle, target.kept)
        for stats in (request.stats, self.stats):
            stats.record_step(len(tree) - 1, accepted, tree.topology.depth)
            stats.num_plain_steps += request.held

    def _retire(self) -> None:
        """Let go of the requests that are finished."""
        for request in self._running:
            if request.finished:
                if request.decoding.keep_keys:
                    self._kept.append(request.handle)
                self._release(request)
        self._running = [request for request in self._running if not request.finished]

    def _release(self, request: Request) -> None:
        if not (request.finished and request.decoding.keep_keys):
            self.verifier.release(request.handle)
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self._intake.full = False
        self.stats.merge_tokens(request.stats)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside as time of this phase."""
        began = time.perf_counter()
        yield
        times = self.stats.times
        setattr(times, phase, getattr(times, phase) + time.perf_counter() - began)


def _emissions(targets: Sequence[Target]) -> list[Emission]:
    return [emission for target in targets for emission in target.emissions]
