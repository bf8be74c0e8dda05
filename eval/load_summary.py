"""What a server did under load, in figures, and which of its promises that keeps or breaks.

Pure computations over what clients saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from specdec.eval.load_orders import Outcome
from specdec.eval.load_prompts import Reference, Verdict
from specdec.stats import AcceptanceStats

STEADY_SECONDS = 300.0  # runs that are shorter are still warming up: their memory is not judged
GROWTH = 0.02  # of the memory held, over the last two thirds of a run


class Judged(NamedTuple):
    """Answers compared with the right ones. ``wrong`` describes those that are not."""

    whole: int
    begun: int
    tied: int
    widest: float
    wrong: list[str]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """For the record."""
        return {
            "compared_whole": self.whole,
            "compared_beginnings": self.begun,
            "ties": self.tied,
            "widest_tie_logits": self.widest,
            "wrong": len(self.wrong),
            "wrong_examples": self.wrong[:5],
        }


class Sample(NamedTuple):
    """Memory at a time: seconds since the load began, and bytes."""

    seconds: float
    resident: int


def judge(outcomes: Iterable[Outcome], references: Sequence[Reference]) -> Judged:
    """Every greedy answer that ended, and the beginnings of those that were hung up on."""
    known: dict[tuple[int, int, str, bool], Verdict] = {}  # the same answers come many times
    whole = begun = tied = 0
    widest, wrong = 0.0, []
    for outcome in outcomes:
        order = outcome.order
        if order.sampled or outcome.status != 200 or outcome.end not in ("whole", "hung up"):
            continue
        right = references[order.prompt]
        for text, finish in zip(outcome.texts, outcome.finish, strict=True):
            ended = finish is not None
            if not text and not ended and outcome.end == "hung up":
                continue  # nothing came of it
            whole, begun = whole + ended, begun + (not ended)
            key = (order.prompt, order.most, text, ended)
            if key not in known:
                known[key] = right.judge(text, order.most, whole=ended)
            verdict = known[key]
            tied += verdict.kind == "tied"
            widest = max(widest, verdict.gap)
            stops = finish if verdict.kind == "tied" or not ended else right.finish(order.most)
            if verdict.kind == "wrong" or finish != stops or (outcome.end == "whole") > ended:
                wrong.append(
                    f"prompt {order.prompt}, {order.most} tokens, {outcome.end}: {text!r} "
                    f"({finish}), not {right.text(order.most)!r} ({right.finish(order.most)})"
                )
    return Judged(whole, begun, tied, widest, wrong)


def percentiles(seconds: Iterable[float]) -> dict[str, float] | None:
    """p50, p95 and p99 in milliseconds; ``None`` of nothing."""
    values = 1000 * np.fromiter(seconds, float)
    if not len(values):
        return None
    found = np.percentile(values, (50, 95, 99)).round(3).tolist()
    return dict(zip(("p50", "p95", "p99"), found, strict=True))


def latencies(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Milliseconds as clients saw them, by what they were waiting for, from when they first asked;
    ``let_in``: from when there was room for them.
    """
    whole = [each for each in outcomes if each.end == "whole"]
    streamed = [each for each in outcomes if each.order.stream]
    firsts = [(each, each.first) for each in streamed if each.first is not None]
    by_token = [
        (each.seconds - each.first) / (each.tokens / each.order.samples - 1)
        for each in whole
        if each.first is not None and each.tokens > each.order.samples
    ]
    return {
        "first_token_ms": percentiles(seconds for _, seconds in firsts),
        "first_token_ms_by_priority": {
            str(level): percentiles(s for each, s in firsts if each.order.priority == level)
            for level in sorted({each.order.priority for each, _ in firsts}, reverse=True)
        },
        "inter_token_ms": percentiles(by_token),
        "between_pieces_ms": percentiles(gap for each in streamed for gap in each.gaps),
        "end_to_end_ms": percentiles(each.seconds for each in whole),
        "let_in": {
            "first_token_ms": percentiles(seconds - each.refused for each, seconds in firsts),
            "end_to_end_ms": percentiles(each.seconds - each.refused for each in whole),
        },
    }


def traffic(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """How much was asked and answered."""
    whole = [each for each in outcomes if each.end == "whole"]
    return {
        "requests": len(outcomes),
        "ends": dict(Counter(each.end for each in outcomes)),
        "status": {str(code): n for code, n in Counter(o.status for o in outcomes).items()},
        "streamed": sum(each.order.stream for each in outcomes),
        "refusals": sum(each.refusals for each in outcomes),
        "refused_and_answered": sum(each.refusals > 0 for each in whole),
        "answer_tokens": sum(each.tokens for each in whole),
        "cached_tokens": sum(each.cached for each in whole),
        "answered_per_second": len(whole) / seconds,
        "tokens_per_second": sum(each.tokens for each in whole) / seconds,
    }


def speculation(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """What the responses say of it, taken together."""
    names = "num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens"
    told = [each.speculation for each in outcomes if each.speculation]
    stats = AcceptanceStats(**{name: sum(each[name] for each in told) for name in names})
    return {
        **{name: getattr(stats, name) for name in names},
        "mean_acceptance_length": stats.mean_acceptance_length,
        "draft_acceptance_rate": stats.draft_acceptance_rate,
    }


def memory(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """How much is held, and how fast that grows over the last two thirds; ``None``: not known."""
    late = samples[len(samples) // 3 :]
    if len(late) < 2:
        return None
    times = np.array([each.seconds for each in late])
    held = np.array([each.resident for each in late], float)
    slope = float(np.polyfit(times, held, 1)[0])
    spanned = float(times[-1] - times[0])
    return {
        "samples": len(samples),
        "start_mib": samples[0].resident / 2**20,
        "median_mib": float(np.median(held)) / 2**20,
        "end_mib": samples[-1].resident / 2**20,
        "slope_kib_per_minute": 60 * slope / 2**10,
        "growth": slope * spanned / float(np.median(held)),
    }


def gates(record: Mapping[str, Any]) -> dict[str, bool]:
    """What a server promises under load, and whether this one kept it."""
    traffic, server, last = record["traffic"], record["server"], record["drain"]
    held = record["memory"]
    found = {
        "answers": record["answers"]["wrong"] == 0 and record["answers"]["compared_whole"] > 0,
        "no_failures": traffic["ends"].get("failed", 0) == 0,
        "no_5xx": not any(int(code) >= 500 for code in traffic["status"]),
        "pages_given_back": server["pages_after"] == 0 and server["pages_most"] > 0,
        "no_tracebacks": server["tracebacks"] == 0,
        "drained": last["running"] > 0 and last["wrong"] == 0 and last["whole"] == last["asked"],
        "exit_code": last["exit_code"] == 0,
    }
    if held is not None and record["seconds"] >= STEADY_SECONDS:
        found["memory"] = held["growth"] <= GROWTH
    return found
