"""The cache that a model is handed: it holds nothing, keys go to the current forward's pages."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs
from transformers.configuration_utils import PretrainedConfig

from specdec.runtime.hook import CURRENT

# Layers that keep a state, which every token changes, instead of keys.
RECURRENT = frozenset({"linear_attention", "conv"})
_SLIDING = ("sliding_attention", "hybrid_sliding", "chunked_attention")


class PagedLayer(CacheLayerMixin):
    """One layer of :class:`PagedCache`: what transformers asks of a layer to build its masks."""

    is_compileable = False

    def __init__(self, layer_type: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it unannotated
        self.is_sliding = layer_type in _SLIDING

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        raise RuntimeError("PagedCache.update stores the keys; its layers hold none")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        forward = CURRENT.get()
        return forward.cached if forward is not None else 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1


class PagedCache(Cache):
    """What a model's forward gets as ``past_key_values``; the keys go to the current forward's
    pages.

    Attributes:
        keeps_states: some layers keep more of a text than keys of its tokens.
    """

    def __init__(self, text_config: PretrainedConfig) -> None:
        types = get_layer_types_and_kwargs(text_config)[0]
        crossing = getattr(text_config, "cross_attention_layers", None)
        self.keeps_states = bool(crossing) or not RECURRENT.isdisjoint(types)
        super().__init__(layers=[PagedLayer(layer_type) for layer_type in types])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys; what the layer goes on with is for the forward to say."""
        forward = CURRENT.get()
        assert forward is not None, "a PagedCache was used outside of its own forward"
        return forward.store(layer_idx, key_states, value_states)
