"""A small model, and what it answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from support import families
from support.batching import NEW_TOKENS


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


@pytest.fixture(scope="module")
def cases(model: PreTrainedModel) -> list[tuple[Tensor, list[int]]]:
    """Prompts of 3 to 60 tokens, some of which begin alike, and what the model answers."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randint(2, 140, (1, 24), generator=generator)
    pairs = []
    for index in range(12):
        own = torch.randint(2, 140, (1, 3 + 3 * index), generator=generator)
        ids = torch.cat([common, own], 1) if index % 3 == 0 else own
        answer = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        pairs.append((ids, answer[0, ids.shape[1] :].tolist()))
    return pairs
