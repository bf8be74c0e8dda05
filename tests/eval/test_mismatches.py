from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.eval import mismatches
from specdec.training.counterfactual import Judged


def judged(argmax: list[int], dependent: list[int], drafted: list[int]) -> Judged:
    tensors = [torch.tensor(row) for row in (argmax, dependent, drafted)]
    none = torch.zeros(len(argmax))
    return Judged(tensors[0], tensors[1].bool(), tensors[2], none, None, None)


def test_counts_of_known_answers() -> None:
    """Mismatches that the image explains, counted as those that it does not."""
    counts = mismatches.Counts()
    counts.add(judged([5, 6, 7, 8], [1, 0, 0, 1], [9, 9, 7, 8]))
    other = mismatches.Counts()
    other.add(judged([5, 6], [0, 0], [1, 1]))
    result = mismatches.report({"a": counts, "b": other})
    total = result["total"]
    assert total["tokens"] == 6
    assert total["dependent_tokens"] == 2
    assert total["mismatches"] == 4
    assert total["independent_mismatches"] == 3
    assert total["mismatch_share"] == pytest.approx(4 / 6)
    assert total["independent_share"] == pytest.approx(3 / 4)
    assert result["tasks"]["b"]["independent_mismatches"] == 2


def test_each_task_gets_its_own_answers(small: Any) -> None:
    table = mismatches.compare(
        small.model, small.processor, small.drafter, small.questions, max_new_tokens=6, batch=4
    )
    assert sorted(table) == ["one", "two"]
    assert table["one"].tokens <= 6 * 4
    assert table["two"].tokens <= 6 * 2
    assert all(counts.dependent_tokens > 0 for counts in table.values())
