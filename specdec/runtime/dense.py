"""A forward over tree nodes for layers that change their keys after caching them.

Multi-head latent attention caches a compressed latent of each token and expands what it gets back
into keys and values. So such a layer gets back the latents of everything that the nodes may see,
all requests' one behind the other, and attends to the expanded keys itself under a mask:

    requests' nodes × [0, length of the first) [0, length of the second) …

Knows nothing of how the keys were changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdec.cache import PagedKV
from specdec.runtime.hook import TreeRows


class DenseForward:
    """A forward over packed tree nodes ``(1, N)``; valid during that forward only."""

    def __init__(self, kv: PagedKV, rows: Sequence[TreeRows]) -> None:
        self._kv = kv
        self._rows = rows
        self._old = [kv.slots(sequence, 0, sequence.length) for sequence, *_ in rows]
        self._new = [
            kv.slots(sequence, sequence.length - count, sequence.length)
            for sequence, count, *_ in rows
        ]

    @property
    def cached(self) -> int:
        """The most tokens that a sequence of this forward has committed."""
        return max(row.sequence.committed for row in self._rows)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write what the layer caches of its nodes, ``(1, H, N, D)`` and ``(1, H, N, Dv)``.

        Returns:
            What it has cached of all requests' texts and scratch nodes, ``(1, H, L, D)`` and ``(1,
            H, L, Dv)`` with L the sum of their lengths; copies.
        """
        start = 0
        for (_, count, *_), slots in zip(self._rows, self._new, strict=True):
            part = slice(start, start + count)
            self._kv.write(layer, slots, keys[:, :, part], values[:, :, part])
            start += count
        old_keys, old_values = (
            torch.cat([pool[:, :, slots] for slots in self._old], dim=2)
            for pool in self._kv.layer(layer)
        )
        return old_keys, old_values

    def mask(
        self, mask_function: Callable[..., Tensor], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Additive mask ``(1, 1, N, L)``: 0 where a node may see a key, else -inf."""
        seen = torch.block_diag(*[_seen(row, mask_function, device) for row in self._rows])
        mask = torch.full(seen.shape, -math.inf, dtype=dtype, device=device)
        return mask.masked_fill_(seen.to(device), 0)[None, None]


def _seen(row: TreeRows, mask_function: Callable[..., Tensor], device: torch.device) -> Tensor:
    """Bool ``(n, length)``: which of its own request's keys each node may see. The model's own mask
    is evaluated on places in the text, then intersected with the tree.
    """
    sequence, count, visible, _ = row
    scratch = torch.tensor(sequence.scratch_depths, device=device) + sequence.end
    places = torch.cat([sequence.committed_places().to(device), scratch])
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    queries, keys = scratch[-count:][None, None, :, None], places[None, None, None]
    allowed = mask_function(zero, zero, queries, keys)[0, 0].expand(count, sequence.length).clone()
    if visible is not None:  # in a chain, places alone tell
        allowed[:, sequence.committed :] &= visible.to(device)
    return allowed
