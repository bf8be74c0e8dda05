"""How an engine that runs by itself is doing."""

from __future__ import annotations

from dataclasses import dataclass, field

from specdec.stats import AcceptanceStats


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How an engine that runs by itself is doing.

    Attributes:
        running: requests whose answers grow.
        prefilling: requests whose prompts are being computed.
        waiting: requests before that.
        finished: requests that ended by themselves, so far.
        cancelled: requests that were ended from outside or ran out of time, so far.
        failed: requests that ended by an error, so far.
        pages_taken: pages of keys that some request holds.
        pages_limit: pages that there may be; ``None`` while that is not known.
        kv_bytes: what keys and values take.
        acceptance: what speculation achieved so far, preemptions and cached tokens included.
        draining: no requests are taken any more.
        error: what ended the engine's thread, if something did; then it is of no use any more.
    """

    running: int = 0
    prefilling: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    pages_taken: int = 0
    pages_limit: int | None = None
    kv_bytes: int = 0
    acceptance: AcceptanceStats = field(default_factory=AcceptanceStats)
    draining: bool = False
    error: BaseException | None = None
