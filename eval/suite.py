"""Questions to measure on, as files: images and a ``questions.json``.

The package ships held-out questions for its embedded model, so that measuring needs no generator
and always means the same questions. Knows nothing of how they were made or how an answer is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from specdec import demo

MODEL = demo.ASSETS / "lvlm"
DRAFTER = demo.ASSETS / "drafter"
QUESTIONS = demo.ASSETS


class Question(NamedTuple):
    """``messages`` names the images' places but does not contain them; ``images`` does."""

    task: str
    images: list[Image.Image]
    messages: list[dict[str, Any]]  # Any: transformers' chat form


def load_questions(folder: Path = QUESTIONS, count: int | None = None) -> list[Question]:
    """The first ``count`` questions of a folder; ``None`` is all.

    Raises:
        ValueError: there is no such folder, or it has fewer.
    """
    try:
        asked = demo.questions(folder)
    except FileNotFoundError as error:
        raise ValueError(f"there are no questions: {error}") from None
    if count is not None and len(asked) < count:
        raise ValueError(f"{count} questions were asked for, {folder} has {len(asked)}")
    return [
        Question(each.task, [_image(path) for path in each.images], each.messages)
        for each in asked[:count]
    ]


def load_verifier(
    path: str | Path, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, Any]:  # Any: processors share no useful base
    """Model and processor.

    Raises:
        ValueError: nothing loadable lies there.
    """
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"no vision-language model could be loaded from {path}: {error}") from None
    return model.eval(), processor


def model_inputs(
    model: PreTrainedModel,
    processor: Any,
    questions: Sequence[Question],
) -> Mapping[str, Any]:
    """What ``model.generate`` takes for questions with equally many images, padded on the left."""
    text = [
        processor.apply_chat_template(each.messages, add_generation_prompt=True, tokenize=False)
        for each in questions
    ]
    bos = processor.tokenizer.bos_token
    processor.tokenizer.padding_side = "left"
    encoded = processor(
        text=text,
        images=[each.images for each in questions] if questions[0].images else None,
        return_tensors="pt",
        padding=True,
        # As apply_chat_template does: a template that writes the first token needs no second one.
        add_special_tokens=bos is None or not text[0].startswith(bos),
    )
    inputs: Mapping[str, Any] = encoded.to(model.device, dtype=model.dtype)
    return inputs


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
