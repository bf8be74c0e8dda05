"""What is to be run on a GPU, at toy size without one: the same code, other numbers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from specdec.eval import gpu_models
from specdec.eval import gpu_suite as suite_module
from specdec.eval.budget import Session
from specdec.eval.gpu_models import streamed_bytes
from specdec.eval.gpu_suite import gpu_suite
from specdec.eval.gpu_tests import run_tests
from specdec.eval.known_configs import NAMES, known_config
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import random_eagle, random_model, toy
from specdec.stats import AcceptanceStats

TESTED = {
    **{"ran": True, "timed_out": False, "exit_code": 0, "passed": 5, "failed": 0, "error": 0},
    **{"skipped": 0, "failures": [], "tail": "what pytest said"},
}
PARTS = ("", ": steps", ": throughput", ": one image")


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(gpu_suite)
    return CliRunner().invoke(app, ["--device", "cpu", "--toy", "--questions", "1", *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are in the interpreter without one")
def test_everything_runs_at_toy_size(tmp_path: Path) -> None:
    """A part that would fail on the GPU after minutes of waiting: names, shapes, JSON."""
    out = tmp_path / "gpu.json"
    result = run("--no-tests", "--out", str(out), "--minutes", "60")
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    models = [f"{name}{part}" for name in NAMES for part in PARTS]
    assert list(found["parts"]) == ["answers", "attention", "forwards", *models]
    assert [part for part in found["parts"].values() if "failed" in part] == []
    assert found["skipped"] == []
    assert found["toy"] is True
    assert found["parts"]["attention"]["cases"][0]["ms"]["specdec"] > 0
    for name in NAMES:
        steps = found["parts"][f"{name}: steps"]
        assert [case["nodes"] for case in steps["cases"]] == [1, 3, 1, 3]
        for case in steps["cases"]:
            assert case["over_floor"] == pytest.approx(case["ms"] / case["floor_ms"])
            assert case["graph"] is None
            assert "no CUDA graphs on cpu" in case["graph_refused"]
        batches = found["parts"][f"{name}: throughput"]["cases"]
        assert [case["batch"] for case in batches] == [1, 2]
        assert found["parts"][f"{name}: one image"]["requests"] == 3


def test_what_there_is_no_time_for_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that overruns and leaves nothing, or that leaves parts out in silence."""
    out, now = tmp_path / "gpu.json", [0.0]

    def answers(*_: Any) -> dict[str, Any]:
        now[0] += 61
        return {"mismatches": 0}

    monkeypatch.setattr(suite_module, "same_answers", answers)
    monkeypatch.setattr(suite_module, "Session", partial(Session, clock=lambda: now[0]))
    result = run("--no-tests", "--out", str(out), "--minutes", "1", "--models", NAMES[0])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert list(found["parts"]) == ["answers"]
    assert [each["part"] for each in found["skipped"]] == ["attention", "forwards", NAMES[0]]
    assert f"skipped for want of time: {NAMES[0]}" in result.output


