"""What a call of ``generate`` asks for: refused by name, or prepared by transformers.

Everything is prepared (lengths, positions, processors, criteria, expansion) exactly as for
``model.generate``; only then does transformers hand over. Knows nothing of drafting.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer

from specdec.acceptance import Rule
from specdec.engine import Decoding
from specdec.rules import rules
from specdec.runtime import visual_token_ids
from specdec.verifiers.key_transfer import transferable

# Arguments of transformers' generate that ask for something specdec does not do, with the values
# that ask for nothing.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "constraints": (None,),
    "force_words_ids": (None,),
    "penalty_alpha": (None, 0.0),
    "dola_layers": (None,),
    "assistant_early_exit": (None,),
    "use_mtp": (None, False),
    "speculation_type": (None,),
    "assistant_ensemble_weight": (None,),
    "token_healing": (None, False),
    "custom_generate": (None,),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
}
# Arguments that make transformers run the prompt, if they are set.
_RUNS_PROMPT = (
    "past_key_values",
    "inputs_embeds",
    "prefill_chunk_size",
    "output_hidden_states",
    "output_attentions",
)


class Prepared(NamedTuple):
    """What transformers hands to a decoding method, and what it keeps from it."""

    model: PreTrainedModel
    input_ids: Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    streamer: BaseStreamer | None = None

    @property
    def cache_padding(self) -> tuple[int, ...]:
        """Padding on each row's left, where the prompt begins with what its cache holds.

        Raises:
            ValueError: masked tokens elsewhere than on the left.
        """
        return _left_padding(self.model_kwargs.get("attention_mask"), len(self.input_ids))

    @property
    def padding(self) -> tuple[int, ...]:
        """Padding on the left of each row of ``input_ids``, which may be a prompt's end only."""
        mask = self.model_kwargs.get("attention_mask")
        before = 0 if mask is None else mask.shape[1] - self.input_ids.shape[1]
        return tuple(max(0, padding - before) for padding in self.cache_padding)

    @property
    def pad_token(self) -> int:
        """What rows that ended early are filled up with."""
        pad = self.generation_config._pad_token_tensor
        return 0 if pad is None else int(pad)


def runs_prompt(model_kwargs: Mapping[str, Any], config: GenerationConfig) -> bool:
    """Whether the prompt has to be run by transformers."""
    cache = model_kwargs.get("past_key_values")
    return (
        (cache is not None and cache.get_seq_length() > 0)
        or model_kwargs.get("inputs_embeds") is not None
        or config.prefill_chunk_size is not None
        or shows_states(config)
    )


def shows_states(config: GenerationConfig) -> bool:
    """Whether hidden states or attentions are wanted."""
    wanted = config.output_hidden_states or config.output_attentions
    return bool(config.return_dict_in_generate and wanted)


