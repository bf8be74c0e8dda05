"""From the fields of a request to arguments of `generate`: how tokens are chosen."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from specdec.serving.errors import refused
from specdec.serving.schema import ChatRequest, Common, Fields

# Fields that say nothing about the answer, or cannot be told from their absence.
_HARMLESS = frozenset(
    (
        *("metadata", "store", "safety_identifier", "service_tier", "prediction"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "cache_control"),
        # Of answers, which come back as turns of a conversation.
        *("annotations", "index", "parsed", "parsed_arguments"),
    )
)
# Fields that ask for something else than what they ask for with these values.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "continuous_usage_stats": (False,),
    "prefix": (False,),
}
_ID = re.compile(r"[0-9]{1,9}")

_COLDEST = 1e-4  # temperature; below it decoding is greedy


class Bias(LogitsProcessor):
    """Adds to the logits of some tokens.

    Args:
        bias: by token.
    """

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = torch.tensor(list(bias), dtype=torch.int64)
        self._bias = torch.tensor(list(bias.values()))

    # Any: what the base class's decorator leaves of its types.
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        ids, bias = self._ids.to(scores.device), self._bias.to(scores)
        return scores.index_add(1, ids, bias[None].expand(len(scores), -1))


class Repeated(LogitsProcessor):
    """Takes from the logits of tokens that the answer has: ``frequency`` for each time, and
    ``presence`` once.

    Args:
        prompt: tokens of the prompt, which do not count.
    """

    def __init__(self, frequency: float, presence: float, prompt: int) -> None:
        self._frequency, self._presence, self._prompt = frequency, presence, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        said, times = input_ids[0, self._prompt :].unique(return_counts=True)
        less = self._frequency * times + self._presence
        return scores.index_add(1, said.to(scores.device), -less.to(scores)[None])


def how(body: Common, prompt: int, vocabulary: int) -> dict[str, Any]:
    """Arguments of `generate` that say how to choose tokens.

    Args:
        body: the request.
        prompt: tokens of the prompt.
        vocabulary: tokens that there are.

    Raises:
        ApiError: something is asked for that this server does not do.
    """
    chosen: dict[str, Any] = {"do_sample": False}
    # Dividing by less overflows; the most probable token is all that it leaves anyway.
    if body.temperature is None or body.temperature >= _COLDEST:
        chosen = {
            "do_sample": True,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "top_k": max(body.top_k or 0, 0),
        }
        if body.min_p:
            chosen["min_p"] = body.min_p
    if body.repetition_penalty is not None:
        chosen["repetition_penalty"] = body.repetition_penalty
    if body.ignore_eos:
        chosen["eos_token_id"] = None
    processors = LogitsProcessorList()
    if body.logit_bias:
        processors.append(Bias(_biases(body.logit_bias, vocabulary)))
    if body.frequency_penalty or body.presence_penalty:
        processors.append(
            Repeated(body.frequency_penalty or 0.0, body.presence_penalty or 0.0, prompt)
        )
    return chosen | ({"logits_processor": processors} if processors else {})


def generator(seed: int | None, sample: int) -> torch.Generator | None:
    """Randomness for one of several samples; ``None``: the engine sees to it."""
    return None if seed is None else torch.Generator().manual_seed(seed + sample)


def stops(body: Common) -> tuple[str, ...]:
    """The strings before which an answer ends."""
    given = body.stop
    strings = [given] if isinstance(given, str) else given or []
    if "" in strings:
        raise refused("stop: an empty string would end every answer before it begins", "stop")
    return tuple(dict.fromkeys(strings))


def check_extra(body: Fields, place: str = "") -> None:
    """Refuse by name what would change an answer and is not done here.

    Args:
        body: the request, or what is in it.
        place: where it is there, as the beginning of its fields' names.

    Raises:
        ApiError: the request has such a field.
    """
    for name, value in (body.model_extra or {}).items():
        if value is None or name in _HARMLESS:
            continue
        if name == "parallel_tool_calls" and not getattr(body, "tools", None):
            continue  # there is nothing to call
        neutral = _NEUTRAL.get(name, ())
        if not any(type(value) is type(allowed) and value == allowed for allowed in neutral):
            only = f"; only {_listed(neutral)} is" if neutral else ""
            name = place + name
            raise refused(f"{name} is not supported{only}", name, "unsupported_parameter")
    for name in type(body).model_fields:
        value = getattr(body, name)
        if isinstance(value, Fields):
            check_extra(value, f"{place}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Fields):
            for number, item in enumerate(value):
                check_extra(item, f"{place}{name}.{number}.")


def wanted_tokens(body: Common, most: int) -> int:
    """How long the answer may be.

    Raises:
        ApiError: longer than the server lets it.
    """
    name, wanted = "max_tokens", body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        name, wanted = "max_completion_tokens", body.max_completion_tokens
    if wanted is None:
        return most
    if wanted > most:
        raise refused(f"{name}={wanted} is more than the {most} that this server gives", name)
    return wanted


def _biases(given: Mapping[str, float], vocabulary: int) -> dict[int, float]:
    biases = {}
    for key, bias in given.items():
        if not _ID.fullmatch(key) or int(key) >= vocabulary:
            raise refused(
                f"logit_bias: {key!r} is no token; the model has {vocabulary}", "logit_bias"
            )
        biases[int(key)] = bias
    return biases


def _listed(values: Sequence[Any]) -> str:
    return " or ".join(map(repr, values))
