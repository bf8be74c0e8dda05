"""Which answers make up the batch of a step: a function of seed and step alone.

So training goes on after an interruption, or on another number of processes, with the batches that
it would have had. Knows lengths only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

WINDOW = 16  # batches that are sorted by length together


class Order:
    """One shuffle of all answers behind the other, in windows within which answers of like length
    meet, to save padding. All batches are full; after any number of windows no answer was read
    more than once more often than another.

    Args:
        lengths: of the answers, of which there is at least one.
        batch: answers a step.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._batch, self._seed = batch, seed
        self._window, self._batches = -1, list[list[int]]()

    def __call__(self, step: int) -> list[int]:
        """The answers of a step, shortest first."""
        window, turn = divmod(step, WINDOW)
        if window != self._window:
            self._window, self._batches = window, self._cut(window)
        return self._batches[turn]

    def _cut(self, window: int) -> list[list[int]]:
        size, count = WINDOW * self._batch, len(self._lengths)
        first = window * size
        epochs = range(first // count, (first + size - 1) // count + 1)
        stream = torch.cat([self._shuffle(epoch) for epoch in epochs])
        here = stream[first % count :][:size]
        batches = here[self._lengths[here].argsort(stable=True)].view(WINDOW, self._batch)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + window + (1 << 32))
        turns: list[list[int]] = batches[torch.randperm(WINDOW, generator=generator)].tolist()
        return turns

    def _shuffle(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        return torch.randperm(len(self._lengths), generator=generator)


class Shares(Sampler[list[int]]):
    """A process's share of the batches of an order, cut into pieces whose gradients are summed.

    Each piece is of answers of like length, dealt out in turn, so that all processes have about
    as much to do.

    Attributes:
        first: step to begin with.

    Args:
        steps: where to end.
        pieces: of a batch.
        process: number of this process, of ``processes``.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """

    def __init__(
        self, order: Order, batch: int, steps: int, pieces: int, process: int, processes: int
    ) -> None:
        if batch % (pieces * processes):
            raise ValueError(
                f"a batch of {batch} answers cannot be shared out evenly to {processes} processes "
                f"in {pieces} pieces each"
            )
        self.first = 0
        self._order, self._steps, self._pieces = order, steps, pieces
        self._size, self._process, self._processes = batch // pieces, process, processes

    def __len__(self) -> int:
        return self._steps * self._pieces

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self._steps):
            answers = self._order(step)
            for start in range(0, len(answers), self._size):
                yield answers[start : start + self._size][self._process :: self._processes]
