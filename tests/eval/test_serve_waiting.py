"""First tokens under load, at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from specdec.eval.serve_waiting import serve_waiting


@pytest.mark.parametrize("drafter", ["demo", "none"])
def test_the_command_measures_every_size(tmp_path: Path, drafter: str) -> None:
    """A size of steps that does not reach the record; no way to measure without a drafter."""
    app, out = typer.Typer(), tmp_path / "waiting.json"
    app.command()(serve_waiting)
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
    app.command()(serve_waiting)
    result = CliRunner().invoke(app, ["--step-tokens", "a", "--background", "1"])
    assert result.exit_code == 2
    assert "from 1 on" in result.output
