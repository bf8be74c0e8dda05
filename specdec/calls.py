"""What a call of ``generate`` comes to: who verifies, by which rule, which prompt, decoded how.

Shared by everything that takes ``generate``'s arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.acceptance import Rule
from specdec.arguments import check_arguments, decodings, prepare, runs_prompt, stop_tokens
from specdec.drafters import SelfPrunedDrafter
from specdec.engine import Adaptive, Decoding
from specdec.engine.estimates import needs
from specdec.interfaces import Drafter, Prompt, reads_of
from specdec.policies import Acceptance, Speaker, resolve
from specdec.runtime import shards_of
from specdec.tree import Shape
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.sharded import lead
from specdec.verifiers.spec import read_spec


def rule_of(
    model: PreTrainedModel, acceptance: Acceptance, kwargs: Mapping[str, Any]
) -> Rule | None:
    """What ``acceptance`` means in a call; ``None`` is losslessly."""
    if acceptance == "lossless":
        return None
    tokenizer, ends = kwargs.get("tokenizer"), stop_tokens(model, kwargs)
    return resolve(acceptance, Speaker(model, read_spec(model), tokenizer, ends))


def verifier_for(
    model: PreTrainedModel,
    drafter: Drafter | None,
    rule: Rule | None = None,
    kv_cache_bytes: int | None = None,
    *,
    leads: bool = False,
) -> TransformersVerifier:
    """A verifier that gives what the drafter and the rule read; ``leads``: if the model is spread
    over processes, all others follow this one, rather than doing the same by themselves.

    Raises:
        ValueError: a drafter that the processes cannot share.
    """
    wanted, reads = needs(rule), reads_of(drafter)
    how: dict[str, Any] = {
        "kv_cache_bytes": kv_cache_bytes,
        "hidden": "hidden" in wanted,
        "visual_mass": "visual_mass" in wanted,
        "taps": reads.layers,
        "gaze": reads.gaze,
        "gaze_every": reads.gaze_every,
    }
    if shards_of(model) is None:
        return TransformersVerifier(model, **how)
    if (
        drafter is not None
        and reads.pages
        and (leads or not isinstance(drafter, SelfPrunedDrafter))
    ):
        raise ValueError(
            f"drafter {drafter.name} reads the verifier's keys, and {type(model).__name__} is "
            "spread over processes, each of which has those of its own heads; take one that reads "
            "hidden states, or none of the verifier"
        )
    return lead(model, **how) if leads else TransformersVerifier(model, **how)


def check_alike(model: PreTrainedModel, shape: Shape | Adaptive) -> None:
    """Refuse what each process would decide for itself, of those that share a model.

    Raises:
        ValueError: they do, and it is.
    """
    if isinstance(shape, Adaptive) and shards_of(model) is not None:
        raise ValueError(
            f'tree="auto" goes by time, and {type(model).__name__} is spread over processes, each '
            "of which measures its own: give a tree of fixed size, or have rank 0 run a "
            "specdec.ThreadedEngine and the others specdec.serving.follow(model)"
        )


def alike_generator(model: PreTrainedModel) -> torch.Generator | None:
    """A source of randomness that is the same in all processes that share the model, seeded by
    their global ones; ``None`` if it is in one.
    """
    shards = shards_of(model)
    if shards is None:
        return None
    seed = shards.least(int(torch.randint(2**31, ())))
    return torch.Generator().manual_seed(seed)


def check_gives(verifier: TransformersVerifier, rule: Rule | None) -> None:
    """Refuse a rule that reads what this verifier does not give.

    Raises:
        ValueError: it does.
    """
    missing = needs(rule) - {"divergence"} - verifier.gives
    if missing:
        what = ", ".join(f"{name}=True" for name in sorted(missing))
        raise ValueError(
            f"acceptance reads {', '.join(sorted(missing))}, and verifier= gives none of it: make "
            f"it with TransformersVerifier(model, {what})"
        )


def one_request(
    model: PreTrainedModel,
    kwargs: dict[str, Any],
    generator: torch.Generator,
    rule: Rule | None,
    *,
    drafts: bool = True,
    top_logprobs: int | None = None,
) -> tuple[Prompt, Decoding]:
    """What a call asks for whose answer is one of many that an engine gives at once.

    Raises:
        ValueError: it asks for several, or for what only :func:`specdec.generate` does.
    """
    check_arguments(model, kwargs)
    prepared = prepare(model, kwargs)
    if runs_prompt(prepared.model_kwargs, prepared.generation_config):
        raise ValueError(
            "an engine takes no past_key_values, inputs_embeds, prefill_chunk_size or hidden "
            "states of one request; specdec.generate does"
        )
    if len(prepared.input_ids) != 1:
        raise ValueError(
            f"{len(prepared.input_ids)} prompts in one call; submit them one by one, they run "
            "together all the same"
        )
    prompt = Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)
    if prompt.padding[0] == prompt.input_ids.shape[1]:
        raise ValueError(
            "the prompt is all padding; if tokens used for padding are meant, pass attention_mask="
        )
    (decoding,) = decodings(prepared, generator, rule, drafts=drafts, top_logprobs=top_logprobs)
    return prompt, decoding


def fresh_generator() -> torch.Generator:
    """A source of randomness of its own, seeded by the machine."""
    generator = torch.Generator()
    generator.seed()
    return generator
