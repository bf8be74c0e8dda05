"""From a prompt and images to what a model takes, through the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

    encode_with = _chat if processor.chat_template else _plain
    try:
        return dict(encode_with(processor, prompt, images))
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
    from specdec.verifiers.spec import read_spec

    ids = inputs["input_ids"][0].tolist()
    if not ids:
        raise UserError("the prompt has no tokens; say something")
    text = model.config.get_text_config(decoder=True)
    context: int | None = getattr(text, "max_position_embeddings", None)
    if not context:
        return wanted
    if len(ids) >= context:
        visual = read_spec(model).visual_token_ids
        seen = sum(token in visual for token in ids)
        raise UserError(
            f"the prompt has {len(ids)} tokens, {seen} of them for images, and the model's context "
            f"of {context} leaves no room for an answer; shorten the prompt or give fewer or "
            "smaller images"
        )
    return min(wanted, context - len(ids))


# Any: processors and tokenizers share these methods, but no base class that declares them.
def _chat(processor: Any, prompt: str, images: Sequence[Image.Image]) -> Any:
    from transformers import PreTrainedTokenizerBase

    parts = [{"type": "image", "image": image} for image in images]
    # The templates of tokenizers expect text where those of processors expect parts.
    is_tokenizer = isinstance(processor, PreTrainedTokenizerBase)
    content = prompt if is_tokenizer else [*parts, {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _plain(processor: Any, prompt: str, images: Sequence[Image.Image]) -> Any:
    if not images:
        return processor(text=prompt, return_tensors="pt")
    token = getattr(processor, "image_token", None)
    if token is not None and token not in prompt:
        prompt = f"{token * len(images)}\n{prompt}"
    return processor(text=prompt, images=list(images), return_tensors="pt")
