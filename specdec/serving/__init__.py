"""Engines that run by themselves, for code that serves many at once, and an HTTP server."""

from specdec.serving.asynchronous import AsyncEngine, AsyncStream
from specdec.serving.status import EngineStats
from specdec.serving.stream import EngineClosed, QueueFull, RequestFailed, Stream
from specdec.serving.threaded import ThreadedEngine

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "EngineClosed",
    "EngineStats",
    "QueueFull",
    "RequestFailed",
    "Stream",
    "ThreadedEngine",
]
