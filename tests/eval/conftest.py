"""A small verifier with its processor, a drafter, and questions."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from transformers import PreTrainedModel

from specdec.eval.suite import Question
from support import families, processors


class Small(NamedTuple):
    model: PreTrainedModel
    processor: Any
    drafter: PreTrainedModel
    questions: list[Question]


@pytest.fixture(scope="session")
def small() -> Small:
    questions = [
        Question(
            "two" if i % 3 == 0 else "one",
            [processors.image(10 * i + j) for j in range(2 if i % 3 == 0 else 1)],
            processors.messages(i, 2 if i % 3 == 0 else 1),
        )
        for i in range(6)
    ]
    model = families.build("llava").model
    return Small(model, processors.build(), families.causal_lm(seed=3), questions)
