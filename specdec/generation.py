"""``generate`` and its relatives: thin clients of the engine with transformers' own contract.

transformers prepares everything (lengths, positions, processors, criteria, expansion) exactly as
for ``model.generate``; only the decoding itself is replaced, through its ``custom_generate`` door.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
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
from transformers.generation.utils import GenerateDecoderOnlyOutput

from specdec.drafters import NgramDrafter, TextOnlyDrafter, load_drafter
from specdec.engine import Decoding, Emission, Engine, Request
from specdec.engine.engine import DEFAULT_SHAPE
from specdec.interfaces import Drafter, Prompt
from specdec.stats import AcceptanceStats
from specdec.tree import Topology, chain
from specdec.verifiers import TransformersVerifier

DrafterLike = Drafter | PreTrainedModel | str | PathLike[str] | None

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


def generate(
    model: PreTrainedModel,
    *args: Any,
    drafter: DrafterLike,
    tree: Topology | int = DEFAULT_SHAPE,
    acceptance: str = "lossless",
    generator: torch.Generator | None = None,
    on_emission: Callable[[Emission], None] | None = None,
    kv_cache_bytes: int | None = None,
    verifier: TransformersVerifier | None = None,
    **kwargs: Any,
) -> Any:
    """``model.generate``, faster: the same arguments, the same returns, the same tokens.

    Args:
        model: a decoder-only transformers model, text-only or vision-language.
        *args: as for ``model.generate``.
        drafter: a :class:`Drafter`; a transformers causal language model with the same tokenizer
            (it drafts without seeing the image); the path of a saved drafter; ``"ngram"``; ``None``
            decodes plainly.
        tree: the largest tree to draft; an int is a chain of that many tokens.
        acceptance: ``"lossless"``: greedy answers are those of ``model.generate``, sampled ones
            follow the same distribution.
        generator: source of randomness when sampling, on the CPU; ``None`` is torch's global one.
        on_emission: called with every token as soon as it is decided: the row that it belongs to
            (``request_id``), its id, and whether a drafter proposed it.
        kv_cache_bytes: what the verifier's keys and values may take; ``None`` is a quarter of the
            memory that is free.
        verifier: the model's, kept from call to call: what prompts have in common with earlier ones
            from their beginnings on, images included, is then not computed again. ``None`` makes
            one for this call.
        **kwargs: as for ``model.generate``.

    Returns:
        What ``model.generate`` returns: ids ``(B, T)``, or an output object with
        ``return_dict_in_generate=True``. Either carries ``stats``, an :class:`AcceptanceStats`.

    Raises:
        ValueError: an argument that specdec does not support, a model it cannot run, or a drafter
            that does not fit; before any work is done.
    """
    _check_arguments(model, acceptance, kwargs)
    if verifier is not None and verifier.model is not model:
        raise ValueError(
            f"verifier= runs another {type(verifier.model).__name__} than the "
            f"{type(model).__name__} that is to generate; make one for it"
        )
    own = verifier or TransformersVerifier(model, kv_cache_bytes=kv_cache_bytes)
    engine = _engine(own, drafter, tree)
    streamer = kwargs.pop("streamer", None)
    prepared = _prepare(model, args, kwargs)
    if verifier is None:
        own.shares &= len(prepared.input_ids) > 1
    return _decode(engine, prepared._replace(streamer=streamer), generator, on_emission)


def decoder(
    drafter: DrafterLike,
    *,
    tree: Topology | int = DEFAULT_SHAPE,
    acceptance: str = "lossless",
) -> Callable[..., Any]:
    """A callable for ``model.generate(custom_generate=...)``.

    transformers passes neither ``streamer`` nor ``tokenizer`` (which ``stop_strings`` needs)
    through that door, so with them use :func:`generate` or :func:`enabled`.
    """

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        _check_arguments(model, acceptance, {"generation_config": generation_config})
        prepared = Prepared(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
        )
        return _decode(_engine(TransformersVerifier(model), drafter, tree), prepared, None)

    return decode


@contextmanager
def enabled(
    model: PreTrainedModel,
    drafter: DrafterLike,
    *,
    tree: Topology | int = DEFAULT_SHAPE,
    acceptance: str = "lossless",
    kv_cache_bytes: int | None = None,
) -> Iterator[PreTrainedModel]:
    """Within this context ``model.generate`` is :func:`generate`, under a pipeline for instance.

    Prompts that begin alike, with the same images, are computed once as long as the context lasts
    and ``kv_cache_bytes`` suffice. The model is as before afterwards, whatever happens inside;
    contexts may be nested.
    """
    before = vars(model).get("generate")
    verifier = TransformersVerifier(model, kv_cache_bytes=kv_cache_bytes)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        how: dict[str, Any] = {"drafter": drafter, "tree": tree, "acceptance": acceptance}
        return generate(model, *args, verifier=verifier, **how, **kwargs)

    # Through vars(): torch's Module.__setattr__ has no say about a plain function.
    vars(model)["generate"] = replacement
    try:
        yield model
    finally:
        if before is None:
            del vars(model)["generate"]
        else:
            vars(model)["generate"] = before


def resolve_drafter(drafter: DrafterLike, model: PreTrainedModel) -> Drafter | None:
    """The drafter that a ``drafter=`` argument means.

    Raises:
        ValueError: it means none.
    """
    if drafter is None or isinstance(drafter, Drafter):
        return drafter
    if isinstance(drafter, PreTrainedModel):
        return TextOnlyDrafter(drafter)
    if drafter == "ngram":
        return NgramDrafter()
    if isinstance(drafter, (str, PathLike)):
        return load_drafter(drafter, model)
    raise ValueError(
        f"drafter={type(drafter).__name__}: expected a Drafter, a transformers causal language "
        'model, the path of a saved drafter, "ngram" or None'
    )


def _engine(verifier: TransformersVerifier, drafter: DrafterLike, tree: Topology | int) -> Engine:
    shape = chain(tree) if isinstance(tree, int) else tree
    return Engine(verifier, resolve_drafter(drafter, verifier.model), shape)


def _check_arguments(model: PreTrainedModel, acceptance: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse by name what specdec does not do."""
    if acceptance != "lossless":
        raise ValueError(f'acceptance={acceptance!r} is not known; there is "lossless"')
    config = kwargs.get("generation_config") or model.generation_config
    for name, harmless in _REFUSED.items():
        value = kwargs.get(name, getattr(config, name, None))
        if not any(value is allowed or value == allowed for allowed in harmless):
            raise ValueError(f"specdec does not support {name}={value!r} in generate")


