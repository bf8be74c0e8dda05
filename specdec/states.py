"""Where transformers' own forward and cache take part in ``generate``.

A prompt that continues a cache, or that is given as embeddings, is run as transformers runs it, and
its keys go into pages; at the end keys go back into the cache that the caller has, or gets. Hidden
states and attentions are those of transformers' forward over the answer, once it is known: the
engine's own forwards see packed trees. Knows nothing of drafting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from specdec.arguments import Prepared
from specdec.engine import Request
from specdec.interfaces import Ready
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.key_transfer import transferable

States = tuple[tuple[Tensor, ...], ...]


class PromptRun(NamedTuple):
    """``ready``: for the verifier. ``outputs``: of transformers' forward."""

    ready: Ready
    outputs: Any  # a ModelOutput, whose fields depend on the model


class Shown(NamedTuple):
    """Per token one tuple with a tensor per layer; ``None`` if not asked for."""

    hidden_states: States | None = None
    attentions: States | None = None


def gives_keys(prepared: Prepared) -> bool:
    """Whether the caller sees the cache when the answer is complete."""
    cache = prepared.model_kwargs.get("past_key_values")
    seen = prepared.generation_config.return_dict_in_generate or getattr(
        cache, "_is_user_defined", False
    )
    return bool(seen) and transferable(cache)


@torch.no_grad()
def run_prompt(prepared: Prepared) -> PromptRun:
    """Run the prompt as transformers does; its keys are in its cache afterwards."""
    cache: Cache = prepared.model_kwargs["past_key_values"]
    rows, given = prepared.input_ids.shape
    before = cache.get_seq_length()
    padding = prepared.cache_padding
    # Any: the methods come from a mixin that PreTrainedModel does not declare.
    model: Any = prepared.model
    outputs = model._prefill(prepared.input_ids, prepared.generation_config, prepared.model_kwargs)
    length = cache.get_seq_length()
    positions = prepared.model_kwargs.get("position_ids")
    last = torch.tensor([[length - 1 - pad for pad in padding]])
    if positions is not None:
        last = positions[..., -1].cpu()
        last = (last[None] if last.ndim == 1 else last).expand(-1, rows)
    known = [before - pad if given == length else 0 for pad in padding]
    logits = outputs.logits[:, -1]
    return PromptRun(Ready(cache, logits, last, padding, known), outputs)


@torch.no_grad()
def give_keys(
    verifier: TransformersVerifier, requests: Sequence[Request], prepared: Prepared
) -> None:
    """Append the answers' keys to the call's cache, those of each last token excepted.

    Rows that ended early go on with padding, as they do in transformers.
    """
    longest = max(len(request.output) for request in requests)
    for request in requests:
        missing = longest - len(request.output)
        if missing:
            tokens = [request.output[-1], *[prepared.pad_token] * (missing - 1)]
            verifier.append(request.handle, tokens)
    verifier.hand_over(
        [request.handle for request in requests],
        prepared.cache_padding,
        prepared.model_kwargs["past_key_values"],
    )


@torch.no_grad()
def show(prepared: Prepared, prompt: Any, sequences: Tensor) -> Shown:
    """What transformers would have shown of every token.

    Args:
        prepared: the call.
        prompt: outputs of the forward over the prompt.
        sequences: prompt and answers, rows that ended early padded. Their keys are in the cache
            afterwards, those of the last column excepted.
    """
    config, count = prepared.generation_config, sequences.shape[1] - prepared.input_ids.shape[1] - 1
    hidden = [prompt.hidden_states] if config.output_hidden_states else None
    attentions = [prompt.attentions] if config.output_attentions else None
    if count > 0:
        model: Any = prepared.model  # as in run_prompt
        kwargs = model._update_model_kwargs_for_generation(
            prompt, dict(prepared.model_kwargs), num_new_tokens=count
        )
        cache: Cache = kwargs["past_key_values"]
        inputs = model.prepare_inputs_for_generation(
            sequences[:, :-1], next_sequence_length=count, **kwargs
        )
        out = model(**inputs, return_dict=True)
        if hidden is not None:
            hidden += [
                tuple(layer[:, token : token + 1] for layer in out.hidden_states)
                for token in range(count)
            ]
        if attentions is not None:
            windows = [_window(cache, index) for index in range(len(out.attentions))]
            attentions += [
                tuple(
                    _of_token(layer, token, window)
                    for layer, window in zip(out.attentions, windows, strict=True)
                )
                for token in range(count)
            ]
    return Shown(
        None if hidden is None else tuple(hidden), None if attentions is None else tuple(attentions)
    )


def _window(cache: Cache, layer: int) -> int | None:
    window: int | None = getattr(cache.layers[layer], "sliding_window", None)
    return window


def _of_token(attention: Tensor | None, token: int, window: int | None) -> Any:
    """The row of one token, of ``attention (B, H, n, L)``: over the keys that it sees."""
    if attention is None:  # the model's attention implementation does not give them
        return None
    stop = attention.shape[3] - attention.shape[2] + token + 1
    start = max(0, stop - window) if window is not None else 0
    return attention[:, :, token : token + 1, start:stop]
