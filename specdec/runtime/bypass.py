"""Leaving out some layers of a model's text tower, in forwards of our own only.

Such a forward drafts: what it says is a guess. Knows nothing of trees or caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from specdec.runtime import hook
from specdec.runtime.taps import text_layers


class Bypass:
    """Some layers of ``model``, to be passed by.

    The first forward runs them still, to see what they return.

    Args:
        model: a decoder-only transformers model.
        layers: which, from 0.

    Raises:
        ValueError: it has no such layers, or some that are left read their keys.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int]) -> None:
        every = text_layers(model)
        name, wanted = type(model).__name__, sorted(set(layers))
        if not all(0 <= layer < len(every) for layer in wanted) or len(wanted) == len(every):
            raise ValueError(
                f"{name} has {len(every)} text layers, 0 to {len(every) - 1}; layers "
                f"{', '.join(map(str, wanted))} of it cannot be skipped"
            )
        text_config = model.config.get_text_config(decoder=True)
        if wanted and getattr(text_config, "num_kv_shared_layers", None):
            raise ValueError(f"{name} has layers that read the keys of others; none can be skipped")
        self._layers: list[nn.Module] = [every[layer] for layer in wanted]
        self._in_tuples: dict[int, bool] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, forwards of this context pass the layers by. To be used where nobody else
        changes the model.
        """
        with ExitStack() as stack:
            for layer in self._layers:
                if id(layer) in self._in_tuples:
                    stack.enter_context(_replaced(layer, in_tuple=self._in_tuples[id(layer)]))
                else:
                    stack.enter_context(layer.register_forward_hook(self._note))
            yield

    def _note(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._in_tuples[id(layer)] = isinstance(output, tuple)


@contextmanager
def _replaced(layer: nn.Module, *, in_tuple: bool) -> Iterator[None]:
    """The layer hands on what it gets."""
    instance = vars(layer)
    before = instance.get("forward")  # accelerate puts one there
    instance["forward"] = partial(_hand_on, layer.forward, in_tuple)
    try:
        yield
    finally:
        if before is None:
            del instance["forward"]
        else:
            instance["forward"] = before


def _hand_on(own: Any, in_tuple: bool, *args: Any, **kwargs: Any) -> Any:
    """Any: whatever a layer of transformers takes and returns."""
    if hook.CURRENT.get() is None:  # another thread's plain forward is none of ours
        return own(*args, **kwargs)
    states = args[0] if args else kwargs["hidden_states"]
    return (states,) if in_tuple else states
