"""What relaxed acceptance is to achieve, and whether it does. Pure computations over curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specdec.eval.retention import Curve, interval

LOST_BY_RANDOM = 0.05
LOSS = 0.005
GAIN = 1.25


def goals(
    curves: Mapping[str, Curve],
    halves: tuple[Mapping[str, Curve], Mapping[str, Curve]],
    *,
    random: str,
    weighted: Sequence[str],
    named: str | None,
) -> dict[str, Any]:
    """Two goals, for the family named beforehand, for every other one, and for the best of them.

    At equal speed: at the τ where random relaxation first loses 5 % of the accuracy, a family keeps
    at least 99.5 %. At equal quality: losing at most 0.5 %, its best point has at least 1.25 times
    the lossless τ. Since the best of many is best by chance, too, it is chosen on the first of the
    two halves of the questions and measured on the second.

    Args:
        curves: of every family, over all questions.
        halves: the same over each half.
        random: the family of random relaxation.
        weighted: families that look at what depends on the image and can be used.
        named: the one of them that was named before anything was measured.
    """
    choosing, measuring = halves
    result: dict[str, Any] = {
        "equal_speed": {
            "tau_where_random_loses": interval(
                curves[random].tau_where_lost(1 - LOST_BY_RANDOM)
            )._asdict(),
            "families": {
                name: at_equal_speed(curves[name], curves[random])
                for name in curves
                if name != random
            },
        },
        "equal_quality": {
            "families": {name: at_equal_quality(curve) for name, curve in curves.items()}
        },
        "named": named,
    }
    if weighted:
        # Where a half's random curve never loses so much, or no family goes so far, none is best.
        speeds = {name: at_equal_speed(choosing[name], choosing[random]) for name in weighted}
        reached = {n: s["retained"]["value"] for n, s in speeds.items() if s["reached"]}
        if reached:
            best = max(reached, key=lambda name: (reached[name], name))
            chosen = at_equal_speed(measuring[best], measuring[random])
            result["equal_speed"]["chosen"] = {"family": best, **chosen}
        points = {n: choosing[n].best_within(LOSS) for n in weighted}
        best = max(weighted, key=lambda name: (choosing[name].taus[0, points[name]], name))
        chosen = at_equal_quality(measuring[best], points[best])
        result["equal_quality"]["chosen"] = {"family": best, **chosen}
    return result


def at_equal_speed(curve: Curve, random: Curve) -> dict[str, Any]:
    """What a family retains at the τ where random relaxation first loses 5 %."""
    tau = random.tau_where_lost(1 - LOST_BY_RANDOM)
    retained = curve.retained_at(tau)
    found = interval(retained)
    return {
        "retained": found._asdict(),
        "reached": bool(not np.isnan(retained[0])),
        "reached_in_resamples": _share(~np.isnan(retained[1:])),
        "met": bool(found.value >= 1 - LOSS),
        "met_in_resamples": _share(retained[1:] >= 1 - LOSS),
    }


def at_equal_quality(curve: Curve, point: int | None = None) -> dict[str, Any]:
    """The largest τ, as a multiple of the lossless one, at no more than 0.5 % loss.

    Args:
        point: the one that was chosen elsewhere; it may lose more here.
    """
    best = curve.best_within(LOSS) if point is None else point
    gain = curve.taus[:, best] / curve.taus[:, 0]
    retained = curve.retained[:, best]
    both = (gain >= GAIN) & (retained >= 1 - LOSS)
    return {
        "point": curve.names[best],
        "tau_ratio": interval(gain)._asdict(),
        "retained": interval(retained)._asdict(),
        "met": bool(both[0]),
        "met_in_resamples": _share(both[1:]),
    }


def _share(true: NDArray[np.bool_]) -> float:
    return float(np.mean(true))
