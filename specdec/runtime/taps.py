"""What goes into some layers of a model's text tower, caught on its way there.

Knows nothing of trees or caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.runtime import hook

# What another thread's forward may call a hook with instead of keyword arguments: torch adds it
# first, and then notes that it takes them.
NOT_YET: Mapping[str, Any] = MappingProxyType({})


class Taps:
    """The inputs of these layers in a forward of ``model``, which stays as it is between two.

    Args:
        model: a decoder-only transformers model.
        layers: which; k is what transformers calls ``hidden_states[k]``.

    Raises:
        ValueError: it has no such layers.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._notes = [(partial(self._note, layer), _layers(model, layer)) for layer in layers]
        self._seen: dict[int, Tensor] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, note what the layers are called with."""
        self._seen = {}
        watches = [
            layer.register_forward_pre_hook(note, with_kwargs=True) for note, layer in self._notes
        ]
        try:
            yield
        finally:
            for watch in watches:
                watch.remove()

    def take(self) -> Tensor:
        """What they were called with in the forward just watched, ``(B, T, layers * H)``."""
        seen, self._seen = self._seen, {}
        return torch.cat([seen[index] for index in self._layers], -1)

    def _note(
        self,
        index: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] = NOT_YET,
    ) -> None:
        if hook.CURRENT.get() is not None:  # another thread's plain forward is none of ours
            self._seen[index] = (args[0] if args else kwargs["hidden_states"]).detach()


def text_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a model's text tower.

    Raises:
        ValueError: they are not where transformers' models have them.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder: Any = model.get_decoder()
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__}: no list of its {count} text layers was found in it")


def _layers(model: PreTrainedModel, layer: int) -> nn.Module:
    layers = text_layers(model)
    if not 0 <= layer < len(layers):
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} text layers; the input of layer {layer} was "
            f"asked for, there are those of 0 to {len(layers) - 1}"
        )
    return layers[layer]
