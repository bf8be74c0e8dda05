from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specdec.eval.goals import goals
from specdec.eval.retention import COUNTS, Counts, Curve, Resamples, curve, figures, interval


def counts(questions: int, **given: Any) -> Counts:
    """Ten fields and two steps a question, everything right unless said otherwise."""
    row = dict.fromkeys(COUNTS, 0.0) | {"total": 10, "right": 10, "exact": 1, "answers": 1}
    row |= {"tokens": 10, "steps": 2, "accepted": 6}
    columns = {name: np.full(questions, float(value)) for name, value in row.items()}
    return Counts(**columns | {name: np.asarray(value, float) for name, value in given.items()})


def line(taus: list[float], retained: list[float]) -> Curve:
    """A curve without spread, over three resamples."""
    names = ("lossless", *(f"p{i}" for i in range(1, len(taus))))
    return Curve(names, np.tile(taus, (3, 1)), np.tile(retained, (3, 1)))


def test_crossings_lie_on_the_line_between_two_points() -> None:
    """Taking the next measured point instead would flatter whatever has sparse points."""
    random = line([4.0, 5.0, 6.0, 7.0], [1.0, 0.98, 0.90, 0.95])
    assert random.tau_where_lost(0.95) == pytest.approx([5.375] * 3)
    assert np.isnan(random.tau_where_lost(0.5)).all()
    other = line([4.0, 6.0, 8.0], [1.0, 1.0, 0.9])
    assert other.retained_at(np.full(3, 7.0)) == pytest.approx([0.95] * 3)
    assert other.retained_at(np.full(3, 4.0)) == pytest.approx([1.0] * 3)
    assert np.isnan(other.retained_at(np.full(3, 8.5))).all()


def test_best_point_is_within_the_loss() -> None:
    assert line([4.0, 5.0, 6.0], [1.0, 0.996, 0.99]).best_within(0.005) == 1
    assert line([4.0, 5.0], [1.0, 0.9]).best_within(0.005) == 0


def test_what_equals_lossless_retains_everything_without_spread() -> None:
    """Resampling policies apart from one another would give an interval around 1 here."""
    rng = np.random.default_rng(3)
    right = rng.integers(0, 11, 50)
    same = counts(50, right=right)
    found = figures(same, counts(50, right=right), Resamples(50))
    assert found["fields_retained"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["fields_right"]["low"] < right.mean() / 10 < found["fields_right"]["high"]
    assert found["tau"]["value"] == pytest.approx(4.0)


def test_intervals_cover() -> None:
    """A ratio's interval, over 300 samples of 80 questions. 95 % nominally; fewer than 240 covered
    would have a probability below 1e-9 even at 90 %.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        right = rng.binomial(10, 0.7, 80)
        found = interval(
            Resamples(80, resamples=400, seed=seed).ratio(right * 1.0, np.full(80, 10.0))
        )
        covered += found.low <= 0.7 <= found.high
    assert covered >= 240


def test_weighted_medians() -> None:
    resamples = Resamples(7)
    values = np.array([3.0, 1.0, np.nan, 2.0, 9.0, 5.0, 4.0])
    medians = resamples.median(values)
    assert medians[0] == 3.0  # the lower of the two middle ones
    for weights, median in zip(resamples.weights[1:50], medians[1:50], strict=True):
        drawn = np.repeat(values, weights.astype(int))
        drawn = np.sort(drawn[~np.isnan(drawn)])
        assert median == drawn[(len(drawn) - 1) // 2]


def table(good: float) -> dict[str, Counts]:
    """Random relaxation loses 2, 6 and 20 %, the weighted one what `good` says, at the same τ."""
    made = {"lossless": counts(40)}
    for i, lost in enumerate((0.2, 0.6, 2.0), 1):
        made[f"r{i}"] = counts(40, right=np.full(40, 10 - lost), accepted=np.full(40, 6 + 2 * i))
        kept = np.full(40, 10 - lost * good)
        made[f"w{i}"] = counts(40, right=kept, accepted=np.full(40, 6 + 2 * i))
    return made


@pytest.mark.parametrize(("good", "met"), [(0.0, True), (0.5, False)])
def test_goals(good: float, met: bool) -> None:
    """Reporting goals as met whatever was measured."""
    made, resamples = table(good), Resamples(40)
    curves = {
        "random": curve(["r1", "r2", "r3"], made, resamples),
        "weighted": curve(["w1", "w2", "w3"], made, resamples),
    }
    found = goals(curves, (curves, curves), random="random", weighted=["weighted"], named=None)
    speed, quality = found["equal_speed"], found["equal_quality"]
    assert speed["tau_where_random_loses"]["value"] == pytest.approx(5.75)
    assert speed["families"]["weighted"]["met"] is met
    assert speed["families"]["weighted"]["retained"]["value"] == pytest.approx(1 - 0.05 * good)
    assert speed["chosen"]["met"] is met
    assert quality["families"]["weighted"]["met"] is met
    assert quality["families"]["weighted"]["point"] == ("w3" if met else "lossless")
    assert quality["families"]["random"]["tau_ratio"]["value"] == 1.0


def test_what_does_not_go_so_far_has_not_met_the_goal() -> None:
    made, resamples = table(0.0), Resamples(40)
    curves = {
        "random": curve(["r1", "r2", "r3"], made, resamples),
        "short": curve(["w1"], made, resamples),
    }
    found = goals(curves, (curves, curves), random="random", weighted=["short"], named="short")
    entry = found["equal_speed"]["families"]["short"]
    assert not entry["met"]
    assert not entry["reached"]
    assert "chosen" not in found["equal_speed"]
