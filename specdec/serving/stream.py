"""The answer to one request while it arrives, and why there may be none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

from specdec.engine import Emission, FinishReason, Request
from specdec.stats import AcceptanceStats


class QueueFull(RuntimeError):
    """As many requests wait as may.

    Attributes:
        retry_after: seconds after which there may be room.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} requests are waiting, and no more may; try again in {retry_after:.0f} s"
        )
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes no requests any more."""


class RequestFailed(RuntimeError):
    """An answer cannot be given; ``__cause__`` is what went wrong. No other is concerned."""


class Listener(Protocol):
    """Whoever reads an answer."""

    ended: bool
    let_in: float | None

    def deliver(self, emissions: list[Emission], ended: bool) -> None:
        """Take in new tokens, and whether these were the last."""


class Answer:
    """What an engine that runs by itself knows of one request; read by any thread.

    Args:
        request: the engine's. Its tokens, statistics and ledger grow while it runs.
        cancel: ends it.

    Attributes:
        ended: nothing more is to come. Set by the engine's thread, after the last token.
        let_in: when it was, by `time.monotonic`; ``None`` while it waits, or if it hardly ran.
    """

    def __init__(self, request: Request, cancel: Callable[[Request], None]) -> None:
        self.request = request
        self.ended = False
        self.let_in: float | None = None
        self._cancel = cancel

    @property
    def id(self) -> int:
        """Unique within its engine; the ``request_id`` of its emissions."""
        return self.request.view.id

    @property
    def tokens(self) -> list[int]:
        """The answer so far."""
        return self.request.output

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; ``None`` while it goes on."""
        return self.request.finish_reason

    @property
    def stats(self) -> AcceptanceStats:
        """What speculation achieved for it so far."""
        return self.request.stats

    def cancel(self) -> None:
        """End it, wherever it is, and give back what it holds. Harmless if it has ended."""
        self._cancel(self.request)

    def failure(self) -> RequestFailed | None:
        """The exception that its reader is to get, if it failed."""
        error = self.request.error
        if error is None:
            return None
        failed = RequestFailed(f"request {self.id} failed: {error}")
        failed.__cause__ = error
        return failed


class Stream(Answer):
    """An answer, token by token: iterating waits for the next.

    Raises:
        RequestFailed: instead of the next token, if it cannot be given.
    """

    def __init__(self, request: Request, cancel: Callable[[Request], None]) -> None:
        super().__init__(request, cancel)
        self._arrived: SimpleQueue[list[Emission] | None] = SimpleQueue()

    def deliver(self, emissions: list[Emission], ended: bool) -> None:
        """Called by the engine's thread after every step that had something for it."""
        if emissions:
            self._arrived.put(emissions)
        if ended:
            self._arrived.put(None)

    def __iter__(self) -> Iterator[Emission]:
        while (emissions := self._arrived.get()) is not None:
            yield from emissions
        self._arrived.put(None)  # for whoever iterates again
        if failed := self.failure():
            raise failed

    def result(self) -> list[int]:
        """Wait for the end; all tokens."""
        for _ in self:
            pass
        return self.tokens
