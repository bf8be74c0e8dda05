"""The same engine for code that runs in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from specdec.engine import Emission, Request
from specdec.serving.status import EngineStats
from specdec.serving.stream import Answer
from specdec.serving.threaded import ThreadedEngine


class AsyncStream(Answer):
    """An answer, token by token, within the event loop that asked for it.

    ``async with`` cancels it when the block is left before its end, by an exception for instance.

    Raises:
        RequestFailed: instead of the next token, if it cannot be given.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[[Request], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(request, cancel)
        self._loop = loop
        self._arrived: asyncio.Queue[list[Emission] | None] = asyncio.Queue()

    def deliver(self, emissions: list[Emission], ended: bool) -> None:
        """Called by the engine's thread after every step that had something for it."""
        try:
            self._loop.call_soon_threadsafe(self._arrive, emissions, ended)
        except RuntimeError:  # the loop is closed: nobody reads this any more
            self.cancel()

    def _arrive(self, emissions: list[Emission], ended: bool) -> None:
        if emissions:
            self._arrived.put_nowait(emissions)
        if ended:
            self._arrived.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Emission]:
        while emissions := await self.step():
            for emission in emissions:
                yield emission

    async def step(self) -> list[Emission]:
        """The tokens that arrive together next; none at the end of the answer."""
        emissions = await self._arrived.get()
        if emissions is not None:
            return emissions
        self._arrived.put_nowait(None)  # for whoever asks again
        if failed := self.failure():
            raise failed
        return []

    async def result(self) -> list[int]:
        """Wait for the end; all tokens."""
        async for _ in self:
            pass
        return self.tokens

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        if not self.ended:
            self.cancel()


class AsyncEngine:
    """A :class:`ThreadedEngine` whose methods may be awaited. Arguments are those of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.threaded = ThreadedEngine(*args, **kwargs)

    async def submit(self, **kwargs: Any) -> AsyncStream:
        """As :meth:`ThreadedEngine.submit`; the prompt is prepared in a thread of its own."""
        loop = asyncio.get_running_loop()

        def listener(request: Request, cancel: Callable[[Request], None]) -> AsyncStream:
            return AsyncStream(request, cancel, loop)

        def submit() -> AsyncStream:
            return self.threaded.open(listener, **kwargs)

        opening = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread goes on, and nobody will read what it opens.
            opening.add_done_callback(_cancel)
            raise

    @property
    def stats(self) -> EngineStats:
        """As :attr:`ThreadedEngine.stats`."""
        return self.threaded.stats

    async def drain(self, timeout: float | None = None) -> bool:
        """As :meth:`ThreadedEngine.drain`."""
        return await asyncio.to_thread(self.threaded.drain, timeout)

    async def close(self) -> None:
        """As :meth:`ThreadedEngine.close`."""
        await asyncio.to_thread(self.threaded.close)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _cancel(opening: asyncio.Future[AsyncStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().cancel()
