"""What clients of a server ask for under load, drawn from seeds, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["whole", "hung up", "refused", "failed"]

MAX_TOKENS = (8, 16, 32, 64, 128)
PRIORITIES = (0, -5)
_STREAMED, _PAIRS, _SAMPLED, _LATER = 0.7, 0.2, 0.1, 0.2  # shares of the requests
_BY_PIECES = 0.6  # of those that hang up on a stream
_TYPICAL = 2.0  # seconds: within these the others hang up


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        prompt: its number.
        most: tokens of the answer.
        samples: how many answers.
        stream: piece by piece.
        sampled: not greedy.
        priority: of the request.
        pieces: of a stream, after which the client hangs up.
        seconds: after which it does, whatever has arrived; both ``None``: it does not.
    """

    prompt: int
    most: int
    samples: int = 1
    stream: bool = True
    sampled: bool = False
    priority: int = 0
    pieces: int | None = None
    seconds: float | None = None

    def body(self, model: str, messages: Sequence[Any]) -> dict[str, Any]:
        """The request in OpenAI's form. Any: JSON values."""
        how: dict[str, Any] = {"temperature": 0}
        if self.sampled:
            how = {"temperature": 0.9, "top_p": 0.95, "seed": self.prompt}
        if self.stream:
            how |= {"stream": True, "stream_options": {"include_usage": True}}
        size = {"max_tokens": self.most, "n": self.samples, "priority": self.priority}
        return {"model": model, "messages": list(messages), **size, **how}


@dataclass(slots=True)
class Outcome:
    """What came of an order.

    Attributes:
        asked: when it was sent first, by ``time.perf_counter``.
        refused: seconds from then to when it was sent for the last time: what refusals took.
        end: how it ended.
        status: of HTTP, at last; 0: there was no response.
        refusals: times that the server had no room for it.
        texts: of the answers, as far as they came.
        finish: why each of them ended.
        first: seconds from ``asked`` to the first text, of a stream.
        seconds: from ``asked`` to the end.
        gaps: seconds between one piece of an answer and its next.
        tokens: of whole answers, as the server counts.
        cached: tokens of the prompt that the server had run before.
        speculation: the server's figures of it.
        detail: what was wrong.
    """

    order: Order
    asked: float = 0.0
    refused: float = 0.0
    end: End = "failed"
    status: int = 0
    refusals: int = 0
    texts: list[str] = field(default_factory=list)
    finish: list[str | None] = field(default_factory=list)
    first: float | None = None
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0
    speculation: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


def orders(seed: int, prompts: int, cancel: float, longest: int) -> Iterator[Order]:
    """What one client asks for, without end.

    Args:
        seed: the client's own.
        prompts: how many there are.
        cancel: share of its requests on which it hangs up.
        longest: answer, in tokens.
    """
    rng = random.Random(seed)
    lengths = [most for most in MAX_TOKENS if most <= longest] or [longest]
    while True:
        stream, most = rng.random() < _STREAMED, rng.choice(lengths)
        pieces = seconds = None
        if rng.random() < cancel:
            if stream and rng.random() < _BY_PIECES:
                pieces = rng.randrange(most)
            else:
                seconds = rng.uniform(0.0, _TYPICAL)
        yield Order(
            prompt=rng.randrange(prompts),
            most=most,
            samples=1 + (rng.random() < _PAIRS),
            stream=stream,
            sampled=rng.random() < _SAMPLED,
            priority=PRIORITIES[rng.random() < _LATER],
            pieces=pieces,
            seconds=seconds,
        )
