"""What a step costs, estimated from the times of steps.

A step in which b requests draft n nodes in all, on l levels, takes

    T = a_b · (1 + fixed_b + node_b · n + level_b · l)

with a_b the time of a plain step of b requests. Of that the drafter's part, ``fixed + level · l``
and the nodes that it runs itself, ends with its tokens on the host, and is known of every step. The
rest ends with the step only: on a GPU a phase returns before its work is done. Knows nothing of
trees or requests.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median_low
from typing import NamedTuple

from specdec.engine.fit import Fit

_RECENT = 9  # plain steps whose median counts
_KNOWN = 2  # plain steps after which a time is known
_WELL = 5  # and after which it may be compared with another one
_EVERY = 16  # drafted steps to a plain one, for each that was timed before
_CLIP = 3.0  # × the expected: a step that took longer says nothing of the step
_LEAST = 0.1  # plain steps that a drafter may take though less was expected
_SURE = 8.0  # drafted steps after which a time may be found odd
_ODD = 1.5  # × or ÷ the expected: is that odd? Some are,
_CHANGED = 3  # but not so many one after the other, unless the machine is another by now
_DOUBTED = 2.0  # drafted steps that those before such a change are worth after it
# Before anything is measured, for a single request, and how sure that is: standard deviations of
# 0.3, 0.3, 0.3 and 0.05 where a measurement has 0.1.
_DRAFTING = (0.05, 0.1)  # at all, and a level
_VERIFYING = (0.05, 0.03)  # at all, and a node
_SURE_DRAFTING, _SURE_VERIFYING = (1 / 9, 1 / 9), (1 / 9, 4.0)
_RAN = 0.25  # what a node takes that the drafter runs, of one that is verified
_ROOMY = 4  # requests a step takes on in about the time of one; beyond, a node's share is less


class Drafts(NamedTuple):
    """What a step drafts: nodes that are verified, those that drafters run for them, and levels."""

    nodes: int
    ran: int
    levels: int

    @property
    def work(self) -> float:
        """In nodes that are verified."""
        return self.nodes + _RAN * self.ran


class Cost(NamedTuple):
    """In plain steps: of drafting at all, of a drafted node, and of a level."""

    fixed: float
    node: float
    level: float

    def step(self, work: float, levels: float) -> float:
        """A step that drafts; never less than a plain one.

        Args:
            work: drafted nodes, as :attr:`Drafts.work` counts them.
            levels: of the deepest tree.
        """
        return 1.0 + max(0.0, self.fixed + self.node * work + self.level * levels)


class _Timed(NamedTuple):
    """A drafted step's seconds, and the drafter's of them."""

    drafts: Drafts
    seconds: float
    drafting: float


class _Bucket:
    """Batches of about one size."""

    def __init__(self) -> None:
        self.plain: deque[tuple[int, float]] = deque(maxlen=_RECENT)  # requests, and seconds
        self.drafting = Fit(_SURE_DRAFTING)  # by levels
        self.verifying = Fit(_SURE_VERIFYING)  # by nodes
        self.odd: list[_Timed] = []  # drafted steps in a row that nobody expected

    @property
    def middle(self) -> tuple[int, float]:
        """A usual number of requests, and seconds of a plain step of so many."""
        batches, seconds = zip(*self.plain, strict=True)
        return median_low(batches), median_low(seconds)

    def learn_drafting(self, drafts: Drafts, relative: float) -> None:
        """Take in the drafter's part of a step, in plain steps."""
        self.drafting.learn(drafts.levels, relative - self._ran(drafts))

    def learn(self, drafts: Drafts, relative: float, share: float) -> None:
        """Take in a drafted step, of which the drafter's part is this share."""
        self.verifying.learn(drafts.nodes, (1.0 - share) * relative - 1.0)
        self.learn_drafting(drafts, share * relative)

    def usual(self, drafts: Drafts) -> float:
        """What the drafter's part is expected to be."""
        at_all, level = self.drafting.found
        return max(_LEAST, at_all + level * drafts.levels + self._ran(drafts))

    def _ran(self, drafts: Drafts) -> float:
        return self.verifying.found[1] * _RAN * drafts.ran

    def fade(self, keep: float) -> None:
        """Trust the times of drafted steps less."""
        self.drafting.fade(keep)
        self.verifying.fade(keep)


