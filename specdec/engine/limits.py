"""How much an engine takes on at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Attributes:
    max_batch: requests that run at once.
    max_step_tokens: tokens of a step: nodes of trees, and pieces of prompts.
    max_waiting: requests beyond those that run, after which no more are taken.
    """

    max_batch: int = 32
    max_step_tokens: int = 512
    max_waiting: int = 256

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_step_tokens", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
