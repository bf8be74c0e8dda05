"""What a call of ``generate`` asks for: refused by name, or prepared by transformers.

Everything is prepared (lengths, positions, processors, criteria, expansion) exactly as for
``model.generate``; only then does transformers hand over. Knows nothing of drafting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from specdec.engine import Decoding

# Arguments of transformers' generate that ask for something specdec does not do, with the values
# that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0.0),
    "dola_layers": (None,),
    "guidance_scale": (None, 1, 1.0),
    "assistant_model": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "token_healing": (None, False),
    "custom_generate": (None,),
    "negative_prompt_ids": (None,),
    "past_key_values": (None,),
    "inputs_embeds": (None,),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "prefill_chunk_size": (None,),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "synced_gpus": (None, False),
    "watermarking_config": (None,),
}


class Prepared(NamedTuple):
    """What transformers hands to a decoding method, and what it keeps from it."""

    model: PreTrainedModel
    input_ids: Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    streamer: BaseStreamer | None = None


def check_arguments(model: PreTrainedModel, acceptance: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse by name what specdec does not do."""
    if acceptance != "lossless":
        raise ValueError(f'acceptance={acceptance!r} is not known; there is "lossless"')
    config = kwargs.get("generation_config") or model.generation_config
    for name, harmless in _REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if not any(value is allowed or value == allowed for allowed in harmless):
            raise ValueError(f"specdec does not support {name}={value!r} in generate")


def prepare(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
    """Let transformers prepare a call of ``generate`` and hand over before it decodes."""
    stop_strings = kwargs.pop("stop_strings", None)
    tokenizer = kwargs.pop("tokenizer", None)
    if stop_strings is None:
        config = kwargs.get("generation_config") or model.generation_config
        stop_strings = config.stop_strings
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("stop_strings need the tokenizer: pass tokenizer= as well")
        criteria = list(kwargs.pop("stopping_criteria", None) or ())
        kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*criteria, StopStringCriteria(tokenizer, stop_strings)]
        )
        kwargs["stop_strings"] = None

    def capture(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Prepared:
        return Prepared(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
        )

    if not isinstance(model, GenerationMixin):
        raise ValueError(
            f"{type(model).__name__} has no generate method; it is no generative model"
        )
    generate_of_class: Any = type(model).generate  # not that of `enabled`
    with _images_unread(model, kwargs):
        prepared: Prepared = generate_of_class(model, *args, custom_generate=capture, **kwargs)
    return prepared


@contextmanager
def _images_unread(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within this context transformers prepares ``generate`` without running the vision tower.

    From 5.23 on it does so beforehand, though the image may be in the cache. Only where it expands
    rows for several samples each is it left to: pixels of rows with several images it cannot.
    """
    config = kwargs.get("generation_config") or model.generation_config
    samples = kwargs.get("num_return_sequences") or config.num_return_sequences or 1
    name = "_prepare_multimodal_encoder_kwargs_for_generation"
    if samples > 1 or not hasattr(model, name):
        yield
        return
    vars(model)[name] = lambda model_kwargs: model_kwargs
    try:
        yield
    finally:
        del vars(model)[name]


def decoding(prepared: Prepared, generator: torch.Generator | None) -> Decoding:
    config = prepared.generation_config
    max_length, eos, others = config.max_length, set[int](), StoppingCriteriaList()
    for criterion in prepared.stopping_criteria:
        if type(criterion) is MaxLengthCriteria:
            max_length = min(max_length, criterion.max_length)
        elif type(criterion) is EosTokenCriteria:
            eos.update(criterion.eos_token_id.tolist())
        else:
            others.append(criterion)
    processor: Any = prepared.logits_processor  # a list that is callable
    wants_dict = config.return_dict_in_generate
    return Decoding(
        max_length=max_length,
        num_rows=prepared.input_ids.shape[0],
        do_sample=config.do_sample,
        temperature=config.temperature or 1.0,
        processor=processor if len(processor) else None,
        stopping=(lambda ids, scores: bool(others(ids, scores).any())) if others else None,
        eos_token_ids=frozenset(eos),
        generator=generator,
        keep_scores=bool(wants_dict and config.output_scores),
        keep_logits=bool(wants_dict and config.output_logits),
    )


def padding(prepared: Prepared) -> tuple[int, ...]:
    """Left padding per row.

    Raises:
        ValueError: masked tokens elsewhere than on the left.
    """
    mask = prepared.model_kwargs.get("attention_mask")
    if mask is None:
        return (0,) * prepared.input_ids.shape[0]
    counts = (mask == 0).sum(-1)
    if bool((mask[:, :-1] > mask[:, 1:]).any()):
        raise ValueError(
            "attention_mask masks tokens to the right of others; specdec takes left padding only "
            "(set padding_side='left' on the processor's tokenizer)"
        )
    return tuple(counts.tolist())
