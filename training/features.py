"""What a drafter that sees learns from: a verifier's states over a prompt and its answer.

The prompt with its images is run as the verifier runs it, then the answer behind it, at the
positions that the verifier gives it. Knows nothing of drafters, or of files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from specdec.arguments import prepare
from specdec.cache.layout import visual_places
from specdec.runtime.paged_cache import RECURRENT
from specdec.training.prompts import model_inputs
from specdec.training.shards import Answer
from specdec.verifiers.overrides import override
from specdec.verifiers.spec import read_spec


@dataclass(frozen=True)
class Reading:
    """What is read of a verifier.

    Attributes:
        layers: whose inputs are tapped; as many as there are layers stands for the last output.
        shared_layer: whose keys and values of visual tokens are read; ``None`` is of none.
        page_size: tokens a page, of which whole ones are read.
    """

    layers: tuple[int, ...]
    shared_layer: int | None = None
    page_size: int = 16

    @property
    def name(self) -> str:
        """A folder's name for it."""
        taps = "-".join(map(str, self.layers))
        keys = "" if self.shared_layer is None else f"-keys-{self.shared_layer}"
        return f"states-{taps}{keys}"

    def check(self, model: PreTrainedModel) -> None:
        """Raise ``ValueError``, naming both sides, if the model has nothing of the kind."""
        spec = read_spec(model)
        if beyond := [k for k in self.layers if not 0 <= k <= spec.num_layers]:
            raise ValueError(
                f"taps of layers {beyond} were asked for; {spec.name} has {spec.num_layers} layers"
            )
        if self.shared_layer is None:
            return
        text = model.config.get_text_config(decoder=True)
        types = get_layer_types_and_kwargs(text)[0]
        crossing = getattr(text, "cross_attention_layers", None) or ()
        without = RECURRENT | {"dummy"}
        keyed = [k for k, kind in enumerate(types) if kind not in without and k not in crossing]
        if self.shared_layer not in keyed:
            raise ValueError(
                f"keys of layer {self.shared_layer} were asked for; {spec.name} keeps those of "
                f"layers {keyed}"
            )


class Features(NamedTuple):
    """Of one answer: T tokens, those of the prompt with its visual placeholders included.

    Attributes:
        positions: int64 ``(R, T)``: the position ids that the verifier uses (R = 1, 3 or 4).
        taps: ``(T, len(layers) * H)``: the inputs of the layers, one behind the other.
        last: ``(T, H)``: what the output embeddings read.
        visual_keys: ``(T_read, Hkv, D)``: the shared layer's, as they go into the cache.
        visual_values: ``(T_read, Hkv, Dv)``.
        read: int64 ``(T_read,)``: the places of these keys; see :func:`visual_places`.
    """

    positions: Tensor
    taps: Tensor
    last: Tensor
    visual_keys: Tensor | None
    visual_values: Tensor | None
    read: Tensor


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of answers.

    Attributes:
        model: the verifier that gave the answers.
        processor: its processor.
        reading: what to read.
        batch: answers that are read together.
    """

    model: PreTrainedModel
    processor: Any  # a transformers processor; their classes share no useful base
    reading: Reading
    batch: int = 8

    def read(self, answers: Sequence[Answer]) -> list[Features]:
        """The features of each answer, in order, where the model is.

        Raises:
            ValueError: the processor makes other tokens of a prompt than were answered.
        """
        # Where a row's padding changes what is made of it, there is to be none.
        batch = 1 if override(self.model.config).counts_padding else self.batch
        alike = defaultdict[int, list[int]](list)
        for i, answer in enumerate(answers):
            alike[len(answer.asked.images)].append(i)
        found: dict[int, Features] = {}
        for group in alike.values():
            for start in range(0, len(group), batch):
                chunk = group[start : start + batch]
                found |= zip(chunk, self._together([answers[i] for i in chunk]), strict=True)
        return [found[i] for i in range(len(answers))]

    def _together(self, answers: Sequence[Answer]) -> list[Features]:
        inputs = model_inputs(self.model, self.processor, [answer.asked for answer in answers])
        rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), answers, strict=True)
        for ids, real, answer in rows:
            prompt = answer.tokens[: answer.prompt_length]
            if ids[real].tolist() != prompt.tolist():
                raise ValueError(
                    f"{type(self.processor).__name__} makes {int(real.sum())} tokens of a prompt "
                    f"that was answered as {len(prompt)} others; it is not the processor of then"
                )
        said = [answer.tokens[answer.prompt_length :] for answer in answers]
        return features_of(self.model, inputs, said, self.reading)


@torch.no_grad()
def features_of(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    said: Sequence[Tensor],
    reading: Reading,
) -> list[Features]:
    """The features of a batch of answers, where the model is.

    Args:
        model: the verifier.
        inputs: what ``model.generate`` takes for the prompts, padded on the left.
        said: the answers, int64 ``(A,)`` each, no padding.
        reading: what to read.

    Raises:
        ValueError: the model has nothing of the kind that is to be read.
    """
    reading.check(model)
    cache = _cache(model)
    prepared = prepare(model, {**inputs, "max_new_tokens": 1})
    ids, padding = prepared.input_ids, prepared.padding
    given = _prompt_inputs(model, ids, prepared.model_kwargs, cache)
    before = _positions(given.get("position_ids"), ids, padding)  # (R, B, P)
    prompt = _run(model, reading, given, cache)
    keys = [
        _keys(model, cache, reading, row, ids[row, pad:].tolist())
        for row, pad in enumerate(padding)
    ]

    answers = pad_sequence([row.to(ids.device) for row in said], batch_first=True)
    steps = torch.arange(1, answers.shape[1] + 1, device=ids.device)
    behind = before[..., -1:] + steps  # (R, B, A)
    real = [torch.ones(len(row), dtype=torch.long, device=ids.device) for row in said]
    mask = torch.cat([_mask(prepared.model_kwargs, ids), pad_sequence(real, batch_first=True)], 1)
    following = {
        "input_ids": answers,
        "attention_mask": mask,
        "position_ids": behind[0] if len(behind) == 1 else behind,
    }
    if (crossing := given.get("cross_attention_mask")) is not None:
        # As for the whole text: transformers takes the answers' part.
        following["cross_attention_mask"] = crossing[:, -1:].expand(
            -1, mask.shape[1], *crossing.shape[2:]
        )
    answer = _run(model, reading, following, cache)
    features = []
    for i, (pad, row, (visual_keys, visual_values, read)) in enumerate(
        zip(padding, said, keys, strict=True)
    ):
        positions = torch.cat([before[:, i, pad:], behind[:, i, : len(row)]], dim=1)
        taps, last = (
            torch.cat([one[i, pad:], other[i, : len(row)]])
            for one, other in zip(prompt, answer, strict=True)
        )
        features.append(Features(positions, taps, last, visual_keys, visual_values, read))
    return features


def _cache(model: PreTrainedModel) -> DynamicCache:
    """One that keeps all keys, also of layers with a sliding window, which need the last only."""
    text = model.config.get_text_config(decoder=True)
    recurrent = not RECURRENT.isdisjoint(get_layer_types_and_kwargs(text)[0])
    return DynamicCache(config=text) if recurrent else DynamicCache()


def _prompt_inputs(
    model: PreTrainedModel, ids: Tensor, kwargs: Mapping[str, Any], cache: DynamicCache
) -> dict[str, Any]:
    # Any: the method comes from a mixin that PreTrainedModel does not declare.
    preparing: Any = model
    how = {**kwargs, "past_key_values": cache, "use_cache": True}
    given: dict[str, Any] = preparing.prepare_inputs_for_generation(
        ids, is_first_iteration=True, **how
    )
    for name in ("past_key_values", "use_cache", "logits_to_keep"):
        given.pop(name, None)
    return given


def _positions(positions: Tensor | None, ids: Tensor, padding: Sequence[int]) -> Tensor:
    """The prompt's position ids, int64 ``(R, B, P)``."""
    if positions is None:
        places = torch.arange(ids.shape[1], device=ids.device)
        return torch.stack([places - pad for pad in padding])[None]
    rows = positions[None] if positions.ndim == 2 else positions
    return rows.expand(-1, len(ids), -1)


