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
from torch import Tensor

from specdec.acceptance import Verdict
from specdec.cache import OutOfPages
from specdec.engine.controller import Adaptive, planner_for
from specdec.engine.estimates import estimates
from specdec.engine.limits import Limits
from specdec.engine.planner import outcome_of
from specdec.engine.request import Decoding, Emission, FinishReason, Request
from specdec.engine.target import Target
from specdec.engine.together import by_batch
from specdec.interfaces import Drafter, Prefilled, Prompt, Verified, Verifier, reads_of
from specdec.stats import AcceptanceStats
from specdec.tree import DraftTree, Shape, chain, root_only

DEFAULT_SHAPE = chain(4)


class Engine:
    """Runs requests through one verifier and one drafter.

    Args:
        verifier: the model that decides.
        drafter: the model that proposes; ``None`` decodes plainly.
        shape: the largest tree to propose; an :class:`Adaptive` proposes as much as pays.

    Raises:
        ValueError: the drafter does not fit the verifier, or the shape does not.
    """

    def __init__(
        self,
        verifier: Verifier,
        drafter: Drafter | None,
        shape: Shape | Adaptive = DEFAULT_SHAPE,
        limits: Limits | None = None,
    ) -> None:
        if drafter is not None:
            drafter.check(verifier.spec)
        self._reads = reads_of(drafter)
        if drafter is not None and self._reads.layers not in ((), verifier.taps):
            raise ValueError(
                f"drafter {drafter.name} reads the inputs of layers {self._reads.layers}, and "
                f"verifier {verifier.spec.name} gives those of {verifier.taps}: make it with "
                f"taps={self._reads.layers}"
            )
        self._planner = planner_for(shape, drafter, verifier)
        self.verifier = verifier
        self.drafter = drafter
        self.shape = self._planner.largest
        self.stats = AcceptanceStats()
        self._waiting: list[list[Request]] = []  # rows of one prompt each
        self._full = False  # the pages do not suffice for those who wait
        self._running: list[Request] = []
        self._kept: list[Any] = []  # handles of finished requests
        self.limits = limits or Limits()
        self._ids = count()

    def submit(
        self, prompt: Prompt, decoding: Decoding | Sequence[Decoding], priority: int = 0
    ) -> list[Request]:
        """Queue the rows of ``prompt``; they are prefilled together by a later step.

        Args:
            prompt: the rows.
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
        length = prompt.input_ids.shape[1]
        if length >= each[0].max_length:
            raise ValueError(
                f"the prompt has {length} tokens, max_length={each[0].max_length} leaves no room "
                "for an answer; raise max_length or pass max_new_tokens"
            )
        requests = [
            Request.from_row(next(self._ids), prompt, row, decoding, priority)
            for row, decoding in enumerate(each)
        ]
        if each[0].together is not None:
            each[0].together.rows = requests
        return requests

    def enqueue(self, requests: list[Request]) -> None:
        """The second half: rows of one prompt, in order."""
        self._waiting.append(requests)

    def cancel(self, request: Request, reason: FinishReason = "cancelled") -> None:
        """End a request, wherever it is, and give back what it holds."""
        if request.finished:
            return
        request.finish_reason = reason
        self._waiting = [
            rest for rows in self._waiting if (rest := [row for row in rows if row is not request])
        ]
        if request in self._running:
            self._running.remove(request)
            self._release(request)
            self._full = False

    def abort(self, error: BaseException) -> None:
        """End all requests by an error."""
        for request in [*self._running, *(row for rows in self._waiting for row in rows)]:
            request.error = error
            self.cancel(request, "error")

    @property
    def num_running(self) -> int:
        """Requests whose answers grow."""
        return len(self._running)

    @property
    def num_prefilling(self) -> int:
        """Requests whose prompts are being computed."""
        return 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Prefill what waits, or else advance every running request by one tree.

        Where the pages do not suffice, those who wait wait on, and the youngest of those who run
        give theirs up; they are computed again when there is room.

        Returns:
            The new tokens, in order within each request.

        Raises:
            OutOfPages: not even a single request fits.
        """
        if self._waiting and not self._full:
            emissions = self._admit(self._waiting.pop(0))
            if emissions is not None:
                return emissions
        began = time.perf_counter()
        with self.timed("draft"):
            trees = self._draft(self._running)
        with self.timed("verify"):
            verified = self._verify(trees)
        running = self._running
        with self.timed("accept"):
            blocks = verified.logits.split([len(tree) for tree in trees])
            _look(running, verified)
            known = estimates(running, trees, verified)
            targets = [Target(*parts) for parts in zip(running, trees, blocks, known, strict=True)]
            verdicts = _decide(targets)
            if verified.states is not None:
                _tell(targets, verdicts, verified.states)
        with self.timed("commit"):
            for target, verdict in zip(targets, verdicts, strict=True):
                self._commit(target, verdict)
            self._retire()
        outcomes = [outcome_of(target) for target in targets]
        self._planner.observe(outcomes, time.perf_counter() - began)
        return [emission for target in targets for emission in target.emissions]

    def close(self) -> None:
        """Drop every request and give back what they hold."""
        for request in self._running:
            self._release(request)
        for handle in self._kept:
            self.verifier.release(handle)
        self._kept.clear()
        self._running.clear()
        self._waiting.clear()

    def _admit(self, requests: list[Request]) -> list[Emission] | None:
        """Let these requests run, or some of them if the pages do not suffice; ``None`` if it is
        none.
        """
        began = time.perf_counter()
        try:
            emissions = self._prefill(requests)
        except OutOfPages:
            if requests[0].decoding.together is not None:
                raise  # its rows must not be parted
            half = len(requests) // 2
            self._waiting[:0] = [part for part in (requests[:half], requests[half:]) if part]
            self._full = half == 0
            if self._full and not self._running:
                raise
            return [] if half else None
        finally:
            self.stats.times.prefill += time.perf_counter() - began
        return emissions

    def _prefill(self, requests: list[Request]) -> list[Emission]:
        room = requests[0].decoding.max_length + len(self.shape)
        rows = [request.row for request in requests]
        prefilled = self.verifier.prefill(requests[0].prompt, room, rows)
        try:
            for index, request in enumerate(requests):
                self._show(request, prefilled, index)
                self._catch_up(request, prefilled.handles[index])
        except BaseException:
            for handle in prefilled.handles:
                self.verifier.release(handle)
            raise
        targets = []
        each = zip(requests, prefilled.handles, prefilled.logits, prefilled.cached, strict=True)
        for request, handle, row, cached in each:
            request.handle = handle
            self._running.append(request)
            for stats in (request.stats, self.stats):
                stats.num_prompt_tokens += request.view.prompt_length
                stats.num_cached_tokens += cached
            if not request.output:
                # A prompt of embeddings has no tokens.
                root = request.view.tokens[-1] if request.view.tokens else 0
                targets.append(Target(request, root_only(root), row[None]))
        _decide(targets)
        self._retire()
        return [emission for target in targets for emission in target.emissions]

    def _catch_up(self, request: Request, handle: Any) -> None:
        """Compute the keys of what the request had said before it was preempted, its last token
        excepted.
        """
        said = request.output[:-1]
        if said:
            states = self.verifier.append(handle, said)
            if states is not None:
                request.view.states.append(states)

    def _show(self, request: Request, prefilled: Prefilled, index: int) -> None:
        """Let the drafter see what it reads of the prompt."""
        view = request.view
        view.states = [prefilled.states[index]] if prefilled.states else []
        if prefilled.positions:
            view.positions = prefilled.positions[index]
        view.gaze = prefilled.gaze[index] if prefilled.gaze else None
        if self._reads.pages:
            view.source = self.verifier.source(prefilled.handles[index])

    def _preempt(self) -> None:
        """The youngest running request gives up its keys and waits."""
        request = self._running.pop()
        self.verifier.release(request.handle)
        request.handle = request.view.source = None
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self._waiting.insert(0, [request])
        self._full = True
        for stats in (request.stats, self.stats):
            stats.num_preemptions += 1

    def _draft(self, running: Sequence[Request]) -> list[DraftTree]:
        if self.drafter is None:
            return [root_only(request.view.tokens[-1]) for request in running]
        shapes = self._planner.shapes([request.view.id for request in running])
        for request, shape in zip(running, shapes, strict=True):
            # A tree of depth d yields up to d + 1 tokens.
            left = request.decoding.max_length - request.length - 1
            alone = request.decoding.together is None
            request.held = len(shape) == 1 < len(self.shape)
            request.view.shape = shape.truncate(left if alone else 0)
        if all(len(request.view.shape) == 1 for request in running):
            return [root_only(request.view.tokens[-1]) for request in running]
        before = self.drafter.model_seconds
        trees = self.drafter.propose([request.view for request in running])
        self.stats.times.model_forward += self.drafter.model_seconds - before
        for request, tree in zip(running, trees, strict=True):
            assert tree.tokens[0] == request.view.tokens[-1], "a tree must grow from the last token"
            assert len(tree) <= len(request.view.shape), "a tree is too large"
            assert tree.topology.depth <= request.view.shape.depth, "a tree is too deep"
        return trees

    def _verify(self, trees: list[DraftTree]) -> Verified:
        """What lies behind all nodes; requests that are preempted for it take their trees along."""
        before = self.verifier.model_seconds
        while True:
            try:
                handles = [request.handle for request in self._running]
                verified = self.verifier.verify(handles, trees)
                break
            except OutOfPages:
                if len(self._running) == 1 or self._running[-1].decoding.together is not None:
                    raise
                self._preempt()
                trees.pop()
        self.stats.times.model_forward += self.verifier.model_seconds - before
        return verified

    def _commit(self, target: Target, verdict: Verdict) -> None:
        request, tree = target.request, target.tree
        accepted = sum(emission.drafted for emission in target.emissions)
        # All tokens but the last have keys: where the answer ended within the block, no others.
        self.verifier.commit(request.handle, (0, *verdict.path)[: len(target.emissions)])
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
                self._full = False
        self._running = [request for request in self._running if not request.finished]

    def _release(self, request: Request) -> None:
        if not (request.finished and request.decoding.keep_keys):
            self.verifier.release(request.handle)
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self.stats.merge_tokens(request.stats)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what happens inside as time of this phase."""
        began = time.perf_counter()
        yield
        times = self.stats.times
        setattr(times, phase, getattr(times, phase) + time.perf_counter() - began)


def _tell(targets: Sequence[Target], verdicts: Sequence[Verdict], states: Tensor) -> None:
    """Let the drafter see the states of the tokens that were kept."""
    start = 0
    for target, verdict in zip(targets, verdicts, strict=True):
        kept = (0, *verdict.path)[: len(target.emissions)]
        if kept[-1:] == (len(kept) - 1,):  # as they come; a slice takes less time than a list
            said = states[start : start + len(kept)]
        else:
            said = states[[start + node for node in kept]]
        target.request.view.states.append(said)
        start += len(target.tree)


def _look(running: Sequence[Request], verified: Verified) -> None:
    """Let the drafter see where the verifier looks now, where that was asked for."""
    for request, gaze in zip(running, verified.gaze, strict=bool(verified.gaze)):
        if gaze is not None:
            request.view.gaze = gaze


def _decide(targets: Sequence[Target]) -> list[Verdict]:
    """Accept and hand out, each target for itself where its rules allow."""
    batches = by_batch(targets)
    scores: dict[int, Tensor] = {}
    for together, rows in batches:
        scores |= together.scores(rows)
    verdicts = [target.decide(scores.get(target.request.view.id)) for target in targets]
    for together, _ in batches:
        together.stop()
    return verdicts
