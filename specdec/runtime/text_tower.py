"""What a model's text tower is called with: read off, and put in another's place.

A vision-language model merges its images into the embeddings of a prompt and makes masks of it
before it calls its text tower. There a part of the tokens can be left out, and the others keep
their positions. Knows nothing of which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from specdec.runtime.paged_model import PagedModel
from specdec.runtime.taps import NOT_YET, text_layers

# What the text tower gets instead, in forwards of this context.
_GIVEN: ContextVar[Mapping[str, Any] | None] = ContextVar("specdec_tower_inputs", default=None)
_IGNORED = ("past_key_values", "use_cache", "cache_position", "input_ids")


class _Stopped(Exception):
    """Ends a forward where its text tower begins."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__("stopped at the text tower")
        self.inputs = inputs


class TowerInputs:
    """What the text tower gets for a batch of prompts.

    Attributes:
        values: by name, as the model hands them on.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @property
    def positions(self) -> Tensor | None:
        """``(B, T)`` or ``(R, B, T)``, where B may be 1 for all rows."""
        found: Tensor | None = self.values.get("position_ids")
        return found

    def part(self, row: int, columns: Tensor) -> dict[str, Any]:
        """One row's, of these columns int64 ``(n,)`` only.

        Raises:
            ValueError: there is something whose columns are not known.
        """
        width = self.values["inputs_embeds"].shape[1]
        return {
            name: self._part(name, value, row, columns, width)
            for name, value in self.values.items()
            if name not in _IGNORED
        }

    def _part(self, name: str, value: Any, row: int, columns: Tensor, width: int) -> Any:
        if isinstance(value, Mapping):  # masks by kind of layer
            inner = value.items()
            return {key: self._part(name, each, row, columns, width) for key, each in inner}
        if name == "deepstack_visual_embeds" and value is not None:
            return [self._deepstack(each, row, columns) for each in value]
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        columns = columns.to(value.device)
        if name == "attention_mask" and value.ndim == 4:
            own = value[row if len(value) > 1 else 0][None]
            return own[:, :, columns][..., columns]
        if name == "attention_mask":  # by token: it tells padding only
            return None
        if name == "position_ids":
            own = value[..., row if value.shape[-2] > 1 else 0, :]
            return own[..., None, columns]
        if value.ndim < 2 or value.shape[1] != width:
            raise ValueError(
                f"the text tower is called with {name} of shape {tuple(value.shape)}; specdec does "
                "not know which part of it belongs to which token"
            )
        return value[row : row + 1, columns]

    def _deepstack(self, features: Tensor, row: int, columns: Tensor) -> Tensor:
        """Of features ``(visual tokens of all rows, H)`` those in these columns."""
        mask: Tensor = self.values["visual_pos_masks"]
        number = mask.flatten().cumsum(0).view_as(mask) - 1
        columns = columns.to(mask.device)
        return features[number[row, columns][mask[row, columns]]]


class TextTower:
    """The text tower of ``model``."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers, decoder = text_layers(model), model.get_decoder()
        self._module: nn.Module = next(
            module
            for module in decoder.modules()
            if any(child is layers for child in module.children())
        )

    def inputs(self, paged: PagedModel, inputs: Mapping[str, Any]) -> TowerInputs:
        """What it is called with in a forward of the model over these prompts; it is not run."""
        return self._stopped(lambda: paged.prefill(inputs, ()))

    def called_with(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> TowerInputs:
        """The same in a forward of ``model`` without pages, which another thread may use."""
        return self._stopped(lambda: model(**inputs, use_cache=False, return_dict=True))

    def _stopped(self, forward: Callable[[], object]) -> TowerInputs:
        watch = self._module.register_forward_pre_hook(_stop, with_kwargs=True)
        token = _GIVEN.set({})
        try:
            forward()
        except _Stopped as stopped:
            return TowerInputs(stopped.inputs)
        finally:
            _GIVEN.reset(token)
            watch.remove()
        raise AssertionError("a model did not call its text tower")

    @contextmanager
    def given(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Within, forwards of this context call it with these."""
        watch = self._module.register_forward_pre_hook(_replace, with_kwargs=True)
        token = _GIVEN.set(inputs)
        try:
            yield
        finally:
            _GIVEN.reset(token)
            watch.remove()


def _stop(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NOT_YET) -> None:
    if _GIVEN.get() is not None:  # another thread's forward is none of ours
        raise _Stopped(kwargs)


def _replace(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = NOT_YET
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    given = _GIVEN.get()
    if given is None:
        return None
    return (), {**kwargs, "input_ids": None, **given}
