"""What a step costs, estimated from the times of whole steps.

A step in which b requests draft n nodes in all, on l levels, takes

    T = a_b · (1 + fixed_b + node_b · n + level_b · l)

with a_b the time of a plain step of b requests. Whole steps are timed, not phases: on a GPU a phase
returns before its work is done, and only the step waits for it. Knows nothing of trees or requests.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

_RECENT = 9  # plain steps whose median counts
_CLIP = 3.0  # × the usual: a step that took longer says nothing of the step
_KEEP = 0.99  # weight of a drafted step's time after the next one
# Before anything is measured, and how sure that is: standard deviations of 0.3, 0.05 and 0.3 where
# a measurement has 0.1.
_GUESS = (0.1, 0.03, 0.1)
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
        self.plain: deque[float] = deque(maxlen=_RECENT)
        self.drafted: deque[float] = deque(maxlen=_RECENT)
        # Decayed sums of x xᵀ and x y. What was known of other batch sizes before stays as the
        # ridge of the regression, so that what is not varied for long returns to it instead of
        # drifting.
        self.guess = np.array(_GUESS)
        self.squares = np.zeros((3, 3))
        self.products = np.zeros(3)
        self.cost: Cost | None = None


class Costs:
    """Running estimates for every batch size, in buckets of powers of two."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self.timed = 0  # drafted steps taken in

    def knows(self, batch: int) -> bool:
        """Whether a plain step has been timed."""
        return bool(self._bucket(batch).plain)

    def plain(self, batch: int) -> float | None:
        """Seconds of a plain step, the lower median of the last; ``None`` before the first."""
        times = self._bucket(batch).plain
        return sorted(times)[(len(times) - 1) // 2] if times else None

    def of(self, batch: int) -> Cost:
        """What drafting costs; of the nearest batch size that was measured, if this one was not."""
        bucket = self._bucket(batch)
        if not bucket.drafted:
            index = _index(batch)
            measured = [i for i, other in self._buckets.items() if other.drafted]
            near = min(measured, key=lambda i: abs(i - index), default=None)
            return Cost(*_GUESS) if near is None else self.of(1 << near)
        if bucket.cost is None:
            left = _CERTAIN + bucket.squares
            bucket.cost = Cost(
                *np.linalg.solve(left, _CERTAIN @ bucket.guess + bucket.products).tolist()
            )
        return bucket.cost

    def see_plain(self, batch: int, seconds: float) -> None:
        """Take in the time of a step that drafted nothing."""
        self._bucket(batch).plain.append(seconds)

    def clip(self, batch: int, seconds: float) -> float:
        """The time of a drafted step, at most a few times the usual."""
        usual = sorted(self._bucket(batch).drafted)
        return min(seconds, _CLIP * usual[len(usual) // 2]) if len(usual) >= 3 else seconds

    def see_drafted(self, batch: int, nodes: int, levels: int, seconds: float) -> None:
        """Take in the time of a step in which all who drafted had done so the step before."""
        bucket, plain = self._bucket(batch), self.plain(batch)
        if plain is None:
            return
        if not bucket.drafted:
            bucket.guess = np.array(self.of(batch))
        relative = self.clip(batch, seconds) / plain - 1.0
        bucket.drafted.append(seconds)
        self.timed += 1
        x = np.array([1.0, nodes, levels])
        bucket.squares = _KEEP * bucket.squares + np.outer(x, x)
        bucket.products = _KEEP * bucket.products + x * relative
        bucket.cost = None

    def _bucket(self, batch: int) -> _Bucket:
        index = _index(batch)
        if index not in self._buckets:
            self._buckets[index] = _Bucket()
        return self._buckets[index]


def _index(batch: int) -> int:
    """Sizes of up to 1, 2, 4, 8, … requests."""
    return (batch - 1).bit_length()
