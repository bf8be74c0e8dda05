"""One replica under a load, as a queue.

Requests that run share the engine's steps, so a replica is a processor-sharing queue whose rate
depends on how many there are. With Poisson arrivals the number in it has the stationary law

    π(n) ∝ λ^n / (μ(1) · … · μ(n)),      μ(i) = i / (i · s + S · T(i)),  μ(n) = μ(B) for n > B,

whatever the law of answers' lengths, but for those beyond B, who wait (F. P. Kelly, Reversibility
and Stochastic Networks, 1979, ch. 3). λ: requests a second; s: the seconds that the engine works on
a prompt; S: steps an answer takes; T(i): seconds of a step of i requests, drafting and all that the
engine does included; B: the most that run at once. Prompts of those that run queue for their turn
as in M/D/1. Knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

_TAIL = 1e-9  # of the probability, beyond which longer queues are left out
_LONGEST = 100_000


@dataclass(frozen=True)
class Steps:
    """Seconds of a step by how many requests share it: measured for some, in lines between and
    beyond them.

    Raises:
        ValueError: none was measured.
    """

    measured: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.measured or list(self.measured) != sorted(set(self.measured)):
            raise ValueError(f"steps {self.measured}: expected one or more, by rising numbers")

    def seconds(self, requests: float) -> float:
        """Of a step of that many."""
        (first, least), *_ = self.measured
        if requests <= first or len(self.measured) == 1:
            return least * (1 if requests <= first else requests / first)
        for (low, before), (high, behind) in pairwise(self.measured):
            slope = (behind - before) / (high - low)
            if requests <= high:
                break
        return max(behind + slope * (requests - high), behind if requests > high else 0.0)


@dataclass(frozen=True)
class Work:
    """What one request takes of a replica.

    Attributes:
        prompt: s: seconds of the engine for a prompt.
        tokens: of an answer.
        per_step: tokens of an answer a step: τ.
        steps: T.
        most: B.
    """

    prompt: float
    tokens: float
    per_step: float
    steps: Steps
    most: int

    @property
    def count(self) -> float:
        """S: the prompt yields the first token."""
        return max(self.tokens - 1, 0) / self.per_step

    def rate(self, running: int) -> float:
        """μ: requests a second that end while so many are there."""
        i = min(running, self.most)
        return i / (i * self.prompt + self.count * self.steps.seconds(i))

    @property
    def capacity(self) -> float:
        """Requests a second that a replica can keep up with."""
        return max(self.rate(i) for i in range(1, self.most + 1))


class Expected(NamedTuple):
    """What a replica under a load is like; times in seconds.

    Attributes:
        rate: requests a second.
        utilisation: share of its capacity that they take.
        busy: share of the time in which there are any.
        running: requests in flight.
        waiting: requests that are not let in yet.
        first_token: from coming to the first token.
        between_tokens: per token behind it.
        end_to_end: of a request.
        tokens_per_second: of all together.
    """

    rate: float
    utilisation: float
    busy: float
    running: float
    waiting: float
    first_token: float
    between_tokens: float
    end_to_end: float
    tokens_per_second: float


def expected(work: Work, rate: float) -> Expected:
    """What to expect of one replica.

    Raises:
        ValueError: more comes than it can keep up with.
    """
    if not 0 < rate < work.rate(work.most):
        raise ValueError(
            f"{rate:.3g} requests a second come to a replica that can keep up with "
            f"{work.rate(work.most):.3g}: more replicas, or shorter answers, are needed"
        )
    law = _law(work, rate)
    running = sum(min(n, work.most) * p for n, p in enumerate(law))
    waiting = sum((n - work.most) * p for n, p in enumerate(law) if n > work.most)
    busy = 1 - law[0]
    # As a request sees it: a state counts as often as there are requests in it.
    between = (
        sum(
            _between(work, min(n, work.most)) * min(n, work.most) * p
            for n, p in enumerate(law)
            if n
        )
        / running
    )
    step = work.steps.seconds(max(running / busy, 1))
    load = min(rate * work.prompt, 0.99)
    turn = load * work.prompt / (2 * (1 - load))
    first = waiting / rate + busy * step / 2 + turn + work.prompt
    return Expected(
        rate,
        rate / work.rate(work.most),
        busy,
        running,
        waiting,
        first,
        between,
        first + max(work.tokens - 1, 0) * between,
        rate * work.tokens,
    )


def _law(work: Work, rate: float) -> Sequence[float]:
    weights = [1.0]
    while len(weights) < _LONGEST:
        weights.append(weights[-1] * rate / work.rate(len(weights)))
        if len(weights) > work.most and weights[-1] < _TAIL * sum(weights):
            break
    total = sum(weights)
    return [weight / total for weight in weights]


def _between(work: Work, running: int) -> float:
    """Seconds a token while so many run, others' prompts included."""
    prompts = (running - 1) * work.prompt / max(work.count, 1)
    return (work.steps.seconds(running) + prompts) / work.per_step
