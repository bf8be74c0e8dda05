"""From conversations, images and text to what a model takes, through its own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    Processor = ProcessorMixin | PreTrainedTokenizerBase

# Any, below: processors and tokenizers share these methods, but no base class that declares them;
# and chat messages are transformers' own format.


def from_chat(
    processor: Processor,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Tensor]:
    """One row of model inputs in the processor's chat format; whatever it raises is left as it is.

    Args:
        processor: has a chat template.
        messages: with content in parts, of which those of type ``image`` hold a PIL image. A
            tokenizer's template expects text instead, and gets their texts.
        tools: what the model may call, as JSON schemas.
    """
    from transformers import PreTrainedTokenizerBase

    whole: Any = processor
    if isinstance(processor, PreTrainedTokenizerBase):
        messages = [{**message, "content": _text(message["content"])} for message in messages]
    return dict(
        whole.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


def from_text(
    processor: Processor, prompt: str, images: Sequence[Image.Image] = ()
) -> dict[str, Tensor]:
    """One row of model inputs, the prompt as it stands; image tokens are put before it if it has
    none. Whatever the processor raises is left as it is.
    """
    whole: Any = processor
    if not images:
        return dict(whole(text=prompt, return_tensors="pt"))
    token = getattr(whole, "image_token", None)
    if token is not None and token not in prompt:
        prompt = f"{token * len(images)}\n{prompt}"
    return dict(whole(text=prompt, images=list(images), return_tensors="pt"))


def answer_room(model: PreTrainedModel, inputs: Mapping[str, Tensor], wanted: int) -> int:
    """How many tokens an answer may have: those wanted, or what the prompt leaves of the context.

    Raises:
        ValueError: there is no prompt, or no room behind it.
    """
    from specdec.verifiers.spec import read_spec

    ids = inputs["input_ids"][0].tolist()
    if not ids:
        raise ValueError("the prompt has no tokens; say something")
    context = context_length(model)
    if context is None:
        return wanted
    if len(ids) >= context:
        visual = read_spec(model).visual_token_ids
        seen = sum(token in visual for token in ids)
        raise ValueError(
            f"the prompt has {len(ids)} tokens, {seen} of them for images, and the model's context "
            f"of {context} leaves no room for an answer; shorten the prompt or give fewer or "
            "smaller images"
        )
    return min(wanted, context - len(ids))


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens of a prompt and its answer; ``None`` if the model does not say."""
    text = model.config.get_text_config(decoder=True)
    return getattr(text, "max_position_embeddings", None) or None


def place(inputs: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Inputs on the model's device; pixels come in float32 and take its type, too."""
    import torch

    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.items()
    }


def _text(content: Any) -> Any:
    if isinstance(content, str) or content is None:
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
