"""A small training, also as a script: ``python training.py FOLDER '{"steps": 8, …}'``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from specdec.training.batches import EagleCollator
from specdec.training.examples import Example
from specdec.training.students import EagleStudent
from specdec.training.trainer import DistillTrainer, Training
from specdec.training.truth import Truth
from support import answers

LAYOUTS = ("ttt", "ttiiiitt", "tiiitiitt", "tti", "tttttt")


def examples(count: int = 23) -> list[Example]:
    """Answers of unlike lengths."""
    made = [
        answers.example(LAYOUTS[i % len(LAYOUTS)], 3 + i % 7, i, dtype=torch.float32)
        for i in range(count)
    ]
    return made


def trainer(
    folder: Path, how: Training, *, noise: float = 0.0, truth: Truth | None = None
) -> DistillTrainer:
    """Of a small EAGLE head."""
    head = answers.head("compressed").float()
    teacher = torch.randn(answers.VOCAB, answers.HIDDEN, generator=torch.Generator().manual_seed(1))
    data = examples()
    return DistillTrainer(
        EagleStudent(head, teacher, noise=noise),
        data,
        [len(each.tokens) for each in data],
        EagleCollator(head.config, 3),
        how,
        folder,
        truth,
    )


def curve(folder: Path, name: str = "loss") -> dict[int, Any]:
    """Values of the log by step, of which each may be there once."""
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    found = [(row["step"], row[name]) for row in rows if name in row]
    assert len(dict(found)) == len(found), "a step is logged twice"
    return dict(found)


class _Killed:
    """A measurement that ends its process without a word, when it is the one of that number."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, student: nn.Module) -> float:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0


def main() -> None:
    options = json.loads(sys.argv[2])
    noise, kill_at = options.pop("noise", 0.0), options.pop("kill_at", 0)
    truth = Truth(1, _Killed(kill_at)) if kill_at else None
    torch.set_num_threads(1)
    trained = trainer(Path(sys.argv[1]), Training(cpu=True, **options), noise=noise, truth=truth)
    trained.run()
    trained.accelerator.end_training()  # else gloo's threads may be there still when it ends


if __name__ == "__main__":
    main()
