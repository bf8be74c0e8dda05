from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from specdec.eval import mismatches, suite
from specdec.eval.suite import Question
from support import families, processors

START = 3  # the last token of every prompt
SEEING = (1, 4)  # places of the answer that name the image's brightness
LENGTH = 6


class Seer:
    """A verifier whose answer is known: w20, w21, … and at SEEING a word for the brightness."""

    def __init__(self, small: Any) -> None:
        self.config, self.generation_config = small.model.config, small.model.generation_config
        self.device, self.dtype = small.model.device, small.model.dtype

    def __call__(self, input_ids: Tensor, pixel_values: Tensor, **how: Any) -> Any:
        images = pixel_values.view(len(input_ids), -1)
        logits = torch.zeros(*input_ids.shape, families.VOCAB)
        for row, ids in enumerate(input_ids.tolist()):
            first = ids.index(START)
            word = 60 + round(float(images[row].mean()) * 10)
            for place in range(first, len(ids)):
                step = place - first
                logits[row, place, word if step in SEEING else 20 + step] = 1
        return SimpleNamespace(logits=logits)

    def generate(self, input_ids: Tensor, max_new_tokens: int, **how: Any) -> Any:
        for _ in range(max_new_tokens):
            following = self(input_ids, how["pixel_values"]).logits[:, -1].argmax(-1)
            input_ids = torch.cat([input_ids, following[:, None]], 1)
        return input_ids


class Blind:
    """A drafter that is wrong at SEEING and at place 3."""

    def __call__(self, input_ids: Tensor, **how: Any) -> Any:
        assert families.IMAGE not in input_ids
        logits = torch.zeros(*input_ids.shape, families.VOCAB)
        for row, ids in enumerate(input_ids.tolist()):
            first = ids.index(START)
            for place in range(first, len(ids)):
                step = place - first
                logits[row, place, 9 if step in (*SEEING, 3) else 20 + step] = 1
        return SimpleNamespace(logits=logits)


def test_labels_of_a_known_answer(small: Any) -> None:
    """Off by one place, or with images of the wrong row, the shares would still look plausible.
    Here they are known: per answer 6 tokens, 3 mismatches, 1 of them without the image's doing.
    Task "dark" has two images of one brightness, which only the blank one tells apart.
    """
    shades = {"dark": (0, 0), "mixed": (40, 90, 140)}
    questions = [
        Question(task, [Image.new("L", (16, 16), shade).convert("RGB")], _asked(7 * i + shade))
        for task, row in shades.items()
        for i, shade in enumerate(row)
    ]
    seer: Any = Seer(small)
    blind: Any = Blind()
    table = mismatches.compare(
        seer, small.processor, blind, questions, max_new_tokens=LENGTH, batch=4
    )
    for task, row in shades.items():
        counts = table[task]
        assert counts.tokens == LENGTH * len(row)
        assert counts.dependent_tokens == 2 * len(row)
        assert counts.mismatches == 3 * len(row)
        assert counts.independent_mismatches == len(row)
    total = mismatches.report(table)["total"]
    assert total["independent_share"] == pytest.approx(1 / 3)
    assert total["mismatch_share"] == pytest.approx(1 / 2)


def _asked(seed: int) -> list[dict[str, Any]]:
    return processors.messages(seed)


def test_reading_an_answer_again_finds_it(small: Any) -> None:
    """With the right images, every argmax read off one batched forward is the token that was
    generated; padding, mixed prompt lengths and one or two images included.
    """
    answered = mismatches.answer(
        small.model, small.processor, small.questions, max_new_tokens=12, batch=3
    )
    for each, question in zip(answered, small.questions, strict=True):
        inputs = suite.model_inputs(small.model, small.processor, [question])
        ids = small.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
        assert torch.cat([each.prompt, each.answer]).tolist() == ids.tolist()
    read = mismatches.verifier_argmax(
        small.model, small.processor, answered, small.questions, batch=3
    )
    assert [row.tolist() for row in read] == [each.answer.tolist() for each in answered]
    swapped = mismatches.swapped(small.questions)
    assert all(a.task == b.task for a, b in zip(swapped, small.questions, strict=True))
    others = mismatches.verifier_argmax(small.model, small.processor, answered, swapped, batch=3)
    for each, image, other in zip(answered, swapped, others, strict=True):
        inputs = dict(suite.model_inputs(small.model, small.processor, [image]))
        ids = torch.cat([each.prompt, each.answer])[None]
        logits = small.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
        assert other.tolist() == logits[len(each.prompt) - 1 : -1].argmax(-1).tolist()
    assert any(a.tolist() != b.tolist() for a, b in zip(read, others, strict=True))


def test_swapping_needs_another_image(small: Any) -> None:
    with pytest.raises(ValueError, match="task two has one question"):
        mismatches.swapped(small.questions[:2])
