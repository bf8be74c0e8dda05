"""A server in a thread of this process, as `specdec serve` would run it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple

from specdec import AsyncEngine
from specdec.demo import Demo
from specdec.engine import Limits
from specdec.serving.app import create_app
from specdec.serving.lifecycle import Server
from specdec.serving.settings import Settings

PATIENCE = 300.0  # seconds: only a hanging test waits so long


class Running(NamedTuple):
    """A server that answers."""

    url: str
    engine: AsyncEngine
    server: Server


@contextmanager
def running(
    demo: Demo,
    *,
    acceptance: Any = "lossless",
    limits: Limits | None = None,
    kv_cache_bytes: int | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """The demo's model behind HTTP; what is open at the end is cut off."""
    engine = AsyncEngine(
        demo.model,
        demo.drafter,
        tree=4,
        acceptance=acceptance,
        limits=limits,
        kv_cache_bytes=kv_cache_bytes,
    )
    app = create_app(
        engine, demo.processor, Settings(**{"model": "demo", "drafter": "text_only"} | settings)
    )
    urls = SimpleQueue[str]()
    server = Server(app, port=0, on_start=urls.put)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Running(urls.get(timeout=PATIENCE), engine, server)
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
