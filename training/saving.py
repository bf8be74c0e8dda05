"""Checkpoints of a Trainer as safetensors and JSON: nothing that is loaded can run code.

A checkpoint is a folder that appears in one move, so whatever is there is whole:

    checkpoint-STEP/weights.safetensors      what learns
                    optimizer.safetensors    moments, schedule, clock
                    random-PROCESS.safetensors
                    trainer_state.json
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any  # a checkpoint's values are whatever an optimizer keeps

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import state_dict as sharded

from specdec.files import replacing, write_text
from specdec.training import checkpoint

if TYPE_CHECKING:
    from specdec.training.trainer import DistillTrainer

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
KEPT = 2
_WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest one."""
    steps = _steps(folder)
    return folder / f"checkpoint-{steps[-1]}" if steps else None


def save(trainer: DistillTrainer, more: dict[str, Any]) -> None:
    """Write a checkpoint of all processes, with ``more`` in it, and drop old ones."""
    folder = trainer.folder / f"checkpoint-{trainer.state.global_step}"
    unfinished = folder.with_suffix(".tmp")
    if trainer.args.should_save:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    try:
        _write(trainer, folder, unfinished, more)
    except OSError as error:  # a full disk, of which the half that was written is a part
        shutil.rmtree(unfinished, ignore_errors=True)
        why = error.strerror or error
        raise OSError(error.errno, f"no checkpoint was written: {why}", str(folder)) from error


def _write(trainer: DistillTrainer, folder: Path, unfinished: Path, more: dict[str, Any]) -> None:
    wait, writes = trainer.accelerator.wait_for_everyone, trainer.args.should_save
    wait()
    save_weights(trainer, unfinished / WEIGHTS)
    optimizer = _optimizer_state(trainer)
    checkpoint.save(unfinished / _random_file(trainer), random_state())
    if writes:
        assert trainer.lr_scheduler is not None
        schedule = trainer.lr_scheduler.state_dict()
        schedule = {name: schedule[name] for name in ("last_epoch", "_step_count", "_last_lr")}
        state = {"optimizer": optimizer, "schedule": schedule, **more}
        checkpoint.save(unfinished / OPTIMIZER, state)
        trainer.state.save_to_json(str(unfinished / STATE))
    wait()
    if writes:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        for step in _steps(trainer.folder)[:-KEPT]:
            shutil.rmtree(trainer.folder / f"checkpoint-{step}")
    wait()


def load(trainer: DistillTrainer, folder: Path) -> dict[str, Any]:
    """Optimizer and schedule; what else was saved."""
    state = checkpoint.load(folder / OPTIMIZER)
    optimizer = state.pop("optimizer")
    if trainer.is_fsdp_enabled:
        inner = trainer.inner_optimizer
        sharded.set_optimizer_state_dict(trainer.student, inner, optimizer, options=_WHOLE)
    else:
        trainer.inner_optimizer.load_state_dict(optimizer)
    schedule = trainer.lr_scheduler
    assert schedule is not None
    schedule.load_state_dict(schedule.state_dict() | state.pop("schedule"))
    return state


def save_weights(trainer: DistillTrainer, file: Path, facts: dict[str, str] | None = None) -> None:
    """Write what learns, tied weights once; the file appears, or is replaced, in one move."""
    learning = {n: p for n, p in trainer.student.named_parameters() if p.requires_grad}
    tensors: dict[str, Tensor] = {name: each.detach() for name, each in learning.items()}
    if trainer.is_fsdp_enabled:
        whole = sharded.get_model_state_dict(trainer.student, options=_WHOLE)
        tensors = {n: t for n, t in whole.items() if n in learning and isinstance(t, Tensor)}
    if trainer.args.should_save:
        with replacing(file) as unfinished:
            save_file({n: t.contiguous() for n, t in tensors.items()}, unfinished, facts)


def load_weights(trainer: DistillTrainer, file: Path) -> None:
    """The inverse of :func:`save_weights`.

    Raises:
        ValueError: they are of another drafter.
    """
    stored = load_file(file)
    learning = {n: p for n, p in trainer.student.named_parameters() if p.requires_grad}
    there = {name: tuple(each.shape) for name, each in stored.items()}
    expected = {name: tuple(each.shape) for name, each in learning.items()}
    if there != expected:
        odd = min(n for n in there.keys() | expected if there.get(n) != expected.get(n))
        raise ValueError(
            f"{file} is of another drafter: {odd} is {there.get(odd, 'missing')} there and "
            f"{expected.get(odd, 'missing')} here; choose another folder"
        )
    if trainer.is_fsdp_enabled:
        options = sharded.StateDictOptions(full_state_dict=True, strict=False)
        sharded.set_model_state_dict(trainer.student, dict(stored), options=options)
        return
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(stored[name])


def random_state() -> dict[str, Any]:
    """Of the generators that a training draws from."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def load_random(trainer: DistillTrainer, folder: Path) -> None:
    """This process's generators, if there were as many processes."""
    file = folder / _random_file(trainer)
    if file.exists():
        set_random_state(checkpoint.load(file))


def cut_log(file: Path, step: int) -> None:
    """Drop the lines of a log that are behind a step."""
    if file.exists():
        lines = file.read_text().splitlines(keepends=True)
        whole = (line for line in lines if line.endswith("\n"))  # the last may be cut off
        kept = [line for line in whole if json.loads(line)["step"] <= step]
        write_text(file, "".join(kept))


def _steps(folder: Path) -> list[int]:
    found = [path.name for path in folder.glob("checkpoint-*") if not path.suffix]
    return sorted(int(name.split("-")[1]) for name in found)


def _random_file(trainer: DistillTrainer) -> str:
    return f"random-{trainer.args.process_index}.safetensors"


def _optimizer_state(trainer: DistillTrainer) -> dict[str, Any]:
    if trainer.is_fsdp_enabled:
        inner = trainer.inner_optimizer
        return dict(sharded.get_optimizer_state_dict(trainer.student, inner, options=_WHOLE))
    state: dict[str, Any] = trainer.inner_optimizer.state_dict()
    return state
