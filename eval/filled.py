"""Requests in the middle of their answers, without having been asked: pages full of text.

One text is run, the others get copies of its keys in pages of their own, so that nothing is shared
and thousands of tokens are there at once. For timing forwards; what the texts say is noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.eval.random_models import text_tokens
from specdec.runtime import NodeBatch, PagedModel, free_bytes

ROOM = 256  # tokens beyond the context: the nodes of a tree


class Filled:
    """``batch`` requests with ``context`` committed tokens each.

    Args:
        model: whose forwards are to be timed.
        context: tokens of each text.
        batch: how many texts.

    Attributes:
        paged: the model over the pages.
        sequences: the requests'.

    Raises:
        ValueError: the keys do not fit into the memory that is free.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, context: int, batch: int) -> None:
        self.model = model
        self.context = context
        self.paged = PagedModel(model)
        self._random = torch.Generator().manual_seed(0)
        kv = self.paged.kv
        first = kv.add(context + ROOM)
        self.sequences: list[SequenceKV] = [first]
        text = text_tokens(model, context, self._random)
        self.paged.append([NodeBatch(first, text, range(context))])
        # Pools grow by doubling, and a pool of one layer is there twice while it grows.
        needed = 2 * (batch - 1) * (context + ROOM) * self.kv_bytes_per_token
        free = free_bytes(model.device)
        if needed > free:
            raise ValueError(
                f"keys of {batch} requests with {context} tokens may take {needed / 2**30:.1f} "
                f"GiB while they are made, and {free / 2**30:.1f} GiB are free; choose fewer or "
                "shorter ones"
            )
        for _ in range(batch - 1):
            self._copy(first)

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token's keys and values take in all layers."""
        return self.paged.kv.bytes_per_page // self.paged.kv.page_size

    def nodes(self, count: int) -> list[NodeBatch]:
        """A chain of ``count`` new tokens behind each text; 1 is a plain step."""
        return [
            NodeBatch(sequence, text_tokens(self.model, count, self._random), range(count))
            for sequence in self.sequences
        ]

    @torch.no_grad()
    def step(self, batch: Sequence[NodeBatch]) -> Tensor:
        """Run nodes, read back the best token behind each, and forget them: logits ``(N, V)``."""
        logits = self.paged.forward(batch)
        logits.argmax(-1).tolist()
        for nodes in batch:
            self.paged.kv.rollback(nodes.sequence)
        return logits

    def _copy(self, first: SequenceKV) -> None:
        """One more text with the same keys, in pages of its own."""
        kv = self.paged.kv
        sequence = kv.add(self.context + ROOM)
        kv.extend(sequence, range(self.context))
        for layer in range(self.model.config.get_text_config(decoder=True).num_hidden_layers):
            there = kv.slots(first, 0, self.context)
            keys, values = (pool[:, :, there] for pool in kv.layer(layer))
            kv.write(layer, kv.slots(sequence, 0, self.context), keys, values)
        kv.commit(sequence, range(self.context))
        self.sequences.append(sequence)


def milliseconds(device: torch.device, run: Callable[[], Any]) -> float:
    """How long something takes, from an idle device to an idle device."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - began)
