"""From what a client sends to what a model takes: messages, prompts, images, tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from specdec import prompts
from specdec.serving.errors import ApiError, refused
from specdec.serving.images import Encoded, ImageRefused
from specdec.serving.schema import Message, Tool, ToolCall
from specdec.serving.settings import Settings
from specdec.verifiers.spec import read_spec

_TEXT_ONLY = ("system", "developer", "assistant", "tool")
_OTHER = {"text": "image_url", "image_url": "text"}  # what a part of a kind does not have
_SECTIONS = 2  # requests whose images are there as pixels: one is decoded, one encoded


class Reader(Protocol):
    """Whoever fetches images."""

    async def fetch(self, url: str) -> Encoded:
        """What the image that a URL means is made of."""

    async def decode(self, image: Encoded) -> Image.Image:
        """Its pixels."""


class _Fetched(NamedTuple):
    """An image of a message.

    Attributes:
        where: it is, in the request.
        part: of the message, which its pixels go into. Any: transformers' format.
        image: without them.
    """

    where: str
    part: dict[str, Any]
    image: Encoded


class Prompts:
    """Encodes prompts, one after another, in a thread of its own: tokenizers are not to be used by
    two threads at once, and the event loop has others to serve meanwhile.

    Args:
        model: answers.
        processor: its own.
        settings: how much a prompt may hold.
        images: reads images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        settings: Settings,
        images: Reader,
    ) -> None:
        self.takes_images = not isinstance(processor, PreTrainedTokenizerBase)
        self._model, self._processor, self._settings = model, processor, settings
        self._images = images
        spec = read_spec(model)
        self._visual, self._vocabulary = spec.visual_token_ids, spec.vocab_size
        limits = (settings.max_prompt_tokens, prompts.context_length(model))
        self._most = min((each for each in limits if each is not None), default=None)
        whole: Any = processor  # a tokenizer is its own, a processor has one
        vocabulary = getattr(whole, "tokenizer", whole).get_vocab()
        self._longest = max(map(len, vocabulary), default=1)  # characters of a token
        self._thread = ThreadPoolExecutor(1, "specdec-prompts")
        self._sections = asyncio.Semaphore(_SECTIONS)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def of_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> dict[str, Tensor]:
        """One row of inputs.

        Raises:
            ApiError: the model or its processor does not take it.
        """
        if not self._processor.chat_template:
            raise refused("this model has no chat format; use /v1/completions", "messages")
        if tools and "tools" not in str(self._processor.chat_template):
            raise refused("this model's chat format has no place for tools", "tools")
        images: list[_Fetched] = []
        said = [
            await self._message(index, message, images) for index, message in enumerate(messages)
        ]
        called = [tool.model_dump(exclude_none=True) for tool in tools or ()]

        def encode() -> dict[str, Tensor]:
            self._check_size("messages", _letters([said, called]) // self._longest)
            return prompts.from_chat(self._processor, said, called)

        if not images:
            return await self._encode("messages", encode)
        async with self._sections:
            for each in images:
                each.part["image"] = await self._pixels(each)
            return await self._encode("messages", encode)

    async def of_text(self, prompt: str) -> dict[str, Tensor]:
        """Likewise, of a prompt as it stands."""

        def encode() -> dict[str, Tensor]:
            self._check_size("prompt", _letters([prompt]) // self._longest)
            return prompts.from_text(self._processor, prompt)

        return await self._encode("prompt", encode)

    async def of_ids(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Likewise, of tokens."""
        self._check_size("prompt", len(ids))
        return await self._encode("prompt", lambda: self._row(ids))

    def _row(self, ids: Sequence[int]) -> dict[str, Tensor]:
        import torch

        if wrong := [token for token in ids if not 0 <= token < self._vocabulary]:
            raise refused(
                f"{wrong[0]} is no token: the model has {self._vocabulary} of them", "prompt"
            )
        tokens = torch.tensor([ids], dtype=torch.int64)
        # Without a mask transformers takes tokens that are used for padding to be that.
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    async def _encode(
        self, param: str, encode: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._encoded, param, encode)

    def _encoded(self, param: str, encode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        try:
            inputs = encode()
        except ApiError:
            raise
        except UnicodeEncodeError as error:
            raise refused("the text has half a character, a lone surrogate", param) from error
        # Templates and processors raise whatever they stumble over, and what they were given is
        # the client's.
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise refused(f"the model's processor does not take this: {text}", param) from error
        return self._checked(param, inputs)

    def _check_size(self, param: str, least: int) -> None:
        """Refuse, before it is encoded, what has at least so many tokens, if that is too many."""
        if self._most is not None and least > self._most:
            raise refused(
                f"the prompt has at least {least} tokens, this server takes {self._most}; shorten "
                "it",
                param,
                "context_length_exceeded",
            )

    def _checked(self, param: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        length = inputs["input_ids"].shape[1]
        if not length:
            raise refused("the prompt has no tokens; say something", param, "empty_prompt")
        most = self._settings.max_prompt_tokens
        if most is not None and length > most:
            raise refused(
                f"the prompt has {length} tokens, this server takes {most}; shorten it",
                param,
                "context_length_exceeded",
            )
        try:
            prompts.answer_room(self._model, inputs, 1)
        except ValueError as error:
            raise refused(str(error), param, "context_length_exceeded") from error
        ids = inputs["input_ids"][0].tolist()
        pixels = any(name.startswith(("pixel", "image")) for name in inputs)
        if not pixels and any(token in self._visual for token in ids):
            raise refused("the prompt has tokens that stand for an image, and no image", param)
        return prompts.place(inputs, self._model)

    async def _message(
        self, index: int, message: Message, images: list[_Fetched]
    ) -> dict[str, Any]:
        """A turn as transformers' chat templates expect it, but for the pixels of `images`, which
        those of this message are added to. Any: their format.
        """
        place = f"messages.{index}"
        role = "system" if message.role == "developer" else message.role
        if message.content is None and role != "assistant":
            raise refused(f"{place}.content: a {role} message needs it", f"{place}.content")
        content = await self._content(place, message, images)
        said: dict[str, Any] = {"role": role, "content": content}
        if message.name is not None:
            said["name"] = message.name
        if message.tool_call_id is not None:
            said["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            said["tool_calls"] = [
                _tool_call(f"{place}.tool_calls.{number}", call)
                for number, call in enumerate(message.tool_calls)
            ]
        return said

    async def _content(
        self, place: str, message: Message, images: list[_Fetched]
    ) -> list[dict[str, Any]]:
        if message.content is None or isinstance(message.content, str):
            return [{"type": "text", "text": message.content or ""}]
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(message.content):
            where = f"{place}.content.{number}"
            if getattr(part, other := _OTHER[part.type]):
                raise refused(f"{where}.{other}: a {part.type} part has none", f"{where}.{other}")
            if part.type == "text":
                if part.text is None:
                    raise refused(f"{where}.text: a text part needs it", f"{where}.text")
                parts.append({"type": "text", "text": part.text})
                continue
            if part.image_url is None:
                raise refused(f"{where}.image_url: an image part needs it", f"{where}.image_url")
            if message.role in _TEXT_ONLY:
                raise refused(f"{where}: images belong into user messages", where)
            parts.append({"type": "image"})
            image = await self._image(where, part.image_url.url)
            images.append(_Fetched(f"{where}.image_url", parts[-1], image))
        return parts

    async def _image(self, where: str, url: str) -> Encoded:
        if not self.takes_images:
            raise refused(f"{where}: this is a text model, it takes no images", where)
        try:
            return await self._images.fetch(url)
        except ImageRefused as error:
            raise refused(f"{where}.image_url: {error}", f"{where}.image_url") from error

    async def _pixels(self, fetched: _Fetched) -> Image.Image:
        try:
            return await self._images.decode(fetched.image)
        except ImageRefused as error:
            raise refused(f"{fetched.where}: {error}", fetched.where) from error


def _letters(values: Sequence[Any]) -> int:  # Any: chat messages, JSON values
    """Characters of all texts in there.

    Raises:
        UnicodeEncodeError: one of them is none.
    """
    count, left = 0, list(values)
    while left:
        value = left.pop()
        if isinstance(value, str):
            value.encode()
            count += len(value)
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
    return count


def count_images(messages: Sequence[Message]) -> int:
    """How many there are in a conversation."""
    return sum(
        part.type == "image_url"
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


def _tool_call(place: str, call: ToolCall) -> Mapping[str, Any]:
    """Templates expect the arguments as an object, clients send them as text."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        where = f"{place}.function.arguments"
        raise refused(f"{where}: not JSON", where) from error
    said = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return said if call.id is None else said | {"id": call.id}
