"""Requests that come by chance, whether others are done or not, to an engine in this process.

Knows nothing of what is expected of it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from specdec.engine import Emission, Request
from specdec.eval.timing import Inputs
from specdec.serving import ThreadedEngine


@dataclass(eq=False)
class Clock:
    """Reads an answer and notes when its tokens came."""

    request: Request
    cancel: Callable[[Request], None]
    ended: bool = False
    let_in: float | None = None
    asked: float = field(default_factory=time.perf_counter)
    came: list[float] = field(default_factory=list)

    def deliver(self, emissions: list[Emission], ended: bool) -> None:
        """By the engine's thread."""
        now = time.perf_counter()
        self.came += [now] * len(emissions)


class Saturated(NamedTuple):
    """What came of an engine that always had as much to do as it can.

    Attributes:
        requests: how many there were.
        tokens: of an answer.
        tokens_per_second: of all together, while as many ran as may.
        mean_acceptance_length: tokens a step.
    """

    requests: int
    tokens: float
    tokens_per_second: float
    mean_acceptance_length: float


class Measured(NamedTuple):
    """What came of it; times in seconds, means over the requests.

    Attributes:
        rate: requests a second that came.
        requests: how many.
        tokens: of an answer.
        prompt_tokens: of a prompt.
        running: requests in flight, over the time in which any came.
        first_token: from asking to the first token.
        between_tokens: per token behind it.
        end_to_end: from asking to the last token.
        tokens_per_second: of all together, from the first request to the last token.
        mean_acceptance_length: tokens a step.
    """

    rate: float
    requests: int
    tokens: float
    prompt_tokens: float
    running: float
    first_token: float
    between_tokens: float
    end_to_end: float
    tokens_per_second: float
    mean_acceptance_length: float


def run(
    engine: ThreadedEngine,
    asked: Sequence[Inputs],
    rate: float,
    *,
    max_new_tokens: int,
    seed: int = 0,
) -> Measured:
    """Ask these, in order, at ``rate`` a second, with exponential gaps; greedy answers.

    Raises:
        ValueError: one of them failed.
    """
    draw = random.Random(seed)
    gaps = [draw.expovariate(rate) for _ in asked]
    clocks, length = _answered(engine, asked, gaps, max_new_tokens)
    began, last = clocks[0].asked, clocks[-1].asked
    ends = [clock.came[-1] - clock.asked for clock in clocks]
    firsts = [clock.came[0] - clock.asked for clock in clocks]
    lengths = [len(clock.came) for clock in clocks]
    done = max(clock.came[-1] for clock in clocks) - began
    return Measured(
        (len(clocks) - 1) / (last - began),
        len(clocks),
        statistics.mean(lengths),
        statistics.mean(clock.request.view.prompt_length for clock in clocks),
        sum(ends) / done,
        statistics.mean(firsts),
        sum(e - f for e, f in zip(ends, firsts, strict=True)) / max(sum(lengths) - len(lengths), 1),
        statistics.mean(ends),
        sum(lengths) / done,
        length,
    )


def saturate(
    engine: ThreadedEngine, asked: Sequence[Inputs], *, most: int, max_new_tokens: int
) -> Saturated:
    """Ask all of these at once; ``most`` of them may run.

    Counted is from the end of as many answers as may run, since all begin alike, to the last end
    behind which there is another to take its place.

    Raises:
        ValueError: there are too few of them, or one failed.
    """
    if len(asked) <= 2 * most:
        raise ValueError(f"{len(asked)} requests do not saturate an engine that runs {most}")
    clocks, length = _answered(engine, asked, [0.0] * len(asked), max_new_tokens)
    ends = sorted(clock.came[-1] for clock in clocks)
    began, done = ends[most - 1], ends[len(ends) - most]
    tokens = sum(began < moment <= done for clock in clocks for moment in clock.came)
    mean = statistics.mean(len(clock.came) for clock in clocks)
    return Saturated(len(clocks), mean, tokens / (done - began), length)


def _answered(
    engine: ThreadedEngine, asked: Sequence[Inputs], gaps: Sequence[float], tokens: int
) -> tuple[list[Clock], float]:
    """Ask with these seconds behind each, and wait for all; and the tokens a step there were.

    Raises:
        ValueError: one of them failed.
    """
    clocks: list[Clock] = []
    before = engine.stats.acceptance
    due = time.perf_counter()
    for inputs, gap in zip(asked, gaps, strict=True):
        time.sleep(max(0.0, due - time.perf_counter()))
        due += gap
        clocks.append(engine.open(Clock, **inputs, do_sample=False, max_new_tokens=tokens))
    while not all(clock.ended for clock in clocks):
        time.sleep(0.01)
    for clock in clocks:
        if clock.request.error is not None:
            raise ValueError("a request of the load failed") from clock.request.error
    after = engine.stats.acceptance
    steps = after.num_spec_steps - before.num_spec_steps
    accepted = after.num_accepted_draft_tokens - before.num_accepted_draft_tokens
    return clocks, 1 + accepted / max(steps, 1)
