"""Training of a drafter on transformers' Trainer: one process or many, whatever accelerate runs.

What is written is safetensors and JSON only, and so is what is read. A run that was cut off goes on
with its last checkpoint: on a CPU bit for bit as if nothing had happened, if its length is given in
steps. Loss is a mean over all tokens of a step, so its curve does not depend on how many processes
or pieces share a batch. Knows batches as dicts with ``total`` and ``tokens``, and no drafter.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from specdec.training import checkpoint, saving
from specdec.training.batches import Batch
from specdec.training.examples import Example
from specdec.training.options import Training, arguments
from specdec.training.order import Order, Shares
from specdec.training.truth import Truth


class Answers(Protocol):
    """A training set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class DistillTrainer(Trainer):
    """Trains a drafter.

    Args:
        student: takes a batch and returns its summed loss.
        answers: to learn from.
        lengths: of them in tokens.
        collate: makes batches.
        folder: for checkpoints ``checkpoint-STEP/``, ``log.jsonl`` and the best weights.
        truth: what the drafter is worth, measured now and then.

    Raises:
        ValueError: there are no answers, or the batch cannot be shared out evenly.
    """

    def __init__(
        self,
        student: nn.Module,
        answers: Answers,
        lengths: Sequence[int],
        collate: Callable[[Sequence[Example]], Batch],
        how: Training,
        folder: Path,
        truth: Truth | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        if not lengths:
            raise ValueError("there are no answers to learn from")
        self.how, self.folder, self.truth = how, folder, truth
        self.seconds = 0.0  # of all runs, as all processes agreed at the last step
        self._began, self._saved, self._logged = 0.0, 0.0, (0.0, 0)
        self._tokens, self._over = 0, False
        args = arguments(how, folder)
        super().__init__(
            model=student,
            args=args,
            data_collator=collate,
            train_dataset=answers,
            callbacks=[_Clock(self), *callbacks],
        )
        # Transformers' word for a loss that is divided by the number of items already.
        self.model_accepts_loss_kwargs = True
        for unwanted in (PrinterCallback, ProgressCallback):
            self.remove_callback(unwanted)
        if truth is not None and self.is_fsdp_enabled:
            raise ValueError("a drafter whose weights are sharded cannot draft: measure it later")
        order = Order(lengths, how.batch, how.seed)
        world, rank = args.world_size, args.process_index
        self._shares = Shares(order, how.batch, args.max_steps, how.pieces, rank, world)
        if rank:  # noise of its own for each process
            torch.manual_seed(how.seed + 7919 * rank)

    @property
    def student(self) -> nn.Module:
        """What is trained; its parameters are shards if accelerate shards them."""
        assert isinstance(self.model, nn.Module)
        return self.model

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without accelerate's wrapper."""
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        assert isinstance(inner, torch.optim.Optimizer)
        return inner

    def run(self) -> None:
        """Train to the end, from the last checkpoint in the folder if there is one."""
        last = saving.last_checkpoint(self.folder)
        if last is not None and checkpoint.load(last / saving.OPTIMIZER)["over"]:
            saving.load_weights(self, last / saving.WEIGHTS)
        else:
            self.train(resume_from_checkpoint=None if last is None else str(last))
        if self.truth is not None:
            self.truth.restore(self)

    def get_train_dataloader(self) -> DataLoader[Any]:  # Any: what collate returns
        # Not prepared by accelerate: its shares are its process's own, and are moved one by one.
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]  # see above
            batch_sampler=self._shares,
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # else it draws from the one that noise comes from
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The next pieces, and the weight of all pieces of all processes."""
        pieces = [next(epoch_iterator) for _ in range(num_batches)]
        mine = [
            float(sum(piece.pop("total") for piece in pieces)),
            float(sum(piece.pop("tokens") for piece in pieces)),
            time.perf_counter() - self._began,
        ]
        if self.args.world_size > 1:
            agreed = torch.tensor(mine, dtype=torch.float64, device=device)[None]
            everyone = self.accelerator.gather(agreed)
            mine = [*everyone[:, :2].sum(0).tolist(), float(everyone[:, 2].max())]
        total, tokens, self.seconds = mine
        self._tokens += int(tokens)
        return pieces, torch.tensor(max(total, 1e-9), device=device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        # Gradients are averaged over processes, but the total is everyone's.
        loss: Tensor = model(**inputs)
        assert isinstance(num_items_in_batch, Tensor)
        mean: Tensor = loss * self.args.world_size / num_items_in_batch
        return mean

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        how = self.how
        self.lr_scheduler = LambdaLR(
            optimizer or self.inner_optimizer, lambda step: how.share_of_rate(step, self.seconds)
        )
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line of ``log.jsonl``, and trackers; nothing is kept in memory."""
        if "loss" not in logs:
            return
        (before, tokens), now = self._logged, time.perf_counter() - self._began
        self._logged = (now, self._tokens)
        logs |= {
            "seconds": round(now, 3),
            "tokens_per_second": round((self._tokens - tokens) / (now - before), 1),
            "peak_memory": peak_memory(self.args.device),
        }
        self.note(logs)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def note(self, values: dict[str, float]) -> None:
        """Add a line of these values to ``log.jsonl``."""
        if self.args.should_save:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.state.global_step, **values}) + "\n")

    def begin(self) -> None:
        """Start the clock, and drop what was logged behind the checkpoint."""
        self._began = time.perf_counter() - self.seconds
        self._saved, self._logged = self.seconds, (self.seconds, self._tokens)
        self._shares.first = self.state.global_step
        if self.args.should_save:
            self.folder.mkdir(parents=True, exist_ok=True)
            saving.cut_log(self.folder / "log.jsonl", self.state.global_step)

    def end_step(self) -> tuple[bool, bool]:
        """Whether training is over, and whether to save."""
        over = self.how.spent(self.state.global_step, self.seconds) >= 1
        if self.truth is not None:
            over |= self.truth(self, over)
        self._over = over
        return over, over or self.seconds - self._saved >= self.how.save_every

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._saved = self.seconds
        state: dict[str, Any] = {
            "seconds": self.seconds,
            "tokens": self._tokens,
            "over": self._over,
        }
        if self.truth is not None:
            state["truth"] = self.truth.state()
        saving.save(self, state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saving.load_weights(self, Path(resume_from_checkpoint) / saving.WEIGHTS)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = saving.load(self, Path(checkpoint))
        self.seconds, self._tokens = state["seconds"], state["tokens"]
        if self.truth is not None and "truth" in state:
            self.truth.resume(state["truth"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            saving.load_random(self, Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: fp16 is not offered."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights that learn, as safetensors."""
        saving.save_weights(self, Path(output_dir or self.folder) / saving.WEIGHTS)


class _Clock(TrainerCallback):
    """Tells the trainer of its own steps."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._trainer.begin()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **rest: Any) -> None:
        over, control.should_save = self._trainer.end_step()
        control.should_training_stop |= over


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use: on the device, or by this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
