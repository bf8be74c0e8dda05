"""The demonstration model that comes with the package, and held-out questions for it.

The model and its processor are plain transformers classes; nothing here is needed to use others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from specdec.drafters import TextOnlyDrafter, load_drafter

ASSETS = Path(__file__).parent / "assets"


class Demo(NamedTuple):
    """A vision-language model, its processor, and a drafter for it that sees no image."""

    model: PreTrainedModel
    processor: ProcessorMixin
    drafter: TextOnlyDrafter


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one or two images that the model never saw in training.

    Attributes:
        task: what kind of question it is.
        images: the image files.
        messages: the conversation up to the question, for `apply_chat_template`; the images stand
            where it has parts of type `image`.
        fields: what is on the image: the facts that a right answer states.
    """

    task: str
    images: tuple[Path, ...]
    messages: list[dict[str, Any]]  # Any: transformers' chat format
    fields: Mapping[str, str]

    @property
    def prompt(self) -> str:
        """The last turn, as text."""
        parts = self.messages[-1]["content"]
        return " ".join(part["text"] for part in parts if part["type"] == "text")

    def encode(self, processor: ProcessorMixin) -> dict[str, torch.Tensor]:
        """What `generate` takes, one row."""
        text = processor.apply_chat_template(self.messages, add_generation_prompt=True)
        # Any: the base class declares no __call__ of this form. The template wrote the special
        # tokens already.
        encode: Any = processor
        return dict(
            encode(
                images=[Image.open(path).convert("RGB") for path in self.images],
                text=text,
                add_special_tokens=False,
                return_tensors="pt",
            )
        )


def load(assets: Path = ASSETS, *, dtype: torch.dtype = torch.float32) -> Demo:
    """The model, its processor and its drafter, on the CPU.

    Args:
        assets: the folder that holds them; by default the package's own.
        dtype: of the model. The drafter is always float32, the faster choice for one so small.

    Raises:
        FileNotFoundError: they are not there.
    """
    lvlm, drafter = assets / "lvlm", assets / "drafter"
    for folder in (lvlm, drafter):
        _expect(folder / "model.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(
        lvlm, dtype=dtype, use_safetensors=True, local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(lvlm, local_files_only=True)
    drafts = load_drafter(drafter)
    assert isinstance(drafts, TextOnlyDrafter), f"the demo's drafter is a {drafts.name}"
    drafts.model.float()
    return Demo(model, processor, drafts)


def questions(assets: Path = ASSETS) -> list[Question]:
    """Held-out questions for the model of :func:`load`.

    Raises:
        FileNotFoundError: they are not there.
    """
    rows = json.loads(_expect(assets / "questions.json").read_text())
    return [
        Question(
            task=row["task"],
            images=tuple(assets / name for name in row["images"]),
            messages=row["messages"],
            fields=row.get("fields", {}),
        )
        for row in rows
    ]


def _expect(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: this copy of specdec has no demonstration model; "
            "`make train-demo` in a checkout trains one"
        )
    return path
