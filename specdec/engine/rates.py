"""How far drafts are accepted, by depth. Knows nothing of drafters, shapes or time."""

from __future__ import annotations

import math
from collections.abc import Sequence

_ABOVE = 4.0  # how many observations the rate of a depth is worth to the one below it


class Rates:
    """Decayed counts: of the steps in which a token at depth d - 1 was accepted and one at depth d
    was asked for, how many accepted that, too. Entry 0 is depth 1.

    Args:
        keep: weight of an observation after the next one at its depth.
    """

    def __init__(self, depth: int, keep: float) -> None:
        self.hits = [0.0] * depth
        self.tries = [0.0] * depth
        self._keep = keep

    def see(self, accepted: int, asked: int) -> None:
        """Take in a step: so many levels were asked for, so many accepted."""
        for depth in range(min(accepted + 1, asked)):
            self.tries[depth] = self._keep * self.tries[depth] + 1.0
            self.hits[depth] = self._keep * self.hits[depth] + (depth < accepted)

    def fade(self, keep: float, beyond: int = 0) -> None:
        """Trust what was seen less, at depths larger than ``beyond``."""
        for depth in range(beyond, len(self.tries)):
            self.tries[depth] *= keep
            self.hits[depth] *= keep

    def cap(self, tries: float) -> None:
        """Trust what was seen no more than if it were so many observations."""
        for depth, count in enumerate(self.tries):
            if count > tries:
                self.hits[depth] *= tries / count
                self.tries[depth] = tries

    def given(self, prior: Sequence[float], weight: float) -> list[float]:
        """By depth the probability of acceptance: the mean of a Beta distribution whose prior has
        this mean and the weight of so many observations.
        """
        counts = zip(self.hits, self.tries, prior, strict=True)
        return [(hits + weight * mean) / (tries + weight) for hits, tries, mean in counts]

    def alone(self, first: float, hope: float = 0.0, beyond: int = 0) -> list[float]:
        """The same where the prior of each depth is the estimate of the one above it, at depths
        larger than ``beyond`` plus ``hope`` standard deviations. That of depth 1 is ``first``, with
        the weight of one observation.
        """
        estimates, weight = list[float](), 1.0
        for depth, (hits, tries) in enumerate(zip(self.hits, self.tries, strict=True)):
            first = (hits + weight * first) / (tries + weight)
            spread = math.sqrt(first * (1 - first) / (tries + weight + 1))
            estimates.append(min(1.0, first + (hope * spread if depth >= beyond else 0.0)))
            weight = _ABOVE
        return estimates


class Size:
    """Running means of how large the trees of a shape turn out.

    Args:
        work: to expect before any was seen.
        levels: likewise.
    """

    def __init__(self, work: float, levels: float) -> None:
        self.work, self.levels, self._seen = work, levels, 0

    def see(self, work: float, levels: int) -> None:
        """Take in a tree."""
        self._seen += 1
        rate = max(0.05, 1 / self._seen)
        self.work += rate * (work - self.work)
        self.levels += rate * (levels - self.levels)
