"""``generate`` and its relatives: thin clients of the engine with transformers' own contract.

What a call asks for is :mod:`specdec.arguments`, what it gives back :mod:`specdec.outputs`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)

from specdec.acceptance import Rule
from specdec.arguments import (
    Prepared,
    by_name,
    check_arguments,
    decodings,
    prepare,
    runs_prompt,
    shows_states,
)
from specdec.calls import alike_generator, check_alike, check_gives, rule_of, verifier_for
from specdec.choice import (
    Choice,
    DrafterLike,
    TreeLike,
    choose,
    resolve_drafter,
    resolve_tree,
)
from specdec.engine import Emission, Engine
from specdec.engine.engine import DEFAULT_SHAPE
from specdec.interfaces import Prompt
from specdec.outputs import Columns, assemble, sequences_of
from specdec.policies import Acceptance
from specdec.states import Shown, give_keys, gives_keys, run_prompt, show
from specdec.switch import replaced
from specdec.verifiers import TransformersVerifier


def generate(
    model: PreTrainedModel,
    *args: Any,
    drafter: DrafterLike = None,
    tree: TreeLike = DEFAULT_SHAPE,
    acceptance: Acceptance = "lossless",
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
            (it drafts without seeing the image); the path of a saved drafter; ``"ngram"``;
            ``"self_pruned"``, the model itself with a part of the image; a list of several, whose
            drafts are merged.
            Without it ``assistant_model=`` and ``prompt_lookup_num_tokens=`` say who drafts, as for
            ``model.generate``; without these the model decodes plainly.
        tree: the largest tree to draft; an int is a chain of that many tokens, a text as on the
            command line: ``"3,2,1"``, ``"dynamic:16"``. An :class:`Adaptive` drafts as much as
            pays and remembers from call to call what does; ``"auto"`` is a new one.
        acceptance: ``"lossless"``: greedy answers are those of ``model.generate``, sampled ones
            follow the same distribution. A :class:`Relaxed`, or the path of a policy file that
            ``specdec calibrate`` has written: they may differ, within its bound, where the image
            does not decide. A rule of :mod:`specdec.baselines`: without a bound.
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
        ``return_dict_in_generate=True``. Either carries ``stats``, an :class:`AcceptanceStats`, and
        ``ledger``: per row how each of its tokens was accepted, empty if losslessly.

    Raises:
        ValueError: an argument that specdec does not support, a model it cannot run, or a drafter
            that does not fit; before any work is done.
    """
    if not isinstance(model, GenerationMixin):
        raise ValueError(
            f"{type(model).__name__} has no generate method; it is no generative model"
        )
    kwargs = by_name(model, args, kwargs)
    if verifier is not None and verifier.model is not model:
        raise ValueError(
            f"verifier= runs another {type(verifier.model).__name__} than the "
            f"{type(model).__name__} that is to generate; make one for it"
        )
    streamer = kwargs.pop("streamer", None)
    try:
        check_arguments(model, kwargs)
        rule = rule_of(model, acceptance, kwargs)
        choice = choose(model, drafter, tree, kwargs)
        own = verifier or verifier_for(model, choice.drafter, rule, kv_cache_bytes)
        check_gives(own, rule)
        engine = _engine(own, choice)
        prepared = prepare(model, kwargs)
        if verifier is None:
            own.shares &= len(prepared.input_ids) > 1
        prepared = prepared._replace(streamer=streamer)
        return _decode(engine, own, prepared, rule, generator, on_emission)
    finally:
        # Whatever happens: somebody may be waiting at the other end.
        if streamer is not None:
            streamer.end()


def decoder(
    drafter: DrafterLike,
    *,
    tree: TreeLike = DEFAULT_SHAPE,
    acceptance: Acceptance = "lossless",
) -> Callable[..., Any]:
    """A callable for ``model.generate(custom_generate=...)``.

    transformers passes neither ``streamer`` nor ``tokenizer`` (which ``stop_strings`` needs)
    through that door, so with them use :func:`generate` or :func:`enabled`.
    """
    shape = resolve_tree(tree)  # what it measures lasts as long as the decoder

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        asked = model_kwargs | {"generation_config": generation_config}
        check_arguments(model, asked)
        rule = rule_of(model, acceptance, asked)
        prepared = Prepared(
            model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs
        )
        choice = choose(model, drafter, shape, {})
        verifier = verifier_for(model, choice.drafter, rule)
        engine = _engine(verifier, choice)
        return _decode(engine, verifier, prepared, rule, None)

    return decode


@contextmanager
def enabled(
    model: PreTrainedModel,
    drafter: DrafterLike,
    *,
    tree: TreeLike = DEFAULT_SHAPE,
    acceptance: Acceptance = "lossless",
    kv_cache_bytes: int | None = None,
) -> Iterator[PreTrainedModel]:
    """Within this context ``model.generate`` is :func:`generate`, under a pipeline for instance.

    Prompts that begin alike, with the same images, are computed once as long as the context lasts
    and ``kv_cache_bytes`` suffice. The model is as before afterwards, whatever happens inside;
    contexts may be nested. All threads see the context opened last; one context serves one call at
    a time, others wait.

    Raises:
        ValueError: what :func:`generate` would refuse whatever the call.
    """
    drafter = resolve_drafter(drafter, model)
    verifier = verifier_for(model, drafter, rule_of(model, acceptance, {}), kv_cache_bytes)
    shape = resolve_tree(tree)  # what it measures lasts as long as the context
    _engine(verifier, Choice(drafter, shape))
    one_call = threading.RLock()  # pages and drafters are not made for two at once

    def replacement(*args: Any, **kwargs: Any) -> Any:
        how: dict[str, Any] = {"drafter": drafter, "tree": shape, "acceptance": acceptance}
        with one_call:
            return generate(model, *args, verifier=verifier, **how, **kwargs)

    with replaced(model, replacement):
        yield model


def _engine(verifier: TransformersVerifier, choice: Choice) -> Engine:
    check_alike(verifier.model, choice.shape)
    return Engine(verifier, choice.drafter, choice.shape)


def _decode(
    engine: Engine,
    verifier: TransformersVerifier,
    prepared: Prepared,
    rule: Rule | None,
    generator: torch.Generator | None,
    on_emission: Callable[[Emission], None] | None = None,
) -> Any:
    """Run prepared rows to their ends and assemble what ``generate`` returns."""
    config = prepared.generation_config
    if generator is None and config.do_sample:
        generator = alike_generator(prepared.model)
    shows = shows_states(config)
    keeps = gives_keys(prepared) and not shows
    prompt = Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)
    streamer, outputs, shown = Columns(prepared), None, Shown()
    try:
        streamer.start()
        if runs_prompt(prepared.model_kwargs, config):
            with engine.timed("prefill"):
                ready, outputs = run_prompt(prepared)
            prompt = prompt._replace(ready=ready)
        requests = engine.submit(prompt, decodings(prepared, generator, rule, keep_keys=keeps))
        while engine.has_work:
            emissions = engine.step()
            if on_emission is not None:
                for emission in emissions:
                    on_emission(emission)
            streamer.advance(requests)
        if keeps:
            give_keys(verifier, requests, prepared)
    finally:
        engine.close()
    sequences = sequences_of(prepared, requests)
    if shows:
        shown = show(prepared, outputs, sequences)
    return assemble(prepared, requests, sequences, shown, engine.stats)