def _mask(kwargs: Mapping[str, Any], ids: Tensor) -> Tensor:
    mask: Tensor | None = kwargs.get("attention_mask")
    return torch.ones_like(ids) if mask is None else mask.long()


def _run(
    model: PreTrainedModel, reading: Reading, given: Mapping[str, Any], cache: DynamicCache
) -> tuple[Tensor, Tensor]:
    """Taps ``(B, n, len(layers) * H)`` and last states ``(B, n, H)`` of the next n tokens."""
    with _before_head(model) as seen:
        out = model(
            **given,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=bool(reading.layers),
            return_dict=True,
        )
    shape = given["input_ids"].shape
    if [state.shape[:2] for state in seen] != [shape]:
        shapes = ", ".join(str(tuple(state.shape)) for state in seen) or "nothing"
        raise ValueError(
            f"{type(model).__name__} was run over {tuple(shape)} tokens, and its output embeddings "
            f"read {shapes}; its last hidden state cannot be told from that"
        )
    (last,) = seen
    tapped = [out.hidden_states[k] for k in reading.layers]
    return torch.cat(tapped, dim=-1) if tapped else last[..., :0], last


@contextmanager
def _before_head(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within, note what the output embeddings are called with, and have them read its end only:
    logits of all tokens take more memory than all else.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ValueError(
            f"{type(model).__name__} names no output embeddings, so its last hidden state cannot "
            "be given"
        )
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(args[0])
        return (args[0][:, -1:], *args[1:])

    watch = head.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        watch.remove()


def _keys(
    model: PreTrainedModel, cache: DynamicCache, reading: Reading, row: int, tokens: list[int]
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Keys and values of a row's visual places, and where they are. ``tokens`` are the row's, with
    which the cache ends.
    """
    visual = read_spec(model).visual_token_ids
    read = torch.tensor(visual_places(tokens, visual, reading.page_size)).long()
    if reading.shared_layer is None:
        return None, None, read
    layer: Any = cache.layers[reading.shared_layer]  # annotated as one without keys
    keys, values = (
        part[row, :, -len(tokens) :][:, read.to(part.device)].transpose(0, 1).clone()
        for part in (layer.keys, layer.values)
    )
    return keys, values, read
