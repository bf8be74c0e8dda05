"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specdec.serving.answers import Delta, Order
from specdec.serving.call import Call, ending
from specdec.serving.chat import count_images
from specdec.serving.errors import refused
from specdec.serving.schema import ChatRequest
from specdec.serving.service import Service
from specdec.serving.text import Piece
from specdec.serving.wording import chat_logprobs

# Any, below: JSON values.


class ChatCall(Call):
    """A turn of a conversation."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest) -> None:
        super().__init__(service, body)
        self._chat = body
        self._top = (body.top_logprobs or 0) if body.logprobs else None

    async def orders(self) -> list[Order]:
        """As the base class has it."""
        service, chat = self.service, self._chat
        service.check(chat)
        if chat.top_logprobs is not None and not chat.logprobs:
            raise refused("top_logprobs: only with logprobs=true", "top_logprobs")
        most, images = service.settings.max_images, count_images(chat.messages)
        if images > most:
            raise refused(f"{images} images in one request; this server takes {most}", "messages")
        # With "none" the model is not told of tools; other choices than "auto" were refused.
        tools = None if (chat.model_extra or {}).get("tool_choice") == "none" else chat.tools
        inputs = await service.prompts.of_chat(chat.messages, tools)
        return [service.order(chat, inputs, self._top)]

    def choice(self, pieces: Sequence[Piece], end: Delta) -> dict[str, Any]:
        """As the base class has it."""
        text = "".join(piece.text for piece in pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(pieces), **ending(end)}

    def opening(self) -> list[dict[str, Any]]:
        """Who speaks."""
        return [self._delta({"role": "assistant", "content": ""}, ())]

    def deltas(self, delta: Delta) -> list[dict[str, Any]]:
        """The new text, and then the end: so that who looks for the end only misses no text."""
        told = []
        if delta.pieces:
            text = "".join(piece.text for piece in delta.pieces)
            told.append(self._delta({"content": text}, delta.pieces))
        if delta.finish is not None:
            told.append(self._delta({}, (), delta))
        return told

    def _delta(
        self, new: dict[str, Any], pieces: Sequence[Piece], end: Delta | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(pieces) if pieces else None
        return {"delta": new, "logprobs": logprobs, **ending(end), **self.details(pieces)}

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._top is None:
            return None
        return chat_logprobs(pieces, self.service.vocabulary, self._top)
