"""Questions to measure on, as files: images and a ``questions.json``.

The package ships held-out questions for its embedded model, so that measuring needs no generator
and always means the same questions. Knows nothing of how they were made or how an answer is scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from specdec import demo
from specdec.training.prompts import Asked, model_inputs

__all__ = ["DTYPES", "Asked", "load_questions", "load_verifier", "model_inputs"]

MODEL = demo.ASSETS / "lvlm"
DRAFTER = demo.ASSETS / "drafter"
EAGLES = demo.ASSETS / "eagle-hidden", demo.ASSETS / "eagle-shared"
QUESTIONS = demo.ASSETS
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_questions(folder: Path = QUESTIONS, count: int | None = None) -> list[Asked]:
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
        Asked(each.messages, [_image(path) for path in each.images], each.task)
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


def _image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
