"""The table of drafters, at toy size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specdec.drafters import NgramDrafter, TextOnlyDrafter
from specdec.eval import drafter_bench, suite
from specdec.eval.comparison import GateError
from specdec.eval.drafter_bench import Contender, measure
from specdec.tree import Dynamic, chain


def run(small: Any, count: int = 3) -> dict[str, Any]:
    each = [
        Contender("text", TextOnlyDrafter(small.drafter), chain(3)),
        Contender("ngram", NgramDrafter(), Dynamic(4, 3, 2)),
    ]
    asked = small.questions[:count]
    inputs = [suite.model_inputs(small.model, small.processor, [one]) for one in asked]
    return measure(
        small.model, each, inputs, [one.task for one in asked], bound=0.0, max_new_tokens=8
    )


def test_every_task_is_summed_up(small: Any) -> None:
    """Answers counted under another task or drafter, or the bytes of one that keeps none."""
    result = run(small)
    tasks = {one.task for one in small.questions[:3]}
    assert result["drafters"].keys() == {"text", "ngram"}
    for entry in result["drafters"].values():
        assert entry["tasks"].keys() == {"all", *tasks}
        parts = [entry["tasks"][task] for task in tasks]
        whole = entry["tasks"]["all"]
        for name in ("questions", "tokens", "num_spec_steps", "num_draft_tokens"):
            assert whole[name] == sum(part[name] for part in parts)
        assert whole["tokens"] == 3 * 8
        for speed in (whole["speedup_decode"], whole["speedup_end_to_end"]):
            assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert result["drafters"]["text"]["kv_bytes"] > 0
    assert result["drafters"]["ngram"]["kv_bytes"] == 0
    json.dumps(result)


def test_no_times_of_wrong_answers(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = drafter_bench.generate

    def planted(*args: Any, **how: Any) -> Any:
        out = generate(*args, **how)
        out[0, -1] += 1
        return out

    monkeypatch.setattr(drafter_bench, "generate", planted)
    with pytest.raises(GateError, match="no speeds"):
        run(small, 1)
