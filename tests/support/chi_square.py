"""Counts against the probabilities that they are said to follow."""

from __future__ import annotations

from collections import Counter

from scipy import stats as scipy_stats


def assert_counts_follow(
    counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float], trials: int
) -> None:
    """χ² over the sequences expected at least five times, the others taken together, with a
    false-failure probability of 1e-10.
    """
    likely = [sequence for sequence, mass in expected.items() if mass * trials >= 5]
    observed = [counts[sequence] for sequence in likely]
    hoped = [expected[sequence] * trials for sequence in likely]
    observed.append(trials - sum(observed))
    hoped.append(trials - sum(hoped))
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, hoped, strict=True) if e > 0)
    assert all(e > 0 or o == 0 for o, e in zip(observed, hoped, strict=True))
    assert statistic < scipy_stats.chi2.isf(1e-10, len(hoped) - 1)
