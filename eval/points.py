"""The acceptance policies that are compared: families, each from strict to permissive.

A family is one way to relax and makes one curve; its points differ in one number. Knows nothing of
questions or of how policies are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from specdec.baselines import FLy, Random, TopK, Typical, uniform
from specdec.eval.oracle import Oracle
from specdec.policies import Acceptance, Relaxed
from specdec.reliance import Reliance

LOSSLESS = "lossless"
RANDOM = "random"
ORACLE = "oracle"


class Point(NamedTuple):
    """A policy.

    Attributes:
        name: unique.
        family: the curve that it belongs to.
        strength: the number in which the points of a family differ.
        acceptance: what ``specdec.generate`` takes.
        weighted: it looks at what depends on the image, as users can; oracles cannot be used.
    """

    name: str
    family: str
    strength: float
    acceptance: Acceptance
    weighted: bool = False


def points(
    estimators: Mapping[str, Reliance], *, sampled: bool, families: Sequence[str] = ()
) -> list[Point]:
    """All policies, lossless first, each family in order of its points.

    Args:
        estimators: by name.
        sampled: for sampling; else for greedy decoding.
        families: only those whose names begin with one of these; lossless and random are always
            there, since everything is compared with them. None is all.
    """
    always = (LOSSLESS, RANDOM)
    made = _sampled(estimators) if sampled else _greedy(estimators)
    return [
        point for point in made if not families or point.family.startswith((*always, *families))
    ]


def _greedy(estimators: Mapping[str, Reliance]) -> Iterator[Point]:
    yield from _unbounded()
    for epsilon in (0.1, 0.3, 0.5, 0.7, 0.85, 0.95):
        yield Point(f"uniform ε={epsilon}", "uniform", epsilon, uniform(epsilon))
    yield from _weighted(estimators, (0.5, 0.75, 0.9, 0.97, 1.0), (1.0, 4.0))
    for window in (2, 4, 6):
        for entropy in (0.3, 0.1, 0.0):
            family = f"FLy, window {window}"
            yield Point(f"{family}, entropy {entropy}", family, -entropy, FLy(window, entropy))


def _sampled(estimators: Mapping[str, Reliance]) -> Iterator[Point]:
    yield from _unbounded()
    for epsilon in (0.02, 0.05, 0.1, 0.2, 0.4):
        yield Point(f"uniform ε={epsilon}", "uniform", epsilon, uniform(epsilon))
    yield from _weighted(estimators, (0.1, 0.25, 0.5, 0.75, 1.0), (1.0, 4.0, 16.0))


def _weighted(
    estimators: Mapping[str, Reliance], epsilons: Sequence[float], gammas: Sequence[float]
) -> Iterator[Point]:
    """Those that look at what depends on the image."""
    for name, reliance in estimators.items():
        for gamma in gammas:
            family = f"{name} γ={gamma:g}"
            for epsilon in epsilons:
                policy = Relaxed(epsilon, reliance, gamma)
                yield Point(f"{family} ε={epsilon}", family, epsilon, policy, weighted=True)
    # What guards do, seen at one estimator.
    for epsilon in epsilons if "combined" in estimators else ():
        policy = Relaxed(epsilon, estimators["combined"], 4.0, guards=())
        family = "combined γ=4, no guards"
        yield Point(f"{family} ε={epsilon}", family, epsilon, policy, weighted=True)
    for family, oracle in ((ORACLE, Oracle()), (f"{ORACLE}, graded", Oracle(graded=True))):
        for epsilon in epsilons:
            policy = Relaxed(epsilon, oracle, 4.0, guards=())
            yield Point(f"{family} ε={epsilon}", family, epsilon, policy)


def _unbounded() -> Iterator[Point]:
    """Lossless, and what others do."""
    yield Point(LOSSLESS, LOSSLESS, 0.0, LOSSLESS)
    for p in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 0.9):
        yield Point(f"random {p}", RANDOM, p, Random(p))
    for threshold in (0.4, 0.2, 0.09, 0.04, 0.02):
        rule = Typical(threshold, math.sqrt(threshold))  # δ = √ε, as its authors advise
        yield Point(f"typical ε={threshold}", "typical", -threshold, rule)
    for delta in (0.2, 0.4, 0.6, 0.8, 0.9, 0.97):
        yield Point(f"top 10, δ={delta}", "top 10", delta, TopK(10, delta))
