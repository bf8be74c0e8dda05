"""An engine that runs by itself: one thread owns the models, all others ask and listen."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from specdec.calls import check_gives, fresh_generator, one_request, rule_of, verifier_for
from specdec.choice import DrafterLike, TreeLike, resolve_drafter, resolve_tree
from specdec.engine import Emission, Engine, Limits, Request
from specdec.engine.faults import described
from specdec.policies import Acceptance, load_policy
from specdec.serving.checks import check_memory, check_options
from specdec.serving.status import EngineStats
from specdec.serving.stream import EngineClosed, Listener, QueueFull, Stream
from specdec.stats import AcceptanceStats
from specdec.verifiers.sharded import Leader

_LOG = logging.getLogger("specdec")
_SNAPSHOT = 0.05  # seconds: how old the statistics may be while steps go on


_Stream = TypeVar("_Stream", bound=Listener)


class ThreadedEngine:
    """Runs an :class:`Engine` in a thread of its own; everything here may be called from any.

    Args:
        model: as for :func:`specdec.generate`.
        drafter: likewise.
        tree: likewise; by default as much is drafted as pays under the load that there is.
        acceptance: of requests that do not say. A policy file is read here, and not again.
        kv_cache_bytes: what the verifier's keys and values may take.
        limits: how much may run and wait at once.

    Raises:
        ValueError: what :func:`specdec.generate` would refuse whatever the call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: DrafterLike = None,
        *,
        tree: TreeLike = "auto",
        acceptance: Acceptance = "lossless",
        kv_cache_bytes: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.model = model
        # Read once: a file that changes later is not what the operator has looked at.
        if acceptance != "lossless" and isinstance(acceptance, (str, PathLike)):
            acceptance = load_policy(acceptance, model)
        self.acceptance = acceptance
        self.limits = limits or Limits()
        drafts = resolve_drafter(drafter, model)
        rule = rule_of(model, acceptance, {})
        self.verifier = verifier_for(model, drafts, rule, kv_cache_bytes, leads=True)
        self.verifier.measure()
        check_memory(self.verifier, kv_cache_bytes)
        self._engine = Engine(self.verifier, drafts, resolve_tree(tree), self.limits, isolates=True)
        self._preparing = threading.Lock()
        self._wake = threading.Condition()  # guards what follows
        self._inbox: deque[Callable[[], None]] = deque()
        self._open: dict[int, _Open] = {}
        self._draining = self._closing = False
        self._error: BaseException | None = None
        self._stats, self._told = EngineStats(), 0.0
        self._ended = Counter[str]()
        self._seconds = 1.0  # that a request takes, lately
        self._prompts: SimpleQueue[Request | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=run, name=f"specdec-{name}", daemon=True)
            for name, run in (("engine", self._run), ("encoder", self._encode))
        ]
        for thread in self._threads:
            thread.start()
        # A thread inside of torch when the process ends would abort it.
        atexit.register(self.close)

    def submit(self, **kwargs: Any) -> Stream:
        """Ask for an answer.

        Takes the arguments of ``model.generate``, of one prompt, and

        - ``acceptance``: as for :func:`specdec.generate`; by default the engine's own;
        - ``generator``: source of randomness when sampling, this request's own;
        - ``priority``: requests with a higher one are let in first, though nobody waits for ever:
          see :class:`Limits`;
        - ``timeout``: seconds after which it ends, however far it is;
        - ``drafts``: whether anything may be drafted for it;
        - ``top_logprobs``: give every token's :class:`Logprobs`, with so many alternatives.

        Raises:
            ValueError: what :func:`specdec.generate` would refuse, or several prompts at once.
            QueueFull: too many wait.
            EngineClosed: it takes none any more.
        """
        return self.open(Stream, **kwargs)

    def open(
        self,
        listener: Callable[[Request, Callable[[Request], None]], _Stream],
        *,
        acceptance: Acceptance | None = None,
        generator: torch.Generator | None = None,
        priority: int = 0,
        timeout: float | None = None,
        drafts: bool = True,
        top_logprobs: int | None = None,
        **kwargs: Any,
    ) -> _Stream:
        """As :meth:`submit`, for a reader of another kind: ``listener(request, cancel)``."""
        self.check_open()
        check_options(timeout, top_logprobs, self.verifier.spec.vocab_size)
        rule = rule_of(self.model, self.acceptance if acceptance is None else acceptance, kwargs)
        check_gives(self.verifier, rule)
        with self._preparing:
            prompt, decoding = one_request(
                self.model,
                kwargs,
                generator or fresh_generator(),
                rule,
                drafts=drafts,
                top_logprobs=top_logprobs,
            )
        (request,) = self._engine.requests(prompt, [decoding], priority)
        stream = listener(request, self._cancel)
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._wake:
            self.check_open()
            self._open[request.view.id] = _Open(request, stream, deadline)
        self._prompts.put(request)
        return stream

    @property
    def stats(self) -> EngineStats:
        """How it is doing, as of some milliseconds ago."""
        return self._stats

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait until those that there are have ended.

        Returns:
            Whether they have; not, if ``timeout`` seconds were too few.
        """
        with self._wake:
            self._draining = True
            # The figures themselves are the engine's thread's, which may be changing them.
            self._stats = replace(self._stats, draining=True)
            return self._wake.wait_for(lambda: not self._open, timeout)

    def close(self) -> None:
        """End what runs, and the threads. Harmless if that was done before. Python does it when it
        ends.
        """
        with self._wake:
            self._draining = self._closing = True
            self._wake.notify_all()
        self._prompts.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> ThreadedEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def check_open(self, others: int = 0) -> None:
        """Whether a request would be taken now; costs nothing.

        Args:
            others: requests that come before it and are not here yet.

        Raises:
            QueueFull: too many wait.
            EngineClosed: none are taken any more.
        """
        if self._error is not None:
            raise EngineClosed("this engine's thread has ended by an error") from self._error
        if self._draining:
            raise EngineClosed("this engine takes no requests any more: it was drained or closed")
        there_are = len(self._open) + others
        waiting = there_are - self.limits.max_batch
        if waiting >= self.limits.max_waiting:
            turns = there_are / self.limits.max_batch
            raise QueueFull(waiting, min(max(1.0, turns * self._seconds), 60.0))

    def _cancel(self, request: Request) -> None:
        self._ask(lambda: self._engine.cancel(request))

    def _ask(self, do: Callable[[], None]) -> None:
        """Have the engine's thread do this before its next step."""
        with self._wake:
            self._inbox.append(do)
            self._wake.notify_all()

    def _encode(self) -> None:
        """The thread that looks at images, while the engine's goes on with those who are there."""
        while (request := self._prompts.get()) is not None:
            if request.finished:
                continue
            try:
                request.prompt = self.verifier.encode(request.prompt)
            except Exception as error:
                self._ask(partial(self._engine.cancel, request, "error", error))
            else:
                self._ask(partial(self._engine.enqueue, [request]))

    def _run(self) -> None:
        """The engine's thread."""
        closed = EngineClosed("the engine was closed")
        try:
            while self._await_work():
                began = time.monotonic()
                emissions = self._step()
                if isinstance(self.verifier, Leader) and self.verifier.error is not None:
                    self._draining = self._closing = True
                    self._error = closed.__cause__ = self.verifier.error
                self._hand_out(emissions, began)
        except BaseException as error:  # a bug in here: nobody can be served any more
            _LOG.error("the engine's thread has ended by %s", described(error))
            self._error = closed.__cause__ = error
            self._draining = self._closing = True
        with self._wake:  # so that whoever was let in before is there by now
            there_are = list(self._open.values())
        for there in there_are:  # images that are still looked at, too
            self._engine.cancel(there.request, "error", closed)
        self._hand_out([])
        if isinstance(self.verifier, Leader):
            self.verifier.close()

    def _step(self) -> list[Emission]:
        try:
            return self._engine.step() if self._engine.has_work else []
        except Exception as error:  # a bug of ours: who was there fails, who comes is served
            _LOG.error("a step failed, and all requests with it: %s", described(error))
            self._engine.abort(error)
            return []

    def _await_work(self) -> bool:
        """Do what was asked for; whether to go on."""
        with self._wake:
            while not (self._inbox or self._engine.has_work or self._closing):
                self._tell(force=True)
                self._wake.wait()
            if self._closing:
                return False
            asked = list(self._inbox)
            self._inbox.clear()
        for do in asked:
            do()
        now = time.monotonic()
        for each in list(self._open.values()):
            if each.deadline is not None and now > each.deadline:
                self._engine.cancel(each.request, "timeout")
        return True

    def _hand_out(self, emissions: list[Emission], began: float = 0.0) -> None:
        """Give everybody what is theirs, and see who was let in and who has ended.

        Args:
            emissions: of a step.
            began: when it did.
        """
        each: dict[int, list[Emission]] = {}
        for emission in emissions:
            each.setdefault(emission.request_id, []).append(emission)
        # A copy: other threads add to it.
        there_are = list(self._open.items())
        for _, there in there_are:
            if there.listener.let_in is None and there.request.handle is not None:
                there.listener.let_in = began
        ended = [i for i, there in there_are if there.request.finished]
        for index, new in each.items():
            if index in self._open and index not in ended:
                self._open[index].listener.deliver(new, False)
        with self._wake:
            gone = [(i, self._open.pop(i)) for i in ended]
            for _, there in gone:
                self._count(there)
            self._tell(force=bool(gone) or self._closing)
            self._wake.notify_all()
        for index, there in gone:
            there.listener.ended = True
            there.listener.deliver(each.get(index, []), True)

    def _count(self, there: _Open) -> None:
        kind = {"error": "failed", "cancelled": "cancelled", "timeout": "cancelled"}.get(
            there.request.finish_reason or "", "finished"
        )
        self._ended[kind] += 1
        self._seconds += 0.1 * (time.monotonic() - there.since - self._seconds)

    def _tell(self, *, force: bool = False) -> None:
        """Renew the statistics, unless they are fresh."""
        now = time.monotonic()
        if force or now - self._told > _SNAPSHOT:
            self._told = now
            engine, verifier, acceptance = self._engine, self.verifier, AcceptanceStats()
            acceptance.merge(engine.stats)
            running, prefilling = engine.num_running, engine.num_prefilling
            self._stats = EngineStats(
                running=running,
                prefilling=prefilling,
                waiting=len(self._open) - running - prefilling,
                finished=self._ended["finished"],
                cancelled=self._ended["cancelled"],
                failed=self._ended["failed"],
                pages_taken=verifier.pages_taken,
                pages_limit=verifier.pages_limit,
                kv_bytes=verifier.bytes_taken,
                acceptance=acceptance,
                draining=self._draining,
                error=self._error,
            )


@dataclass(slots=True, eq=False)
class _Open:
    """A request that has not ended."""

    request: Request
    listener: Listener
    deadline: float | None
    since: float = field(default_factory=time.monotonic)
