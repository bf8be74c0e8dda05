"""One interleaved comparison of methods: gate, time, check again, sum up.

Knows nothing of command lines, files or tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.progress import track
from transformers import PreTrainedModel

from specdec.eval.methods import REFERENCE, YARDSTICK
from specdec.eval.timing import (
    Check,
    Inputs,
    Method,
    Run,
    Said,
    check,
    counted_forwards,
    forward_costs,
    interleaved,
    ratio,
)
from specdec.stats import AcceptanceStats
from specdec.verifiers.spec import read_spec

WARM_UP = 4  # questions


class GateError(Exception):
    """A method's tokens are not those of ``model.generate``."""


def compare(
    model: PreTrainedModel,
    drafter: PreTrainedModel,
    methods: Sequence[Method],
    asked: Sequence[Inputs],
    *,
    bound: float,
    rounds: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Gate, then time.

    Args:
        bound: gap in logits below which two tokens count as tied; 0 in fp32.

    Raises:
        GateError: tokens differ; no times are handed out.
    """
    warm, forwards, refused = _warm_up(model, methods, asked[:WARM_UP], bound)
    methods = [method for method in methods if method.name not in refused]
    runs: dict[str, list[list[Run]]] = {m.name: [[] for _ in asked] for m in methods}
    timed = interleaved(methods, asked, rounds)
    total = rounds * len(asked) * len(methods)
    for number, name, run in track(timed, "timing", total, disable=not progress):
        runs[name][number].append(run)
    checks = gate(
        model,
        methods,
        asked,
        {name: [each[-1].said for each in rows] for name, rows in runs.items()},
        bound,
    )
    visual = read_spec(model).visual_token_ids
    costs = forward_costs(model, drafter, asked[:: max(1, len(asked) // 20)], visual)
    return {
        "tie_bound_logits": bound,
        "warm_up_tokens_checked": {name: result.tokens for name, result in warm.items()},
        "forward_ms": costs._asdict(),
        "methods": _summaries(runs, checks, forwards),
        "refused": refused,
    }


def _warm_up(
    model: PreTrainedModel, methods: Sequence[Method], asked: Sequence[Inputs], bound: float
) -> tuple[dict[str, Check], dict[str, float], dict[str, str]]:
    """Checks, tokens per verifier forward behind the prefill, and the errors of those that refuse.

    Raises:
        GateError: tokens differ.
    """
    said: dict[str, list[Said]] = {}
    per_forward: dict[str, float] = {}
    refused: dict[str, str] = {}
    for method in methods:
        with counted_forwards(model) as count:
            try:
                said[method.name] = [method.run(inputs) for inputs in asked]
            except Exception as error:  # whatever another library raises is what the table says
                if method.ours:
                    raise
                refused[method.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                continue
        tokens = sum(len(each.tokens) - 1 for each in said[method.name])
        per_forward[method.name] = tokens / max(count[0] - len(asked), 1)
    able = [method for method in methods if method.name not in refused]
    return gate(model, able, asked, said, bound), per_forward, refused


def gate(
    model: PreTrainedModel,
    methods: Sequence[Method],
    asked: Sequence[Inputs],
    said: Mapping[str, Sequence[Said]],
    bound: float,
) -> dict[str, Check]:
    """How each method's answers compare with the reference's.

    Raises:
        GateError: those of one that is ours are others.
    """
    checks = {m.name: check(model, asked, said[REFERENCE], said[m.name], bound) for m in methods}
    for method in methods:
        result = checks[method.name]
        if method.ours and result.wrong:
            raise GateError(
                f"{method.name}: {result.wrong} of {result.answers} answers are not those of "
                f"model.generate (widest gap {result.widest:.3g} logits, allowed {bound}); "
                "no speeds are reported"
            )
    return checks


def _summaries(
    runs: Mapping[str, list[list[Run]]],
    checks: Mapping[str, Check],
    forwards: Mapping[str, float],
) -> dict[str, Any]:
    """One entry per method."""
    per_token = {
        name: [statistics.mean(run.ms_per_token for run in rows) for rows in questions]
        for name, questions in runs.items()
    }
    result = {}
    for name, questions in runs.items():
        stats = AcceptanceStats()
        for run in (run for rows in questions for run in rows if run.said.stats is not None):
            assert run.said.stats is not None
            stats.merge(run.said.stats)
        entry: dict[str, Any] = {
            "ms_per_token_median": statistics.median(per_token[name]),
            "tokens": sum(len(rows[-1].said.tokens) for rows in questions),
            "ratio_to_generate": ratio(per_token[REFERENCE], per_token[name])._asdict(),
            "tokens_per_verifier_forward_in_warm_up": forwards[name],
            "check": asdict(checks[name]),
        }
        if YARDSTICK in per_token:
            entry["ratio_to_yardstick"] = ratio(per_token[YARDSTICK], per_token[name])._asdict()
        if stats.num_spec_steps:
            entry |= {"acceptance": stats.to_dict(), "step_shares": _shares(stats)}
        result[name] = entry
    return result


def _shares(stats: AcceptanceStats) -> dict[str, float]:
    """Of the time in steps, prefill excluded: the share of each phase, and of everything outside
    the two models' forwards. Empty where phases were not timed.
    """
    times = stats.times
    if not times.step:
        return {}
    shares = {p: getattr(times, p) / times.step for p in ("draft", "verify", "accept", "commit")}
    return {**shares, "outside_models": times.overhead}
