"""Records as `specdec bench` writes them, made up: every figure differs from every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]  # Any: JSON values

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
REFERENCE = "transformers generate"
TASKS = ("grid_cell", "receipt_json", "shapes_at")


def interval(median: float, spread: float = 0.05) -> dict[str, float]:
    return {"median": median, "low": median - spread, "high": median + spread}


def figures(speedup: float, tau: float | None = None, fidelity: float | None = 0.97) -> Record:
    """Of all questions or of one task; ``tau`` is there if the method counts acceptance."""
    acceptance = None
    if tau is not None:
        steps = 100
        accepted = round(steps * (tau - 1))
        falling = [round(steps * (1 - 1 / tau) ** depth) for depth in range(1, 5)]
        acceptance = {
            "mean_acceptance_length": tau,
            "draft_acceptance_rate": accepted / (4 * steps),
            "num_spec_steps": steps,
            "num_plain_steps": 0,
            "num_draft_tokens": 4 * steps,
            "num_accepted_draft_tokens": accepted,
            "num_accepted_tokens_per_pos": falling,
        }
    return {
        "questions": 12,
        "tokens": 480,
        "length_ratio": 1.0,
        "speedup_decode": interval(speedup * 1.1),
        "speedup_end_to_end": interval(speedup),
        "ms_per_token": 7.0 / speedup,
        "tokens_per_second": 1000 * speedup / 7.0,
        "ttft_ms": {"p50": 24.3, "p95": 31.0},
        "inter_token_ms": {"p50": 6.1, "p95": 8.7, "p99": 9.9},
        "shares": {
            **{"vision": 0.05, "prefill": 0.15, "draft": 0.125, "verify": 0.5},
            **{"accept": 0.075, "commit": 0.06, "other": 0.04},
        }
        if tau is not None
        else None,
        "acceptance": acceptance,
        "fidelity": None if fidelity is None else {"metric": "facts", "score": fidelity},
    }


def method(
    name: str,
    speedup: float,
    tau: float | None = None,
    *,
    drafter: str | None = None,
    ours: bool = True,
    lossless: bool = True,
    batch: int = 1,
    temperature: float = 0.0,
    fidelity: float | None = 0.97,
) -> Record:
    """A method that ran."""
    compared = lossless and not temperature
    return {
        "name": name,
        "ours": ours,
        "drafter": drafter,
        "tree": "chain of 4" if drafter else None,
        "policy": "lossless" if lossless else "relaxed",
        "batch": batch,
        "temperature": temperature,
        "lossless": lossless,
        "refused": None,
        "gate": {"answers": 12, "tokens": 480, "ties": 1, "wrong": 0, "widest_gap_logits": 0.02}
        if compared
        else None,
        "overall": figures(speedup, tau, fidelity),
        "tasks": {
            task: figures(speedup, tau and tau * (0.9 + 0.1 * place), fidelity)
            for place, task in enumerate(TASKS)
        },
        "modalities": {
            "image": {"drafted": 212, "accepted": 116},
            "words": {"drafted": 431, "accepted": 377},
        }
        if drafter
        else None,
        "efficiency": 0.93 if drafter else None,
        "memory": {"peak_bytes": 3 * 2**20, "kv_bytes": 2**20, "drafter_kv_bytes": None},
    }


def refused(name: str, reason: str) -> Record:
    """A method that would not run."""
    return {
        **{"name": name, "ours": False, "drafter": None, "tree": None, "policy": "lossless"},
        **{"batch": 1, "temperature": 0.0, "lossless": True, "refused": reason},
    }


def answer(number: int) -> Record:
    """For the viewer."""
    tokens = [
        {"text": "The", "origin": "own", "v": None},
        {"text": " number", "origin": "drafted", "v": None},
        {"text": " is", "origin": "drafted", "v": None},
        {"text": " 6", "origin": "relaxed", "v": 0.312},
        {"text": ".", "origin": "own", "v": None},
    ]
    return {
        "question": number,
        "task": TASKS[number % len(TASKS)],
        "prompt": f"Read row {number + 1}, column 1.",
        "images": [PIXEL],
        "reference": "The number is 6.",
        "methods": {"eagle-shared, chain of 4": tokens, "ngram, chain of 4": tokens[:2]},
    }


def record(**changed: Any) -> Record:
    """A whole record; ``changed`` replaces parts of it."""
    made: Record = {
        "schema": "specdec.bench/1",
        "command": "specdec bench --questions 12",
        "machine": {
            **{"cpu": "A Processor", "cores": 2, "threads": 1, "system": "Linux"},
            **{"torch": "2.13.0", "transformers": "5.23.0", "specdec": "0123456789ab"},
        },
        "started": "2026-03-01T12:00:00+00:00",
        "wall_seconds": 123.4,
        "model": {
            **{"name": "lvlm", "architecture": "LlavaForConditionalGeneration"},
            **{"parameters": 16_400_000, "dtype": "bfloat16", "device": "cpu"},
        },
        "questions": {
            "source": "suite",
            "count": 12,
            "seed": None,
            "tasks": dict.fromkeys(TASKS, 4),
        },
        "settings": {
            **{"max_new_tokens": 160, "rounds": 1, "warm_up": 2, "tie_bound_logits": 0.25},
            "bootstrap": {"resamples": 2000, "seed": 0},
        },
        "forwards": {
            **{
                "prefill_ms": 23.0,
                "vision_ms": 6.0,
                "one_ms": 7.1,
                "nodes_ms": {"5": 8.0, "9": 8.9},
            },
            "level_ms": {"eagle-shared": 1.0},
        },
        "reference": REFERENCE,
        "methods": [
            method(REFERENCE, 1.0, ours=False),
            method("eagle-shared, chain of 4", 2.17, 3.41, drafter="eagle-shared"),
            method("ngram, chain of 4", 1.32, 1.66, drafter="ngram"),
            method(
                "eagle-shared, relaxed",
                2.58,
                3.93,
                drafter="eagle-shared",
                lossless=False,
                fidelity=0.951,
            ),
            method("transformers prompt lookup", 1.21, ours=False),
            refused("transformers assisted", "ValueError: other tokens"),
        ],
        "answers": [answer(0), answer(1)],
    }
    return made | changed


def nulls(part: Any) -> Any:
    """``part`` with null in place of every figure that may be null."""
    nullable = {
        *("drafter", "tree", "gate", "modalities", "efficiency", "memory", "shares", "acceptance"),
        *("fidelity", "speedup_decode", "speedup_end_to_end", "forwards", "answers", "seed"),
    }
    if isinstance(part, Mapping):
        return {name: None if name in nullable else nulls(value) for name, value in part.items()}
    return [nulls(each) for each in part] if isinstance(part, list) else part
