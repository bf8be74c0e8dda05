"""What is to be run on a GPU, at toy size without one: the same code, other numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from specdec.eval import gpu_models
from specdec.eval import gpu_suite as suite_module
from specdec.eval.gpu_models import streamed_bytes
from specdec.eval.gpu_suite import gpu_suite
from specdec.eval.gpu_tests import run_tests
from specdec.eval.known_configs import NAMES, known_config
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import random_eagle, random_model, toy

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


def test_what_there_is_no_time_for_is_listed(tmp_path: Path) -> None:
    """A suite that overruns and leaves nothing, or that leaves parts out in silence."""
    out = tmp_path / "gpu.json"
    result = run("--no-tests", "--out", str(out), "--minutes", "0.01", "--models", NAMES[0])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    left_out = {each["part"] for each in found["skipped"]}
    assert set(found["parts"]) | left_out == {"answers", "attention", "forwards", NAMES[0]}
    assert NAMES[0] in left_out
    assert f"skipped for want of time: {NAMES[0]}" in result.output


def test_nothing_is_timed_behind_a_red_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Speeds of kernels that compute something else."""
    failed = {"ran": True, "failed": 2, "error": 0, "passed": 5, "failures": ["tests/x.py::test_y"]}
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
