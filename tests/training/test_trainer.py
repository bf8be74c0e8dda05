"""Training on transformers' Trainer: killed, shared out, measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from specdec.training.options import Training
from specdec.training.order import WINDOW, Order, Shares
from specdec.training.trainer import DistillTrainer
from specdec.training.truth import BEST, Truth
from support import training

SCRIPT = Path(training.__file__)


def _how(**changes: object) -> Training:
    settings: dict[str, object] = {"steps": 8, "batch": 4, "cpu": True, "save_every": 1e9}
    return Training(**settings | changes)  # type: ignore[arg-type]  # names are checked when run


def _script(folder: Path, options: dict[str, object], processes: int = 1) -> int:
    """The exit code of a training in a process of its own, or in several."""
    command = [sys.executable]
    if processes > 1:
        # What `accelerate launch` runs; on a CPU that wants MPI for several processes. It finds a
        # free port by itself: one that was free a moment ago may be another test's by now.
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder), json.dumps(options)],
        env=environment,
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    print(done.stderr)  # shown if the test fails
    return done.returncode


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    found = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return load_file(found / "weights.safetensors")


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Moments, noise, the order of the answers, the schedule or half a step lost at a checkpoint
    would show as another curve than that of a run that was not killed. A process is killed twice,
    with SIGKILL, the second time with a checkpoint much older than what it did and logged last.
    """
    options = {"steps": 9, "batch": 4, "pieces": 2, "noise": 0.3, "save_every": 0, "seed": 3}
    assert _script(tmp_path / "whole", options) == 0
    # Killed in the measurements of steps 3 and 6; each step is saved behind its measurement.
    for kill_at, save_every in ((3, 0), (4, 1e9)):
        killed = options | {"kill_at": kill_at, "save_every": save_every}
        assert _script(tmp_path / "parts", killed) == -signal.SIGKILL
        assert {p.name for p in (tmp_path / "parts").glob("c*")} == {"checkpoint-1", "checkpoint-2"}
    assert _script(tmp_path / "parts", options) == 0
    one, other = (training.curve(tmp_path / name) for name in ("whole", "parts"))
    assert list(other) == list(range(1, 10))
    assert one == other
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {
        ".safetensors",
        ".json",
        ".jsonl",
    }


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(tmp_path: Path) -> None:
    """Answers differ in length, so a mean of the processes' own means, or of the pieces', would be
    another loss. 1e-5 relative: fp32 sums in another order.
    """
    options: dict[str, object] = {"steps": 20, "batch": 4}
    assert _script(tmp_path / "one", options) == 0
    assert _script(tmp_path / "pieces", options | {"pieces": 2}) == 0
    assert _script(tmp_path / "two", options, processes=2) == 0
    one = training.curve(tmp_path / "one")
    assert len(set(one.values())) == 20
    for name in ("pieces", "two"):
        assert training.curve(tmp_path / name) == pytest.approx(one, rel=1e-5), name


