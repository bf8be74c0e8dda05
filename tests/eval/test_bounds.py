from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from specdec.eval.bounds import least_questions, log_wealth, upper_bound

RUNS = 400
Bound = Callable[[np.ndarray, float], float]


def losses(rng: np.random.Generator, kind: str, size: int) -> tuple[np.ndarray, float]:
    """Samples and their mean: rare total losses, rare small ones, gains beside losses."""
    if kind == "rare":
        return (rng.random(size) < 0.004).astype(float), 0.004
    if kind == "partial":
        return (rng.random(size) < 0.02) * rng.random(size), 0.01
    drawn = rng.random(size)
    return (drawn < 0.03).astype(float) - (drawn > 0.98), 0.01


def missed(bound: Bound, kind: str, size: int) -> int:
    """In how many of the runs the bound lies below the mean."""
    rng = np.random.default_rng(5)
    below = 0
    for _ in range(RUNS):
        sample, mean = losses(rng, kind, size)
        below += bound(sample, 0.95) < mean
    return below


def normal_bound(sample: np.ndarray, confidence: float) -> float:
    """What everybody would use."""
    deviation = NormalDist().inv_cdf(confidence) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() + deviation)


@pytest.mark.parametrize("kind", ["rare", "partial", "signed"])
@pytest.mark.parametrize("size", [60, 300])
def test_bound_holds_as_often_as_it_says(kind: str, size: int) -> None:
    """At most 5 % of bounds may lie below the mean: 52 of 400 or more have a probability below
    1e-9 if it is 5 %.
    """
    assert missed(upper_bound, kind, size) < 52


def test_a_normal_bound_would_turn_that_red() -> None:
    """The test above has the power to fail: with losses so rare, the usual bound is 0 most of the
    time.
    """
    assert missed(normal_bound, "rare", 60) > 250


def test_bound_tells_something() -> None:
    """A bound that is always 1 would hold, too. 0.7 % lost of 2,000 is shown to be under 1.6 %, and
    a thousand questions unharmed to be under 0.5 %.
    """
    sample = np.zeros(2000)
    sample[:14] = 1.0
    assert upper_bound(sample, 0.95) < 0.016
    assert upper_bound(np.zeros(1000), 0.95) < 0.005
    assert upper_bound(np.full(500, -0.1), 0.95) == 0.0
    assert upper_bound([], 0.95) == 1.0


def test_bound_is_where_the_wealth_suffices() -> None:
    sample = np.random.default_rng(1).random(50) * 0.1
    bound = upper_bound(sample, 0.9)
    assert log_wealth(sample, bound) >= np.log(10)
    assert log_wealth(sample, bound - 1e-5) < np.log(10)


def test_least_questions_are_just_enough() -> None:
    least = least_questions(0.005, 0.95)
    assert 600 < least < 800
    assert upper_bound(np.zeros(least), 0.95) <= 0.005
    assert upper_bound(np.zeros(least - 1), 0.95) > 0.005


def test_more_than_everything_cannot_be_lost() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        upper_bound([0.0, 1.5], 0.95)
    with pytest.raises(ValueError, match="between 0 and 1"):
        upper_bound([0.0], 95)
    with pytest.raises(ValueError, match="no number of questions"):
        least_questions(0.0, 0.95)
