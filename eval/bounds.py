"""How large can the mean of something be, given a sample of it? Valid for samples of any size.

A sample in which nothing was ever lost says little about rare losses: its normal or bootstrap bound
is 0, whatever its size. Here the sample is bet against (Waudby-Smith and Ramdas, 2010.09686). Were
the mean of the losses x₁ … x_n, all at most 1, really m or more, then

    K(m) = Σ_j w_j Π_i (1 − λ_j·(x_i − m)),    0 ≤ λ_j ≤ 1,  Σ_j w_j = 1,  m ≥ 0,

would be a non-negative wealth with a mean of at most 1: by Markov's inequality it is 1/α or more
with a probability of at most α. So where it is, m is ruled out. Gains, negative losses, count. The
order of the sample does not matter. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Stakes and how much is bet with each. Where nothing is lost the largest stake is the best, and
# where a share p of the questions loses all, 1 − p/m is; most is put where losses are rare.
_STAKES = np.array([1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.03])
_WEIGHTS = np.array([0.4, 0.15, 0.15, 0.1, 0.1, 0.05, 0.05])


def log_wealth(losses: Sequence[float], mean: float) -> float:
    """``log K(mean)``: what betting against a mean of ``mean`` or more has made of 1.

    Raises:
        ValueError: a loss above 1, or a mean outside [0, 1].
    """
    values = np.asarray(losses, dtype=np.float64)
    if not 0 <= mean <= 1 or (len(values) and not values.max() <= 1):
        raise ValueError(f"losses must be at most 1 and a mean in [0, 1], got {mean}")
    with np.errstate(divide="ignore"):
        logs = np.log1p(-_STAKES * (values[:, None] - mean)).sum(0) + np.log(_WEIGHTS)
    most = logs.max()
    return float(most + np.log(np.exp(logs - most).sum()))


def upper_bound(losses: Sequence[float], confidence: float) -> float:
    """What the mean loss is at most, with this confidence: at least 0, at most 1.

    Raises:
        ValueError: a loss above 1, or a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, got {confidence}")
    enough = -math.log1p(-confidence)
    low, high = 0.0, 1.0
    if log_wealth(losses, low) >= enough:
        return 0.0
    if log_wealth(losses, high) < enough:
        return 1.0
    while high - low > 1e-7:  # the wealth grows with the mean
        middle = (low + high) / 2
        low, high = (low, middle) if log_wealth(losses, middle) >= enough else (middle, high)
    return high


def least_questions(bound: float, confidence: float) -> int:
    """How many questions it takes to show a mean loss of at most ``bound`` if none loses anything.

    Raises:
        ValueError: ``bound`` is not above 0.
    """
    if not bound > 0:
        raise ValueError(f"no number of questions shows a mean loss of at most {bound}")
    enough = -math.log1p(-confidence)
    low, high = 0, 1
    while _unharmed(high, bound) < enough:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _unharmed(middle, bound) >= enough else (middle, high)
    return high


def _unharmed(count: int, mean: float) -> float:
    """The log wealth after so many questions without a loss."""
    logs = count * np.log1p(_STAKES * mean) + np.log(_WEIGHTS)
    most = logs.max()
    return float(most + np.log(np.exp(logs - most).sum()))
