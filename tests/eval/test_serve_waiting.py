"""How long prompts wait, and others for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from specdec.engine.intake import Intake
from specdec.eval import serve_waiting
from support import families


def test_prompts_arrive_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that hold up everybody else, whatever the size of the steps: then all sizes would be
    found alike.
    """
    sizes: list[int] = []
    pieces = Intake.pieces

    def seen(self: Intake, most: int) -> Any:
        found = pieces(self, most)
        sizes.extend(piece.most for _, piece in found)
        return found

    monkeypatch.setattr(Intake, "pieces", seen)
    llava = families.build("llava")
    asked = [llava.inputs(seed, 30 + seed) for seed in range(3)]
    how: dict[str, Any] = {"background": 1, "newcomers": 2, "step_tokens": (8,), "tokens": 8}
    found = asyncio.run(serve_waiting.measure(llava.model, None, asked, **how))
    assert len(sizes) >= sum(each["input_ids"].shape[1] for each in asked) / 8
    first, beside = found["arrivals"]
    assert (first["background"], beside["background"]) == (0, 1)
    for each in (first, beside):
        assert each["max_step_tokens"] == 8
        assert each["first_token_ms"]["p50"] > 0
    assert beside["between_pieces_ms"]["p99"] > 0
    assert found["crowd"]["later_than_limits"] == 0
