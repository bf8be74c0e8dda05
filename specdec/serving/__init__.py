"""Engines that run by themselves, for code that serves many at once, and an HTTP server."""

from specdec.serving.asynchronous import AsyncEngine, AsyncStream
from specdec.serving.threaded import (
    EngineClosed,
    EngineStats,
    QueueFull,
    RequestFailed,
    Stream,
    ThreadedEngine,
)
from specdec.verifiers.sharded import follow, spread

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "EngineClosed",
    "EngineStats",
    "QueueFull",
    "RequestFailed",
    "Stream",
    "ThreadedEngine",
    "follow",
    "spread",
]
