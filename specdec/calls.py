"""What a call of ``generate`` comes to: who verifies, by which rule, which prompt, decoded how.

Shared by everything that takes ``generate``'s arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.acceptance import Rule
from specdec.arguments import stop_tokens
from specdec.engine.estimates import needs
from specdec.interfaces import Drafter, reads_of
from specdec.policies import Acceptance, Speaker, resolve
from specdec.verifiers import TransformersVerifier
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
) -> TransformersVerifier:
    """A verifier that gives what the drafter and the rule read."""
    wanted, reads = needs(rule), reads_of(drafter)
    return TransformersVerifier(
        model,
        kv_cache_bytes=kv_cache_bytes,
        hidden="hidden" in wanted,
        visual_mass="visual_mass" in wanted,
        taps=reads.layers,
        gaze=reads.gaze,
        gaze_every=reads.gaze_every,
    )


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


def fresh_generator() -> torch.Generator:
    """A source of randomness of its own, seeded by the machine."""
    generator = torch.Generator()
    generator.seed()
    return generator
