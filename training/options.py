"""How a drafter is trained, and what that means to transformers' Trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers.training_args import TrainingArguments

ENDLESS = 10_000_000  # steps, where time is what ends the training


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        steps: how many steps; or else
        minutes: how long.
        batch: answers per step, over all processes.
        pieces: into which a process cuts its share, to save memory.
        rate: peak learning rate.
        warmup: share of the training in which it rises.
        schedule: what it does then; a cosine takes it to zero.
        optimizer: transformers' name for it.
        max_norm: of the gradient.
        bf16: compute in bfloat16, on weights in fp32.
        seed: of the order of the answers, and of noise.
        save_every: seconds between checkpoints.
        log_every: steps between lines of the log.
        report_to: trackers, as transformers names them.
        cpu: use no accelerator.
    """

    steps: int | None = None
    minutes: float = 6.0
    batch: int = 32
    pieces: int = 1
    rate: float = 4e-3
    warmup: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    optimizer: str = "adamw_torch"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    max_norm: float = 1.0
    bf16: bool = False
    seed: int = 0
    save_every: float = 60.0
    log_every: int = 1
    report_to: tuple[str, ...] = ()
    cpu: bool = False

    def spent(self, step: int, seconds: float) -> float:
        """The share of the training that is done."""
        return step / self.steps if self.steps is not None else seconds / (60 * self.minutes)

    def share_of_rate(self, step: int, seconds: float) -> float:
        """Of the peak learning rate, for the step that comes next."""
        # In the middle of a step, so that neither the first nor the last is for nothing.
        half = 0.5 / self.steps if self.steps is not None else 0.0
        spent = min(self.spent(step, seconds) + half, 1.0)
        if spent < self.warmup:
            return spent / self.warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 + 0.5 * math.cos(math.pi * (spent - self.warmup) / (1 - self.warmup))


def arguments(how: Training, folder: Path) -> TrainingArguments:
    """What the Trainer is told; all that is not needed is off."""
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=how.steps or ENDLESS,
        gradient_accumulation_steps=how.pieces,
        learning_rate=how.rate,
        optim=how.optimizer,
        weight_decay=how.weight_decay,
        adam_beta1=how.betas[0],
        adam_beta2=how.betas[1],
        max_grad_norm=how.max_norm,
        bf16=how.bf16,
        seed=how.seed,
        logging_steps=how.log_every,
        logging_nan_inf_filter=False,  # it hides what went wrong, and waits for the device
        save_strategy="no",  # the clock says when
        report_to=list(how.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_broadcast_buffers=False,
        ignore_data_skip=True,  # shares know where to go on
        use_cpu=how.cpu,
    )
    args._n_gpu = min(args.n_gpu, 1)  # several devices are for several processes
    return args
