"""What the runs of a benchmark come to. Pure computations.

Every figure is of the same questions for all methods. Speedups are medians of the ratios per batch,
with 95 % bootstrap intervals over the batches; *decode* leaves out what comes before the first
token. Times between tokens are those at which a caller sees them: tokens of one step come together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any  # JSON values

import numpy as np

from specdec.eval.bench_methods import Ran
from specdec.eval.timing import ratio
from specdec.stats import AcceptanceStats

Runs = Sequence[tuple[int, Ran]]  # of one method: number of the batch, and what came of it


def figures(
    runs: Runs,
    reference: Runs,
    scores: Sequence[float] | None,
    metric: str | None,
    seed: int,
    vision: float = 0.0,
) -> dict[str, Any]:
    """Figures of a method on some batches.

    Args:
        runs: of the method, in the order of ``reference``.
        reference: of what it is compared with.
        scores: of its answers, as far as they can be told; ``None`` or none of them: no fidelity.
        metric: what they are called.
        seed: of the bootstrap.
        vision: the vision tower's share of prefill.
    """
    tokens = sum(map(_tokens, runs))
    seconds = sum(ran.seconds for _, ran in runs)
    stats = _merged(runs)
    answers = [answer for _, ran in runs for answer in ran.answers]
    timed = [answer.times for answer in answers if answer.times]
    gaps = [b - a for times in timed for a, b in pairwise(times)]
    return {
        "questions": len(answers),
        "tokens": tokens,
        "length_ratio": tokens / sum(map(_tokens, reference)),
        "speedup_decode": _speedup(_decode, runs, reference, seed),
        "speedup_end_to_end": _speedup(_whole, runs, reference, seed),
        "ms_per_token": 1000 * seconds / tokens,
        "tokens_per_second": tokens / seconds,
        "ttft_ms": _percentiles([times[0] for times in timed], (50, 95)),
        "inter_token_ms": _percentiles(gaps, (50, 95, 99)),
        "shares": None if stats is None else _shares(stats, seconds, vision),
        "acceptance": stats.to_dict() if stats is not None and stats.num_spec_steps else None,
        "fidelity": {"metric": metric, "score": float(np.mean(scores))} if scores else None,
    }


def _tokens(run: tuple[int, Ran]) -> int:
    return sum(len(answer.tokens) for answer in run[1].answers)


def _whole(run: tuple[int, Ran]) -> float | None:
    """Seconds a token."""
    return run[1].seconds / _tokens(run)


def _decode(run: tuple[int, Ran]) -> float | None:
    """Seconds a token behind the first ones; ``None`` if there are none, or nobody timed them."""
    answers = run[1].answers
    later = _tokens(run) - len(answers)
    if not later or not all(answer.times for answer in answers):
        return None
    return (run[1].seconds - max(answer.times[0] for answer in answers)) / later


def _speedup(
    cost: Callable[[tuple[int, Ran]], float | None], runs: Runs, reference: Runs, seed: int
) -> dict[str, float] | None:
    pairs = [(cost(plain), cost(ran)) for plain, ran in zip(reference, runs, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        return None
    plain, ours = zip(*known, strict=True)
    return ratio(plain, ours, seed=seed)._asdict()


def _merged(runs: Runs) -> AcceptanceStats | None:
    found = [ran.stats for _, ran in runs if ran.stats is not None]
    if not found:
        return None
    stats = AcceptanceStats()
    for each in found:
        stats.merge(each)
    return stats


def _shares(stats: AcceptanceStats, seconds: float, vision: float) -> dict[str, float] | None:
    """Of the whole time; ``None`` of a method that does not say."""
    phases = ("prefill", "draft", "verify", "accept", "commit")
    shares = {phase: getattr(stats.times, phase) / seconds for phase in phases}
    if not any(shares.values()):
        return None
    other = max(0.0, 1.0 - sum(shares.values()))
    prefill = shares.pop("prefill")
    return {"vision": vision * prefill, "prefill": (1 - vision) * prefill, **shares, "other": other}


def _percentiles(seconds: Sequence[float], which: Sequence[int]) -> dict[str, float] | None:
    """In milliseconds."""
    if not seconds:
        return None
    values = np.percentile(seconds, which)
    return {f"p{p}": 1000 * float(value) for p, value in zip(which, values, strict=True)}
