"""Where a model looks: how much attention a token pays to each token before it.

Averaged over the heads of the upper half of the layers, where attention tells best what an answer
is about. A heuristic: where windows slide, or a sink takes weight, little is said of what is out of
sight. Knows nothing of images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdec.kernels import attention_weights
from specdec.runtime.shards import Shards


class Gaze:
    """Sums up what the layers of one forward say, each in its turn.

    Args:
        layers: how many of them there are.
    """

    def __init__(self, layers: int) -> None:
        self._skipped = layers // 2
        self._counted = layers - self._skipped
        self._seen = 0
        self._sums: dict[int, Tensor] = {}

    def next_layer(self) -> bool:
        """Whether the layer whose turn it is counts."""
        self._seen += 1
        return self._seen > self._skipped

    def add(
        self,
        text: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        """Take in what one layer makes of ``query (1, Hq, 1, D)`` and ``key (1, Hkv, L, D)`` in
        this text. ``mask`` as in :func:`specdec.kernels.dense_attention`.
        """
        weights = attention_weights(query, key, mask, scale, softcap, sinks)
        looked = weights.mean((1, 2))[0, 0]  # (L,)
        before = self._sums.get(text)
        self._sums[text] = looked if before is None else before + looked.to(before.device)

    def of(self, text: int) -> Tensor | None:
        """Float32 ``(L,)``: how much was looked at each token; ``None`` if nobody said."""
        total = self._sums.get(text)
        return None if total is None else total / self._counted


def looked(gaze: Gaze | None, texts: int, shards: Shards | None) -> list[Tensor | None]:
    """What was said of each text, by the heads of all processes."""
    each = [None if gaze is None else gaze.of(text) for text in range(texts)]
    return each if shards is None else shards.mean(each)


def row_of(mask: Tensor | None, row: int, keys: slice) -> Tensor | None:
    """What the last token of a row may see of these keys, of a mask ``(B, 1, T, L)``."""
    if mask is None:
        return None
    own = row if mask.shape[0] > 1 else 0
    return mask[own : own + 1, :, -1:, keys]


def within(first: Tensor | None, node: int, keys: int, device: torch.device) -> Tensor | None:
    """Bool ``(1, 1, 1, keys)``: what a packed node sees, if its window begins at ``first[node]``;
    ``None`` if it begins at the beginning.
    """
    if first is None:
        return None
    return (torch.arange(keys, device=device) >= first.flatten()[node])[None, None, None]