def test_nothing_pickled_is_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Trainer` writes its arguments, optimizer, schedule and generators with `torch.save`."""

    def refuse(*args: object, **rest: object) -> None:
        raise AssertionError("something is pickled")

    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    training.trainer(tmp_path, _how(steps=3, save_every=0)).run()
    (tmp_path / "checkpoint-3").rename(tmp_path / "checkpoint-3.tmp")  # as if cut off
    again = training.trainer(tmp_path, _how(steps=3, save_every=0))
    again.run()
    again.save_model(str(tmp_path))
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {
        ".safetensors",
        ".json",
        ".jsonl",
    }
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("patience", [None, 1])
def test_a_finished_training_is_not_done_again(tmp_path: Path, patience: int | None) -> None:
    """One that ran out of patience has steps left, which are none of a later run's business."""
    scores = _Scores(*(-float(step) for step in range(8)))
    done = training.trainer(tmp_path, _how(), truth=Truth(1, scores, patience))
    done.run()
    last = 8 if patience is None else 2
    again = training.trainer(tmp_path, _how(), truth=Truth(1, _Scores(), patience))
    again.run()
    assert list(training.curve(tmp_path)) == list(range(1, last + 1))
    for one, other in zip(done.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_of_another_drafter_are_refused(tmp_path: Path) -> None:
    training.trainer(tmp_path, _how(steps=1)).run()
    other = training.trainer(tmp_path, _how(steps=2))
    other.student.get_submodule("head").register_parameter("more", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match=r"another drafter: head\.more is missing"):
        other.run()


def test_time_ends_a_training(tmp_path: Path) -> None:
    """The schedule must reach zero with the time, and a step must not be awaited that takes longer
    than what is left. Real time: 1.5 seconds, of which a step takes some 20 ms.
    """
    training.trainer(tmp_path, _how(steps=None, minutes=0.025)).run()
    seconds, rates = (training.curve(tmp_path, name) for name in ("seconds", "learning_rate"))
    last = max(seconds)
    assert last >= 3
    assert seconds[last - 1] < 1.5 + 0.5
    assert rates[last] < 0.2 * max(rates.values())
    state = json.loads((tmp_path / f"checkpoint-{last}" / "trainer_state.json").read_text())
    assert state["global_step"] == last


def test_the_learning_rate_rises_and_falls() -> None:
    how = _how(steps=100, warmup=0.1)
    rates = [how.share_of_rate(step, 0.0) for step in range(100)]
    assert 0 < rates[0] < 0.1
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] > 0.99
    assert 0 < rates[-1] < 0.001
    assert _how(steps=100, schedule="constant").share_of_rate(99, 0.0) == 1
    timed = Training(minutes=2, warmup=0.1)
    assert [timed.share_of_rate(7, 6.0), timed.share_of_rate(7, 120.0)] == [0.5, 0.0]


class _Scores:
    """Measurements that are known beforehand; notes the weights it saw."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.seen: list[torch.Tensor] = []

    def __call__(self, student: nn.Module) -> float:
        assert not student.training
        torch.rand(3)  # must not be missed by the noise
        self.seen.append(next(student.parameters()).detach().clone())
        return self.scores.pop(0)


def test_truth_keeps_the_best_weights_and_stops(tmp_path: Path) -> None:
    """Weights of the last step instead of the best one, one measurement too many or too few, or
    noise that depends on whether something was measured.
    """
    scores = _Scores(1.0, 2.5, 2.0, 2.4, 9.0)
    truth = Truth(2, scores, patience=2)
    trainer = training.trainer(tmp_path / "a", _how(steps=20), noise=0.2, truth=truth)
    trainer.run()
    assert training.curve(tmp_path / "a", "truth") == {2: 1.0, 4: 2.5, 6: 2.0, 8: 2.4}
    assert trainer.state.global_step == 8
    assert torch.equal(next(trainer.student.parameters()), scores.seen[1])
    assert (truth.best, truth.best_step) == (2.5, 4)
    assert (tmp_path / "a" / BEST).exists()
    training.trainer(tmp_path / "b", _how(steps=20), noise=0.2).run()
    plain = training.curve(tmp_path / "b")
    assert training.curve(tmp_path / "a") == {step: plain[step] for step in range(1, 9)}


def test_patience_survives_an_interruption(tmp_path: Path) -> None:
    class Cut(_Scores):
        def __call__(self, student: nn.Module) -> float:
            if not self.scores:
                raise KeyboardInterrupt
            return super().__call__(student)

    first = Truth(1, Cut(1.0, 3.0, 2.0), patience=3)
    with pytest.raises(KeyboardInterrupt):
        training.trainer(tmp_path, _how(save_every=0), truth=first).run()
    second = Truth(1, _Scores(2.0, 1.0, 5.0), patience=3)
    trainer = training.trainer(tmp_path, _how(save_every=0), truth=second)
    trainer.run()
    assert training.curve(tmp_path, "truth") == {1: 1.0, 2: 3.0, 3: 2.0, 4: 2.0, 5: 1.0}
    assert second.best_step == 2


def test_every_line_of_the_log_says_how_fast(tmp_path: Path) -> None:
    training.trainer(tmp_path, _how()).run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["peak_memory"] > 1 << 20
        assert {"loss", "grad_norm", "learning_rate", "seconds"} <= row.keys()


def test_training_learns(tmp_path: Path) -> None:
    training.trainer(tmp_path, _how(steps=150, batch=8, rate=2e-2)).run()
    losses = list(training.curve(tmp_path).values())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_answers_are_read_equally_often() -> None:
    """Answers dropped at the end of an epoch, or batches that are not a function of the step."""
    lengths = [3 + (7 * i) % 11 for i in range(23)]
    order, seen = Order(lengths, 4, seed=5), Counter[int]()
    for step in range(5 * WINDOW):
        batch = order(step)
        assert len(batch) == 4
        assert [lengths[i] for i in batch] == sorted(lengths[i] for i in batch)
        seen.update(batch)
        if step % WINDOW == WINDOW - 1:
            assert max(seen.values()) - min(seen[i] for i in range(23)) <= 1
    assert order(37) == Order(lengths, 4, seed=5)(37)
    assert order(37) != Order(lengths, 4, seed=6)(37)


def _shared(pieces: int, processes: int) -> list[list[list[int]]]:
    order = Order(list(range(30)), 12, seed=1)
    return [list(Shares(order, 12, 3, pieces, p, processes)) for p in range(processes)]


@pytest.mark.parametrize(("pieces", "processes"), [(1, 2), (2, 3), (3, 1)])
def test_shares_are_the_batch(pieces: int, processes: int) -> None:
    shares = _shared(pieces, processes)
    order = Order(list(range(30)), 12, seed=1)
    for step in range(3):
        mine: Sequence[int] = [
            i for share in shares for piece in share[step * pieces :][:pieces] for i in piece
        ]
        assert sorted(mine) == sorted(order(step))
    with pytest.raises(ValueError, match="12 answers cannot be shared out evenly to 5"):
        Shares(order, 12, 3, 1, 0, 5)


def test_no_answers_are_named(tmp_path: Path) -> None:
    student = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="no answers"):
        DistillTrainer(student, [], [], lambda examples: {}, _how(), tmp_path)
