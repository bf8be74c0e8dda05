"""What some layers keep of a text besides the keys of its tokens.

- Linear attention and convolutions keep a state that every token changes. It cannot branch, and it
  is not taken back: trees are chains, and what was refused is undone by starting from the state
  before it.
- Cross-attention keeps the keys of the image, which stay as they are.

Each text has transformers' own cache layers for these, so that no family's state has to be known
here; a forward over one text is given that text's layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)
from transformers.configuration_utils import PretrainedConfig

from specdec.runtime.paged_cache import RECURRENT, PagedCache, PagedLayer

# Any: linear-attention layers and those with keys have no common type.
Layers = dict[int, Any]


@dataclass(slots=True, eq=False)
class Beside:
    """What is kept of one text.

    Attributes:
        layers: their states behind the text's first tokens; never written to.
        inputs: what the model is given beside each of its nodes, ``(1, 1, …)``.
        behind: the text's last tokens, which ``layers`` have not seen. The sequence counts them as
            not committed.
        nodes: tokens of the last forward that are not part of the text yet.
        after: the states behind these.
    """

    layers: Layers
    inputs: dict[str, Tensor]
    behind: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    after: Layers | None = None


class Kinds:
    """Which layers of a text tower keep something besides keys."""

    def __init__(self, text_config: PretrainedConfig) -> None:
        types = get_layer_types_and_kwargs(text_config)[0]
        state = partial(
            LinearAttentionLayer,
            number_of_states=getattr(text_config, "number_of_conv_states", 1),
        )
        self._make: dict[int, Callable[[], Any]] = {
            index: state for index, kind in enumerate(types) if kind in RECURRENT
        }
        self.recurrent = frozenset(self._make)
        crossing: Iterable[int] = getattr(text_config, "cross_attention_layers", None) or ()
        self._make |= dict.fromkeys(crossing, DynamicLayer)

    def __bool__(self) -> bool:
        return bool(self._make)

    def fresh(self) -> Layers:
        """Layers that have seen nothing."""
        return {index: make() for index, make in self._make.items()}

    def written(self, layers: Layers) -> Layers:
        """These layers for a forward to write to: copies of those that it would change."""
        return {
            index: _copy(layer) if index in self.recurrent else layer
            for index, layer in layers.items()
        }

    def row(self, layers: Layers, row: int) -> Layers:
        """One text's layers out of those of a batch."""
        rows = {index: _copy(layer) for index, layer in layers.items()}
        for layer in rows.values():
            layer.reorder_cache(torch.tensor([row]))
        return rows


class StatefulCache(PagedCache):
    """A :class:`PagedCache` some of whose layers belong to the text of the current forward."""

    def lay(self, layers: Layers) -> None:
        """Put these in their places."""
        for index, layer in layers.items():
            self.layers[index] = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys of tokens go to pages, keys of images to their layer."""
        layer: Any = self.layers[layer_idx]
        if isinstance(layer, PagedLayer):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        updated: tuple[Tensor, Tensor] = layer.update(key_states, value_states, *args, **kwargs)
        return updated


def _copy(layer: Any) -> Any:
    """The layer with tensors of its own."""
    twin = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, Tensor):
            vars(twin)[name] = value.clone()
        elif isinstance(value, dict):
            vars(twin)[name] = {
                key: inner.clone() if isinstance(inner, Tensor) else inner
                for key, inner in value.items()
            }
    return twin
