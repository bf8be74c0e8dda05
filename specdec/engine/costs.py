"""What a step costs, estimated from the times of whole steps.

A step in which b requests draft n nodes in all, on l levels, takes

    T = a_b · (1 + fixed_b + node_b · n + level_b · l)

with a_b the time of a plain step of b requests. Whole steps are timed, not phases: on a GPU a phase
returns before its work is done, and only the step waits for it. Knows nothing of trees or requests.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median_low
from typing import NamedTuple

import numpy as np

_RECENT = 9  # plain steps whose median counts
_KNOWN = 2  # plain steps after which a time is known
_CLIP = 3.0  # × the expected: a step that took longer says nothing of the step
_KEEP = 0.99  # weight of a drafted step's time after the next one
_SURE = 8.0  # drafted steps after which a time may be found odd
_ODD = 1.5  # × or ÷ the expected: is that odd? Some are,
_CHANGED = 3  # but not so many one after the other, unless the machine is another by now
_DOUBTED = 2.0  # drafted steps that those before such a change are worth after it
# Before anything is measured, for a single request, and how sure that is: standard deviations of
# 0.3, 0.05 and 0.3 where a measurement has 0.1.
_GUESS = (0.1, 0.03, 0.1)
_ROOMY = 4  # requests a step takes on in about the time of one; beyond, a node's share is less
_CERTAIN = np.diag([1 / 9, 4.0, 1 / 9])


class Cost(NamedTuple):
    """In plain steps: of drafting at all, of a drafted node, and of a level."""

    fixed: float
    node: float
    level: float

    def step(self, nodes: float, levels: float) -> float:
        """A step that drafts; never less than a plain one."""
        return 1.0 + max(0.0, self.fixed + self.node * nodes + self.level * levels)


class _Bucket:
    """Batches of about one size."""

    def __init__(self) -> None:
        self.plain: deque[tuple[int, float]] = deque(maxlen=_RECENT)  # requests, and seconds
        # Decayed sums of x xᵀ and x y. What was known of other batch sizes before stays as the
        # ridge of the regression, so that what is not varied for long returns to it instead of
        # drifting.
        self.guess = np.array(_GUESS)
        self.squares = np.zeros((3, 3))
        self.products = np.zeros(3)
        self.cost: Cost | None = None
        # Drafted steps in a row that nobody expected, with their seconds.
        self.odd: list[tuple[int, int, float]] = []

    @property
    def middle(self) -> tuple[int, float]:
        """A usual number of requests, and seconds of a plain step of so many."""
        batches, seconds = zip(*self.plain, strict=True)
        return median_low(batches), median_low(seconds)

    @property
    def weight(self) -> float:
        """Drafted steps that were timed; those of long ago count less."""
        return float(self.squares[0, 0])

    def learn(self, nodes: int, levels: int, relative: float) -> None:
        """Take in a drafted step."""
        x = np.array([1.0, nodes, levels])
        self.fade(_KEEP)
        self.squares += np.outer(x, x)
        self.products += x * (relative - 1.0)

    def fade(self, keep: float) -> None:
        """Trust the times of drafted steps less."""
        self.squares *= keep
        self.products *= keep
        self.cost = None


class Costs:
    """Running estimates for every batch size, in buckets of powers of two."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self.timed = 0  # drafted steps taken in

    def knows(self, batch: int) -> bool:
        """Whether enough plain steps have been timed."""
        return len(self._bucket(batch).plain) >= _KNOWN

    def plain(self, batch: int) -> float | None:
        """Seconds of a plain step, the lower median of the last; ``None`` before the first."""
        times = self._bucket(batch).plain
        if not times:
            return None
        power = 0.0 if all(b == batch for b, _ in times) else self._power(batch)
        scaled: float = median_low([seconds * (batch / b) ** power for b, seconds in times])
        return scaled

    def of(self, batch: int) -> Cost:
        """What drafting costs; by the nearest batch size that was measured, if this one was not:
        levels take as much longer as plain steps do, and a node is less of a larger batch.
        """
        bucket = self._bucket(batch)
        if not bucket.weight:
            index = _index(batch)
            measured = [i for i, other in self._buckets.items() if other.weight]
            near = min(measured, key=lambda i: abs(i - index), default=None)
            if near is None:
                fixed, node, level = _GUESS
                return Cost(fixed, node / _share(batch), level)
            known = self.of(1 << near)
            return known._replace(node=known.node * _share(1 << near) / _share(batch))
        if bucket.cost is None:
            left = _CERTAIN + bucket.squares
            bucket.cost = Cost(
                *np.linalg.solve(left, _CERTAIN @ bucket.guess + bucket.products).tolist()
            )
        return bucket.cost

    def _power(self, batch: int) -> float:
        """p where a plain step takes about bᵖ for b requests, by the sizes around this one."""
        index = _index(batch)
        known = [i for i, other in self._buckets.items() if other.plain and i != index]
        near = min(known, key=lambda i: (abs(i - index), i), default=None)
        if near is None:
            return 0.5
        (other, there), (own, here) = self._buckets[near].middle, self._buckets[index].middle
        return min(max(math.log(here / there) / math.log(own / other), 0.0), 1.0)

    def see_plain(self, batch: int, seconds: float) -> None:
        """Take in the time of a step that drafted nothing."""
        bucket = self._bucket(batch)
        bucket.plain.append((batch, seconds))
        if bucket.odd and len(bucket.plain) == _KNOWN:
            plain = min(seconds for _, seconds in bucket.plain)
            for nodes, levels, took in bucket.odd:
                bucket.learn(nodes, levels, took / plain)
            bucket.odd.clear()

    def relative(
        self, batch: int, nodes: int, levels: int, seconds: float, extra: float = 0.0
    ) -> float:
        """The time of a drafted step in plain steps, of which one must have been timed; at most a
        few times the expected: warming up, compiling, or a pause of the machine's are not what a
        step takes.

        Args:
            extra: plain steps that it is expected to take beyond the usual.
        """
        plain = self.plain(batch)
        assert plain is not None
        return min(seconds / plain, _CLIP * (self.of(batch).step(nodes, levels) + extra))

    def see_drafted(self, batch: int, nodes: int, levels: int, seconds: float) -> None:
        """Take in the time of a step in which all who drafted had done so the step before.

        Where several in a row are far from what was expected, plain ones are to be timed again
        before any is believed: the machine may have become slower or faster as a whole.
        """
        bucket = self._bucket(batch)
        if not bucket.weight:
            bucket.guess = np.array(self.of(batch))
        self.timed += 1
        plain, expected = self.plain(batch), self.of(batch).step(nodes, levels)
        assert plain is not None
        bucket.odd.append((nodes, levels, seconds))
        if bucket.weight >= _SURE and not expected / _ODD < seconds / plain < expected * _ODD:
            if len(bucket.odd) == _CHANGED:
                bucket.plain.clear()
                bucket.fade(_DOUBTED / bucket.weight)
            return
        for nodes, levels, took in bucket.odd:
            bucket.learn(nodes, levels, self.relative(batch, nodes, levels, took))
        bucket.odd.clear()

    def rest(self) -> None:
        """Nothing has been drafted for a while: trust what is known of it half as much."""
        for bucket in self._buckets.values():
            bucket.fade(0.5)

    def _bucket(self, batch: int) -> _Bucket:
        index = _index(batch)
        if index not in self._buckets:
            self._buckets[index] = _Bucket()
        return self._buckets[index]


def _share(batch: int) -> float:
    """How many nodes take about as much of a step as one node of a small batch does."""
    return max(1.0, batch / _ROOMY)


def _index(batch: int) -> int:
    """Sizes of up to 1, 2, 4, 8, … requests."""
    return (batch - 1).bit_length()
