"""From a prompt and images to what a model takes, through the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specdec import prompts
from specdec.commands.errors import UserError, reason

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin


def encode(
    processor: ProcessorMixin | PreTrainedTokenizerBase, prompt: str, images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """One row of model inputs, in the chat format if the processor has one.

    Raises:
        UserError: the processor does not take them.
    """
    from jinja2 import TemplateError

    parts = [{"type": "image", "image": image} for image in images]
    content = [*parts, {"type": "text", "text": prompt}]
    try:
        if processor.chat_template:
            return prompts.from_chat(processor, [{"role": "user", "content": content}])
        return prompts.from_text(processor, prompt, images)
    except (ValueError, TypeError, KeyError, IndexError, ImportError, TemplateError) as error:
        given = f"{len(images)} image{'s' * (len(images) != 1)} and the prompt"
        raise UserError(
            f"{type(processor).__name__} does not take {given}: {reason(error)}"
        ) from error


def answer_room(model: PreTrainedModel, inputs: dict[str, Tensor], wanted: int) -> int:
    """How many tokens an answer may have: those wanted, or what the prompt leaves of the context.

    Raises:
        UserError: there is no prompt, or no room behind it.
    """
    try:
        return prompts.answer_room(model, inputs, wanted)
    except ValueError as error:
        raise UserError(str(error)) from error
