"""The acceptance policies that are compared: families, each from strict to permissive.

A family is one way to relax and makes one curve; its points differ in one number. Knows nothing of
questions or of how policies are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from specdec.baselines import FLy, Random, TopK, Typical, uniform
from specdec.eval.oracle import Oracle
from specdec.policies import Acceptance, Relaxed
from specdec.reliance import Reliance

LOSSLESS = "lossless"
RANDOM = "random"
ORACLE = "oracle"
FLOOR = Relaxed(0.0).floor


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
    yield from _common(estimators, (0.5, 0.75, 0.9, 0.97, 1.0))
    for window in (2, 4):
        for entropy in (0.3, 0.1, 0.0):
            family = f"FLy, window {window}"
            yield Point(f"{family}, entropy {entropy}", family, -entropy, FLy(window, entropy))


def _sampled(estimators: Mapping[str, Reliance]) -> Iterator[Point]:
    yield from _common(estimators, (0.1, 0.25, 0.5, 0.75, 1.0))


def _common(estimators: Mapping[str, Reliance], epsilons: Sequence[float]) -> Iterator[Point]:
    yield Point(LOSSLESS, LOSSLESS, 0.0, LOSSLESS)
    for p in (0.02, 0.05, 0.1, 0.2, 0.5, 0.75):
        yield Point(f"random {p}", RANDOM, p, Random(p))
    for family, kind in _kinds(estimators).items():
        for epsilon in epsilons:
            policy = replace(kind, epsilon=epsilon)
            weighted = policy.gamma > 0 and not family.startswith(ORACLE)
            yield Point(f"{family} ε={epsilon}", family, epsilon, policy, weighted)
    for threshold in (0.4, 0.2, 0.09, 0.04, 0.02, 0.005):
        rule = Typical(threshold, math.sqrt(threshold))  # δ = √ε, as its authors advise
        yield Point(f"typical ε={threshold}", "typical", -threshold, rule)
    for delta in (0.2, 0.4, 0.6, 0.8, 0.9, 0.97):
        yield Point(f"top 10, δ={delta}", "top 10", delta, TopK(10, delta))


def _kinds(estimators: Mapping[str, Reliance]) -> dict[str, Relaxed]:
    """Families of relaxation with a bound. Those that are named by an estimator alone are what
    :class:`specdec.Relaxed` does unless it is told otherwise; others leave something out, to show
    what it is good for.
    """
    kinds = {"uniform, floor 0": uniform(0.0), "uniform": uniform(0.0, floor=FLOOR)}
    for name, reliance in estimators.items():
        kinds[f"{name} γ=1"] = Relaxed(0.0, reliance)
        if name == "probe":
            kinds["probe γ=1, floor 0"] = Relaxed(0.0, reliance, floor=0.0)
            kinds["probe γ=1, no guards"] = Relaxed(0.0, reliance, guards=())
            kinds["probe γ=4, no guards, floor 0.01"] = Relaxed(
                0.0, reliance, 4.0, guards=(), floor=0.01
            )
    kinds[ORACLE] = Relaxed(0.0, Oracle(), guards=())
    kinds[f"{ORACLE}, graded"] = Relaxed(0.0, Oracle(graded=True), guards=())
    return kinds
