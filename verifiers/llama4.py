"""Llama 4: the temperature of its layers without rotary positions.

These layers scale a query by how far into its row it is. Instead of using the positions they are
given they count up from the length of the cache, query by query: wrong for siblings, which are at
the same place, and for the second text of a batch. And they count a row's padding as well, so what
they make of a text depends on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdec.cache import SequenceKV
from specdec.runtime.hook import CURRENT, TreeForward
from specdec.runtime.paged_cache import PagedCache


class Llama4Cache(PagedCache):
    """Tells a layer that asks for its own length where each node is, less the number of nodes
    before it: the layer adds that again.
    """

    def __init__(self, text_config: PretrainedConfig) -> None:
        super().__init__(text_config)
        self._device = torch.device("cpu")

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in other families."""
        self._device = key_states.device
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    # Any: transformers annotates an int, and these layers take a tensor as well.
    def get_seq_length(self, layer_idx: int | None = None) -> Any:
        """Tokens committed; for a layer, in a forward over trees, int64 ``(N,)``."""
        forward = CURRENT.get()
        if layer_idx is None or not isinstance(forward, TreeForward):
            return super().get_seq_length()
        places = [
            _padding(sequence) + sequence.end + depth
            for sequence, count, *_ in forward.rows
            for depth in sequence.scratch_depths[-count:]
        ]
        before = [place - index for index, place in enumerate(places)]
        return torch.tensor(before, device=self._device)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """For masks, which want the number."""
        length: int = super().get_seq_length()
        return length


def _padding(sequence: SequenceKV) -> int:
    padding = sequence.beside
    assert isinstance(padding, int), "an adapter that counts padding says what it is"
    return padding
