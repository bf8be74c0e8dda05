"""A transformers model over pages as the network of a drafter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdec.drafters.growth import Wave
from specdec.interfaces import DraftRequest
from specdec.runtime import NodeBatch, PagedModel


class PagedNetwork:
    """Runs the trees of one proposal.

    Args:
        paged: the model.
        texts: per request what is new in its text, the root last.
        limit: tokens from here on are never drafted.
        never: int64: nor are these.
    """

    vocabulary = None

    def __init__(
        self, paged: PagedModel, texts: Sequence[NodeBatch], limit: int, never: Tensor
    ) -> None:
        self._paged = paged
        self._texts = texts
        self._limit = limit
        self._never = never

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Run and commit what is new."""
        return self._speakable(self._paged.append(self._texts)[0])

    def run(self, wave: Wave) -> Tensor:
        """Run the nodes as scratch."""
        tokens = wave.tokens.split(wave.counts)
        batch = [
            NodeBatch(
                self._texts[member].sequence,
                own.tolist(),
                [wave.depth - 1] * len(own),
                visible,
                self._texts[member].offset,
            )
            for member, own, visible in zip(wave.members, tokens, wave.visible, strict=True)
        ]
        return self._speakable(self._paged.forward(batch))

    def _speakable(self, logits: Tensor) -> Tensor:
        return logits[:, : self._limit].float().index_fill_(1, self._never, -torch.inf)