class Costs:
    """Running estimates for every batch size, in buckets of powers of two."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self.timed = 0  # drafted steps taken in

    def knows(self, batch: int) -> bool:
        """Whether enough plain steps have been timed."""
        return len(self._bucket(batch).plain) >= _KNOWN

    def plain_every(self, batch: int, most: int) -> int:
        """How many drafted steps there may be to a plain one: fewer while few have been timed, and
        those at the beginning, when much is slow that will not be.
        """
        return min(most, _EVERY * len(self._bucket(batch).plain))

    def plain(self, batch: int) -> float | None:
        """Seconds of a plain step, the lower median of the last; ``None`` before the first."""
        times = self._bucket(batch).plain
        if not times:
            return None
        power = 0.0 if all(b == batch for b, _ in times) else self._power(batch)
        scaled: float = median_low([seconds * (batch / b) ** power for b, seconds in times])
        return scaled

    def of(self, batch: int) -> Cost:
        """What drafting costs."""
        bucket = self._fitted(batch)
        (drafting, level), (verifying, node) = bucket.drafting.found, bucket.verifying.found
        return Cost(drafting + verifying, node, level)

    def elsewhere(self, batch: int, load: int) -> float:
        """Tokens that the time of a plain step of ``batch`` requests would yield, beyond one for
        each, if ``load`` of them ran: a step of twice as many takes less than twice as long.
        """
        if load <= batch:
            return 0.0
        more, longer = load / batch, math.sqrt(load / batch)
        plain, full = self.plain(batch), self.plain(load)
        known = min(len(self._bucket(size).plain) for size in (batch, load))
        if plain is not None and full is not None and known >= _WELL:
            longer = min(max(full / plain, 1.0), more)
        return batch * (more / longer - 1.0)

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
            for drafts, took, drafting in bucket.odd:
                bucket.learn(drafts, took / plain, drafting / took)
            bucket.odd.clear()

    def relative(self, batch: int, drafts: Drafts, seconds: float, extra: float = 0.0) -> float:
        """The time of a drafted step in plain steps, of which one must have been timed; at most a
        few times the expected: warming up, compiling, or a pause of the machine's are not what a
        step takes.

        Args:
            extra: plain steps that it is expected to take beyond the usual.
        """
        plain = self.plain(batch)
        assert plain is not None
        expected = self.of(batch).step(drafts.work, drafts.levels) + extra
        return min(seconds / plain, _CLIP * expected)

    def see_drafting(self, batch: int, drafts: Drafts, drafting: float) -> None:
        """Take in the drafter's seconds of a step that did more than this."""
        bucket, plain = self._fitted(batch), self.plain(batch)
        assert plain is not None
        bucket.learn_drafting(drafts, min(drafting / plain, _CLIP * bucket.usual(drafts)))

    def see_drafted(self, batch: int, drafts: Drafts, seconds: float, drafting: float) -> None:
        """Take in the time of a step in which all who drafted had done so the step before, and of
        it the drafter's.

        Where several in a row are far from what was expected, plain ones are to be timed again
        before any is believed: the machine may have become slower or faster as a whole.
        """
        bucket = self._fitted(batch)
        self.timed += 1
        plain, expected = self.plain(batch), self.of(batch).step(drafts.work, drafts.levels)
        assert plain is not None
        bucket.odd.append(_Timed(drafts, seconds, drafting))
        weight = bucket.verifying.weight
        if weight >= _SURE and not expected / _ODD < seconds / plain < expected * _ODD:
            if len(bucket.odd) == _CHANGED:
                bucket.plain.clear()
                bucket.fade(_DOUBTED / weight)
            return
        for each in bucket.odd:
            relative = self.relative(batch, each.drafts, each.seconds)
            bucket.learn(each.drafts, relative, each.drafting / each.seconds)
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

    def _fitted(self, batch: int) -> _Bucket:
        """The same; where nothing was drafted yet, it goes by the nearest size that was measured:
        levels take as much longer as plain steps do, and a node is less of a larger batch.
        """
        bucket, index = self._bucket(batch), _index(batch)
        for part, first in (("drafting", _DRAFTING), ("verifying", _VERIFYING)):
            fit: Fit = getattr(bucket, part)
            if not fit.weight:
                others = {i: getattr(other, part) for i, other in self._buckets.items()}
                measured = [i for i, other in others.items() if other.weight]
                near = min(measured, key=lambda i: abs(i - index), default=None)
                at_all, more = first if near is None else others[near].found
                if part == "verifying":
                    more *= _share(1 if near is None else 1 << near) / _share(batch)
                fit.guess(at_all, more)
        return bucket


def _share(batch: int) -> float:
    """How many nodes take about as much of a step as one node of a small batch does."""
    return max(1.0, batch / _ROOMY)


def _index(batch: int) -> int:
    """Sizes of up to 1, 2, 4, 8, … requests."""
    return (batch - 1).bit_length()
