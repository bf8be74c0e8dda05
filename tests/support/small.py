"""A small verifier with its processor, a drafter, and questions."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.training.prompts import Asked
from support import families, processors


class Small(NamedTuple):
    model: PreTrainedModel
    processor: Any
    drafter: PreTrainedModel
    questions: list[Asked]


@cache
def build() -> Small:
    """The same for all who ask."""
    questions = [
        Asked(
            processors.messages(i, 2 if i % 3 == 0 else 1),
            [processors.image(10 * i + j) for j in range(2 if i % 3 == 0 else 1)],
            "two" if i % 3 == 0 else "one",
        )
        for i in range(6)
    ]
    model = families.build("llava").model
    return Small(model, processors.build(), families.causal_lm(seed=3), questions)