def test_nothing_is_timed_behind_a_red_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speeds of kernels that compute something else."""
    failed = {**TESTED, "failed": 2, "exit_code": 1, "failures": ["tests/x.py::test_y"]}
    monkeypatch.setattr(suite_module, "run_tests", lambda *_: failed)
    monkeypatch.setattr(suite_module.GpuSuite, "kernels", lambda *_: None)
    monkeypatch.setattr(suite_module.GpuSuite, "model", lambda *_: None)
    out = tmp_path / "gpu.json"
    result = run("--out", str(out))
    assert result.exit_code == 1
    found = json.loads(out.read_text())
    assert list(found["parts"]) == ["tests"]
    assert found["test_failures"] == ["tests/x.py::test_y"]
    result = run("--out", str(out), "--despite-failures")
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["despite_red"] is True


@pytest.mark.parametrize(
    "ended",
    [
        {"exit_code": 4, "passed": 0},
        {"exit_code": 3},
        {"exit_code": None, "timed_out": True, "passed": 0},
        {"exit_code": 0, "passed": 0, "skipped": 700},
    ],
    ids=["wrong call", "pytest fails", "time ran out", "none ran"],
)
def test_tests_that_did_not_run_are_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: dict[str, Any]
) -> None:
    """A gate that counts failures only: pytest that breaks off has none."""
    monkeypatch.setattr(suite_module, "run_tests", lambda *_: TESTED | ended)
    monkeypatch.setattr(suite_module, "same_answers", lambda *_: pytest.fail("behind a red gate"))
    out = tmp_path / "gpu.json"
    result = run("--out", str(out))
    assert result.exit_code == 1, result.output
    found = json.loads(out.read_text())
    assert list(found["parts"]) == ["tests"]
    assert found["test_failures"] == ["what pytest said"]


def test_answers_that_were_not_compared_are_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate that is open because a driver failed in it, or because there was no time for it."""
    monkeypatch.setattr(suite_module.GpuSuite, "kernels", lambda *_: pytest.fail("timed"))
    out = tmp_path / "gpu.json"

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(suite_module, "same_answers", broken)
    assert run("--no-tests", "--out", str(out)).exit_code == 1
    assert json.loads(out.read_text())["parts"]["answers"]["red"] == "RuntimeError: CUDA error"
    monkeypatch.setitem(suite_module._SECONDS, "answers", 1e9)
    result = run("--no-tests", "--out", str(out))
    assert result.exit_code == 1
    assert "no time for the gate 'answers'" in result.output


def test_a_method_of_a_record_can_be_named(tmp_path: Path) -> None:
    """An error that asks for a method where there is no way to name one."""
    record, stats = tmp_path / "bench.json", AcceptanceStats()
    stats.record_step(4, 2, 4)
    overall = {"acceptance": stats.to_dict()}
    methods = [{"name": name, "overall": overall} for name in ("one", "two")]
    record.write_text(json.dumps({"schema": "specdec.bench/1", "methods": methods}))
    asked = ["--profile", str(record), "--models", "unknown"]
    assert "'two'" in run(*asked).output
    assert "unknown" in run(*asked, "--method", "two").output


def test_a_case_without_memory_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches lost because the largest did not fit."""
    small: Any = random_model(toy(known_config(NAMES[1])), torch.float32, "cpu")
    real = gpu_models.throughput

    def scarce(*args: Any, batch: int, **how: Any) -> Any:
        if batch > 1:
            raise torch.OutOfMemoryError("no room")
        return real(*args, batch=batch, **how)

    monkeypatch.setattr(gpu_models, "throughput", scarce)
    eagle, rate = random_eagle(small), Acceptance.constant(0.8)
    subject = gpu_models.Subject(small, eagle, gpu_models.TOY, 1e9, rate)
    deadline: Any = type("Deadline", (), {"wanted": lambda self, case: True})()
    one, two = subject.throughput(deadline)["cases"]
    assert one["plain"]["tokens"] == 7
    assert two == {"batch": 2, "failed": "no room"}


def test_tests_are_counted_and_stopped(tmp_path: Path) -> None:
    """A failure that is taken for success; a test that hangs and takes the whole time."""
    assert run_tests(tmp_path, 9)["ran"] is False
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "def test_good():\n    pass\n\ndef test_bad():\n    assert 1 == 2\n"
    )
    found = run_tests(tmp_path, 60, (), 1)
    assert (found["passed"], found["failed"], found["timed_out"]) == (1, 1, False)
    assert found["failures"][0].startswith("tests/test_some.py::test_bad")
    (folder / "test_some.py").write_text("import time\n\ndef test_long():\n    time.sleep(99)\n")
    assert run_tests(tmp_path, 1, (), 1)["timed_out"] is True


@pytest.mark.parametrize("name", NAMES)
def test_streamed_weights_leave_out_what_is_not_read(name: str) -> None:
    """The vision tower or a table of embeddings in the floor, or tied embeddings left out of it."""
    model: Any = random_model(toy(known_config(name)), torch.float32, "cpu")
    language = sum(each.numel() for each in model.model.language_model.parameters())
    head = model.lm_head.weight.numel()
    embeddings = model.get_input_embeddings().weight.numel()
    last_norm = 64
    assert streamed_bytes(model) == 4 * (language - embeddings - last_norm + head)