def _prepare(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Prepared:
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


def _decode(
    engine: Engine,
    prepared: Prepared,
    generator: torch.Generator | None,
    on_emission: Callable[[Emission], None] | None = None,
) -> Any:
    """Run prepared rows to their ends and assemble what ``generate`` returns."""
    decoding = _decoding(prepared, generator)
    prompt = Prompt(prepared.input_ids, _padding(prepared), prepared.model_kwargs)
    streamer = _Columns(prepared)
    try:
        requests = engine.submit(prompt, decoding)
        streamer.start()
        while engine.has_work:
            emissions = engine.step()
            if on_emission is not None:
                for emission in emissions:
                    on_emission(emission)
            streamer.advance(requests)
    finally:
        engine.close()
        streamer.end()
    return _assemble(prepared, requests, engine.stats)


def _decoding(prepared: Prepared, generator: torch.Generator | None) -> Decoding:
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


def _padding(prepared: Prepared) -> tuple[int, ...]:
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


def _assemble(prepared: Prepared, requests: list[Request], stats: AcceptanceStats) -> Any:
    """What ``generate`` returns; rows that ended early are padded."""
    prompt, config = prepared.input_ids, prepared.generation_config
    longest = max(len(request.output) for request in requests)
    pad = config._pad_token_tensor
    sequences = prompt.new_full(
        (len(requests), prompt.shape[1] + longest), 0 if pad is None else int(pad)
    )
    sequences[:, : prompt.shape[1]] = prompt
    for row, request in zip(sequences, requests, strict=True):
        row[prompt.shape[1] : request.length] = request.ids[prompt.shape[1] : request.length]
    if not config.return_dict_in_generate:
        sequences.stats = stats  # type: ignore[attr-defined]  # a tensor takes attributes
        return sequences
    output: Any = GenerateDecoderOnlyOutput  # annotated with one-element tuples
    out = output(
        sequences=sequences,
        scores=_columns([request.scores for request in requests], longest),
        logits=_columns([request.logits for request in requests], longest),
    )
    out.stats = stats
    return out


def _columns(rows: list[list[Tensor]], longest: int) -> tuple[Tensor, ...] | None:
    """Per token one tensor ``(B, V)``; a row that ended early repeats its last entry."""
    if not rows[0]:
        return None
    return tuple(
        torch.stack([row[min(column, len(row) - 1)] for row in rows]) for column in range(longest)
    )


class _Columns:
    """Feeds a streamer as ``generate`` does: the prompt, then one token of every row at a time.

    Rows advance at their own pace; a column goes out once every unfinished row has reached it.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._streamer = prepared.streamer
        self._prompt = prepared.input_ids
        pad = prepared.generation_config._pad_token_tensor
        self._pad = 0 if pad is None else int(pad)
        self._sent = 0

    def start(self) -> None:
        if self._streamer is not None:
            self._streamer.put(self._prompt.cpu())

    def advance(self, requests: list[Request]) -> None:
        if self._streamer is None:
            return
        outputs = [request.output for request in requests]
        unfinished = [len(r.output) for r in requests if not r.finished]
        ready = min(unfinished) if unfinished else max(map(len, outputs))
        for column in range(self._sent, ready):
            tokens = [out[column] if column < len(out) else self._pad for out in outputs]
            self._streamer.put(torch.tensor(tokens))
        self._sent = ready

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()
