"""The comparison of forwards over pages with transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from specdec.eval.forwards import compare
from specdec.runtime import PagedModel
from support import families


def test_a_case_reports_every_forward() -> None:
    """Forty tokens over three pages, scattered and in a row, must give transformers' logits."""
    result = compare(families.causal_lm(0, layers=2), 40, 3, 2, 1e-4)
    names = ["DynamicCache", "paged, in a row", "paged, scattered"]
    assert list(result["ratio"]) == list(result["ms"]) == names
    assert result["ratio"]["DynamicCache"] == 1
    assert max(result["logits_differ_by"].values()) < 1e-5


def test_no_time_is_given_for_wrong_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fast forward that computes something else."""
    forward = PagedModel.forward

    def wrong(self: PagedModel, *args: Any, **kwargs: Any) -> Tensor:
        return forward(self, *args, **kwargs).roll(1, -1)

    monkeypatch.setattr(PagedModel, "forward", wrong)
    with pytest.raises(ValueError, match="paged, in a row: logits differ"):
        compare(families.causal_lm(0), 20, 2, 1, 1e-4)
