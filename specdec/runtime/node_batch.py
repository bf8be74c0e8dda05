"""New tokens of several texts, and what a model's forward takes for them. Knows no pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specdec.cache import SequenceKV
from specdec.runtime.devices import device_of


class NodeBatch(NamedTuple):
    """New tree nodes of one sequence.

    Attributes:
        sequence: the sequence; the nodes become its last scratch nodes.
        tokens: token ids ``(m,)``.
        depths: depth of each behind the last committed token, from 0.
        visible: bool ``(m, s + m)``: which of the s scratch nodes already there and of the new ones
            each may see, itself included; ``None`` is all up to itself, as in a chain.
        offset: int64 ``(R,)``: position = place in the text + offset, per row of the model's
            position ids (R = 1, or 3 or 4 for M-RoPE). ``None`` is one row of zero. That place is
            ``sequence.end + depth``, whatever the sequence leaves out.
        watched: which of the nodes' gaze is wanted: 0, or any of a chain.
        embeds: ``(m, H)``: what to run instead of the tokens' own embeddings.
        positions: int64 ``(R, m)``: their positions, where ``offset`` does not say.
    """

    sequence: SequenceKV
    tokens: Sequence[int]
    depths: Sequence[int]
    visible: Tensor | None = None
    offset: Tensor | None = None
    watched: int | None = None
    embeds: Tensor | None = None
    positions: Tensor | None = None


def model_inputs(batch: Sequence[NodeBatch], embedding: nn.Module) -> dict[str, Any]:
    """The packed nodes as one row ``(1, N)`` of a model whose input embeddings these are."""
    device = device_of(embedding)
    # In Python as long as possible: a tensor operation takes longer than all of these.
    offsets = (len(nodes.offset) for nodes in batch if nodes.offset is not None)
    rows = max(offsets, default=1)
    positions: list[list[int]] = [[] for _ in range(rows)]
    for nodes in batch:
        if nodes.positions is not None:
            for row, given in zip(positions, nodes.positions.tolist(), strict=True):
                row += given
            continue
        places = [0] * rows if nodes.offset is None else nodes.offset.tolist()
        for row, offset in zip(positions, places, strict=True):
            first = nodes.sequence.end + offset
            row += [first + depth for depth in nodes.depths]
    ids = torch.tensor(positions, device=device)
    inputs: dict[str, Any] = {"position_ids": ids if rows == 1 else ids[:, None]}
    if all(nodes.embeds is None for nodes in batch):
        tokens = [token for nodes in batch for token in nodes.tokens]
        return inputs | {"input_ids": torch.tensor([tokens], device=device)}
    parts = [
        embedding(torch.tensor(nodes.tokens, device=device))
        if nodes.embeds is None
        else nodes.embeds.to(device)
        for nodes in batch
    ]
    return inputs | {"inputs_embeds": torch.cat(parts)[None]}
