"""How much of the lossless answers' quality a policy retains, and at which acceptance length.

Pure computations over counts per question. Every interval comes from one set of bootstrap
resamples of the questions, so policies are compared on the same ones. Knows no model and no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 2000
COUNTS = (
    *("total", "right", "exact", "answers", "ended", "same", "similarity"),
    *("tokens", "relaxed", "steps", "accepted", "spent"),
)


class Interval(NamedTuple):
    """A figure with its central 95 % bootstrap interval; nan where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """What a policy's answers came to, per question ``(Q,)``, summed over its samples.

    Attributes:
        total: fields asked for.
        right: fields stated rightly, by answers that ended.
        exact: answers that ended and state every field rightly.
        answers: answers.
        ended: those that were not cut off.
        same: those that are the lossless ones, token by token.
        similarity: to the lossless answers, in [0, 1], summed over answers.
        tokens: of the answers.
        relaxed: tokens that lossless acceptance would have refused.
        steps: of the verifier.
        accepted: drafted tokens that were accepted.
        spent: of the bound.
    """

    total: Values
    right: Values
    exact: Values
    answers: Values
    ended: Values
    same: Values
    similarity: Values
    tokens: Values
    relaxed: Values
    steps: Values
    accepted: Values
    spent: Values

    @classmethod
    def gather(cls, rows: Sequence[Mapping[str, float]]) -> Counts:
        """From one mapping a question."""
        columns = {name: np.array([float(row[name]) for row in rows]) for name in COUNTS}
        return cls(**columns)


class Resamples:
    """Bootstrap resamples of Q questions: ``weights`` ``(R, Q)``, the first row is the sample."""

    def __init__(self, questions: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(questions, np.full(questions, 1 / questions), size=resamples)
        self.weights: Values = np.vstack([np.ones(questions), drawn]).astype(np.float64)

    def ratio(self, above: Values, below: Values) -> Values:
        """``Σ above / Σ below`` in each resample, ``(R,)``; nan where nothing lies below."""
        tops, bottoms = self.weights @ above, self.weights @ below
        quotient: Values = np.full(len(tops), np.nan)
        np.divide(tops, bottoms, out=quotient, where=bottoms != 0)
        return quotient

    def median(self, values: Values) -> Values:
        """The median over questions in each resample, ``(R,)``; nan values are left out."""
        known = ~np.isnan(values)
        order = np.argsort(values[known])
        weights = self.weights[:, known][:, order].cumsum(1)
        place = (weights >= weights[:, -1:] / 2).argmax(1)
        medians: Values = values[known][order][place]
        return medians


def interval(values: Values) -> Interval:
    """Of one figure per resample, ``(R,)``, the sample's own first."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or not len(drawn):
        return Interval(float(values[0]), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


@dataclass(frozen=True)
class Curve:
    """One family of policies from strict to permissive, lossless first, in each resample.

    Attributes:
        names: of its P points, lossless among them.
        taus: mean acceptance length ``(R, P)``.
        retained: accuracy as a share of the lossless one's, ``(R, P)``.
    """

    names: tuple[str, ...]
    taus: Values
    retained: Values

    def tau_where_lost(self, level: float) -> Values:
        """``(R,)``: τ where ``retained`` first falls below ``level``, linearly between two points;
        nan where it never does.
        """
        return self._first(self.retained, self.taus, level, falling=True)

    def retained_at(self, tau: Values) -> Values:
        """``(R,)``: what is retained where τ first reaches ``tau`` ``(R,)``; nan if never."""
        return self._first(self.taus, self.retained, tau, falling=False)

    def _first(
        self, along: Values, wanted: Values, level: float | Values, *, falling: bool
    ) -> Values:
        sign = -1.0 if falling else 1.0
        past = sign * (along - np.broadcast_to(np.asarray(level), along.shape[:1])[:, None])
        over = past > 0 if falling else past >= 0
        rows = np.arange(len(along))
        right = over.argmax(1)
        left = np.maximum(right - 1, 0)
        before, behind = past[rows, left], past[rows, right]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(right > left, -before / (behind - before), 0.0)
        found = wanted[rows, left] + share * (wanted[rows, right] - wanted[rows, left])
        return np.where(over.any(1), found, np.nan)

    def best_within(self, loss: float, resample: int = 0) -> int:
        """The point of largest τ among those that lose at most ``loss`` in this resample. Lossless
        always does.
        """
        kept = self.retained[resample] >= 1 - loss
        return int(np.where(kept, self.taus[resample], -np.inf).argmax())


def curve(
    names: Sequence[str],
    table: Mapping[str, Counts],
    resamples: Resamples,
    *,
    metric: str = "right",
    lossless: str = "lossless",
) -> Curve:
    """The curve through lossless and the points ``names``."""
    whole = (lossless, *names)
    base = getattr(table[lossless], metric)
    taus = [1 + resamples.ratio(table[name].accepted, table[name].steps) for name in whole]
    kept = [resamples.ratio(getattr(table[name], metric), base) for name in whole]
    return Curve(whole, np.stack(taus, 1), np.stack(kept, 1))


def figures(counts: Counts, lossless: Counts, resamples: Resamples) -> dict[str, Any]:
    """A policy's row: each figure with its interval."""
    ratio = resamples.ratio
    tau = 1 + ratio(counts.accepted, counts.steps)
    pairs: dict[str, Callable[[], Values]] = {
        "tau": lambda: tau,
        "tau_ratio": lambda: tau / (1 + ratio(lossless.accepted, lossless.steps)),
        "fields_right": lambda: ratio(counts.right, counts.total),
        "answers_right": lambda: ratio(counts.exact, counts.answers),
        "fields_retained": lambda: ratio(counts.right, lossless.right),
        "answers_retained": lambda: ratio(counts.exact, lossless.exact),
        "ended": lambda: ratio(counts.ended, counts.answers),
        "same_answer": lambda: ratio(counts.same, counts.answers),
        "similarity": lambda: ratio(counts.similarity, counts.answers),
        "relaxed_share": lambda: ratio(counts.relaxed, counts.tokens),
        "spent_per_answer": lambda: ratio(counts.spent, counts.answers),
    }
    return {name: interval(compute())._asdict() for name, compute in pairs.items()}