def check_arguments(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> None:
    """Refuse by name what specdec does not do."""
    for name, harmless in _REFUSED.items():
        value = _setting(model, kwargs, name)
        if not any(value is allowed or value == allowed for allowed in harmless):
            raise ValueError(f"specdec does not support {name}={value!r} in generate")
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    if kwargs.get("synced_gpus") and not (alone or torch.distributed.get_world_size() == 1):
        raise ValueError(
            "specdec does not support synced_gpus=True with several processes in generate"
        )
    cache = kwargs.get("past_key_values")
    if cache is not None and not transferable(cache):
        raise ValueError(
            f"specdec does not support past_key_values of type {type(cache).__name__}; "
            "it takes a DynamicCache that holds keys and values only"
        )
    types = kwargs.get("token_type_ids")
    if types is not None and not _tells_images(model, types):
        raise ValueError(
            "specdec does not support token_type_ids that say more than which tokens are visual: "
            f"{type(model).__name__} embeds them, and tokens that are drafted have none"
        )


def by_name(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a call of ``model.generate``, all by name."""
    signature = inspect.signature(_generate_of(model))
    given = dict(signature.bind_partial(model, *args, **kwargs).arguments)
    del given[next(iter(given))]  # the model itself
    others: dict[str, Any] = given.pop("kwargs", {})
    return given | others


def prepare(model: PreTrainedModel, kwargs: dict[str, Any]) -> Prepared:
    """Let transformers prepare a call of ``generate`` and hand over before it decodes."""
    stop_strings = _setting(model, kwargs, "stop_strings")
    tokenizer = kwargs.pop("tokenizer", None)
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
        # What the call leaves open comes from the model's own generation config.
        check_arguments(model, {"generation_config": generation_config})
        return Prepared(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
        )

    with _images_unread(model, kwargs):
        prepared: Prepared = _generate_of(model)(model, custom_generate=capture, **kwargs)
    return prepared


def _generate_of(model: PreTrainedModel) -> Any:
    """The class's own method, not that of `enabled`. Any: it comes from a mixin that
    PreTrainedModel does not declare.
    """
    method: Any = type(model)
    return method.generate


def stop_tokens(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> tuple[int, ...]:
    """What ends an answer of this call."""
    ends = _setting(model, kwargs, "eos_token_id")
    return () if ends is None else tuple(torch.as_tensor(ends).flatten().tolist())


def _setting(model: PreTrainedModel, kwargs: Mapping[str, Any], name: str) -> Any:
    """What a call asks for: by its arguments, or by its or the model's generation config."""
    config = kwargs.get("generation_config") or model.generation_config
    return kwargs.get(name, getattr(config, name, None))


@contextmanager
def _images_unread(model: PreTrainedModel, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within this context transformers prepares ``generate`` without running the vision tower.

    From 5.23 on it does so beforehand, though the image may be in the cache. Where it runs the
    prompt, too, it is left to; and where it expands rows for several samples each: pixels of rows
    with several images it cannot.
    """
    samples = _setting(model, kwargs, "num_return_sequences") or 1
    asked = [_setting(model, kwargs, name) for name in _RUNS_PROMPT]
    left_to_it = samples > 1 or any(value is not None and value is not False for value in asked)
    name = "_prepare_multimodal_encoder_kwargs_for_generation"
    if left_to_it or not hasattr(model, name) or name in vars(model):
        yield
        return
    vars(model)[name] = lambda model_kwargs: model_kwargs
    try:
        yield
    finally:
        vars(model).pop(name, None)  # another thread may have been here meanwhile


def decodings(
    prepared: Prepared,
    generator: torch.Generator | None,
    rule: Rule | None = None,
    *,
    keep_keys: bool = False,
    drafts: bool = True,
    top_logprobs: int | None = None,
) -> list[Decoding]:
    """What the engine is told about each row of a call.

    Raises:
        ValueError: the rule does not go with it.
    """
    config, count = prepared.generation_config, len(prepared.input_ids)
    own = rules(
        prepared.logits_processor,
        prepared.stopping_criteria,
        rows=count,
        max_length=config.max_length,
        pad=prepared.pad_token,
    )
    if rule is not None:
        processed = own.together is not None or any(own.processors)
        rule.check(do_sample=config.do_sample, processed=processed)
    wants_dict = config.return_dict_in_generate
    return [
        Decoding(
            max_length=own.max_length,
            do_sample=config.do_sample,
            temperature=config.temperature or 1.0,
            processor=processor,
            stopping=stopping,
            eos_token_ids=own.eos_token_ids,
            generator=generator,
            keep_scores=bool(wants_dict and config.output_scores),
            keep_logits=bool(wants_dict and config.output_logits),
            together=own.together,
            rule=rule,
            keep_keys=keep_keys,
            drafts=drafts,
            top_logprobs=top_logprobs,
        )
        for processor, stopping in zip(own.processors, own.stoppings, strict=True)
    ]


def _tells_images(model: PreTrainedModel, types: Tensor) -> bool:
    """Whether kinds of tokens are no more than that, or nothing at all: in a model with a table of
    its own for them, what has none is of kind 0.
    """
    if visual_token_ids(model.config):
        return True
    own_table = any("token_type" in name for name, _ in model.named_modules())
    return own_table and not bool(types.any())


def _left_padding(mask: Tensor | None, rows: int) -> tuple[int, ...]:
    if mask is None:
        return (0,) * rows
    counts = (mask == 0).sum(-1)
    if bool((mask[:, :-1] > mask[:, 1:]).any()):
        raise ValueError(
            "attention_mask masks tokens to the right of others; specdec takes left padding only "
            "(set padding_side='left' on the processor's tokenizer)"
        )
    return tuple(counts.tolist())
