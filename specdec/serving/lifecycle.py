"""Running an application until it is told to stop, and letting running answers end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from specdec.serving.service import Service


class Server(uvicorn.Server):
    """A server that ends in peace: the first signal stops new requests, and it exits when running
    answers have ended. After `drain_seconds`, or at a second signal, they are cut off.

    Args:
        app: of :func:`specdec.serving.app.create_app`.
        host: address to listen on.
        port: likewise; 0 takes a free one.
        on_start: called with the address once requests are taken.
    """

    def __init__(
        self,
        app: FastAPI,
        host: str = "127.0.0.1",
        port: int = 8000,
        on_start: Callable[[str], None] | None = None,
    ) -> None:
        self._on_start = on_start
        self._service: Service = app.state.service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: list[asyncio.Task[None]] = []
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                access_log=False,
                log_level="warning",
                http="h11",  # which reads 64 KiB of headers and no more
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_start is not None:
            self._on_start(self.address)

    @property
    def address(self) -> str:
        """Where it listens, once it has started."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. uvicorn's own would end the process by it; this one ends it in order."""
        if self._loop is None:
            super().handle_exit(sig, frame)
        else:
            self.stop()

    def stop(self) -> None:
        """Drain and end; if it was draining, cut off what runs. May be called from any thread."""
        assert self._loop is not None, "it has not started"
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        ending = self._end() if self._ending else self._drain()
        self._ending.append(asyncio.ensure_future(ending))

    async def _drain(self) -> None:
        engine = self._service.engine
        try:
            if not await engine.drain(self._service.settings.drain_seconds):
                await engine.close()
        finally:  # whatever went wrong, who was told to stop does
            self.should_exit = True

    async def _end(self) -> None:
        try:
            await self._service.engine.close()
        finally:
            self.should_exit = True
