"""A small vision-language model as a drafter, with a part of the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import specdec
from specdec.drafters import VisionPrunedDrafter
from specdec.tree import chain
from support import families
from support.families.checks import build

NAMES = [n for n in families.SIGHTED if n not in ("qwen3_5", "mllama", "llama4")]
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


@pytest.mark.parametrize("name", NAMES)
def test_the_verifier_as_its_own_drafter_is_always_right(name: str) -> None:
    model, inputs, layouts, _ = build(name)
    for seed, layout in enumerate(layouts):
        out = specdec.generate(
            model,
            **inputs(seed, 9, layout),
            **GREEDY,
            drafter=VisionPrunedDrafter(model, 1.0),
            tree=chain(3),
            max_new_tokens=13,
            return_dict_in_generate=True,
        )
        assert out.stats.num_accepted_draft_tokens == out.stats.num_draft_tokens > 0, layout
