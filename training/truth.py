"""What a drafter in training is worth, as measured from outside, and which of its weights to keep.

The loss says how close a drafter is to its verifier; what counts is how many tokens a step yields
when the engine runs with it on prompts that it never saw. Knows no engine: who builds a truth
brings the measurement along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any  # JSON values

import torch
from torch import nn

from specdec.training import saving

if TYPE_CHECKING:
    from specdec.training.trainer import DistillTrainer

BEST = "best.safetensors"


@dataclass
class Truth:
    """Measures every so many steps and at the end, keeps the best weights, and stops a training
    that gets no better.

    Attributes:
        every: steps.
        measure: of the student, larger is better; called on the first process only, with the
            student in evaluation mode. Random generators are put back behind it.
        patience: measurements without a better one after which training stops.
    """

    every: int
    measure: Callable[[nn.Module], float]
    patience: int | None = None
    best: float | None = field(default=None, init=False)
    best_step: int = field(default=0, init=False)
    waited: int = field(default=0, init=False)

    def __call__(self, trainer: DistillTrainer, over: bool) -> bool:
        """Measure, if it is time to; whether training should stop."""
        step = trainer.state.global_step
        if step % self.every and not over:
            return False
        score = self._agreed(trainer)
        trainer.note({"truth": score})
        if self.best is None or score > self.best:
            self.best, self.best_step, self.waited = score, step, 0
            facts = {"score": repr(score), "step": str(step)}
            saving.save_weights(trainer, trainer.folder / BEST, facts)
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def restore(self, trainer: DistillTrainer) -> None:
        """Give the student the best weights back, if there are any."""
        trainer.accelerator.wait_for_everyone()
        if (trainer.folder / BEST).exists():
            saving.load_weights(trainer, trainer.folder / BEST)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def resume(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]

    def _agreed(self, trainer: DistillTrainer) -> float:
        """The first process's measurement, on all of them."""
        score = torch.zeros(1, dtype=torch.float64, device=trainer.args.device)
        if trainer.args.process_index == 0:
            student, before = trainer.student, saving.random_state()
            student.eval()
            with torch.no_grad():
                score[0] = self.measure(student)
            student.train()
            saving.set_random_state(before)
        if trainer.args.world_size > 1:
            score = trainer.accelerator.gather(score)
        return float(score[0])
