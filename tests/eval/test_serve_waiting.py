"""How long prompts wait, and others for them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.engine.intake import Intake
from specdec.eval import serve_waiting
from specdec.eval.serve_waiting import serve_waiting as command
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


@pytest.mark.parametrize("drafter", ["demo", "none"])
def test_the_command_measures_every_size(tmp_path: Path, drafter: str) -> None:
    """A size of steps that does not reach the record; no way to measure without a drafter."""
    app, out = typer.Typer(), tmp_path / "waiting.json"
    app.command()(command)
    sizes = ["--background", "1", "--newcomers", "2", "--tokens", "8", "--step-tokens", "64,512"]
    result = CliRunner().invoke(app, [*sizes, "--drafter", drafter, "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    seen = [(each["max_step_tokens"], each["background"]) for each in found["arrivals"]]
    assert seen == [(64, 0), (64, 1), (512, 0), (512, 1)]
    assert found["crowd"]["size"] == 6


def test_sizes_that_are_none() -> None:
    """A traceback, or an error that speaks of a literal for int."""
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--step-tokens", "a", "--background", "1"])
    assert result.exit_code == 2
    assert "from 1 on" in result.output
