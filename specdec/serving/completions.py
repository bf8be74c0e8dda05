"""``POST /v1/completions``: prompts as they stand, as text or as tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from specdec.serving.answers import Delta, Order
from specdec.serving.call import Call, ending
from specdec.serving.errors import refused
from specdec.serving.schema import CompletionRequest
from specdec.serving.service import Service
from specdec.serving.text import Piece
from specdec.serving.wording import plain_logprobs

# Any, below: JSON values.

_USUAL_TOKENS = 16  # of an answer, as OpenAI has it


class CompletionCall(Call):
    """Texts that go on."""

    prefix = "cmpl"
    whole = part = "text_completion"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        if body.max_tokens is None:
            body = body.model_copy(update={"max_tokens": min(_USUAL_TOKENS, service.longest)})
        super().__init__(service, body)
        self._prompts = _prompts(body.prompt)
        self._top = body.logprobs
        self._said = Counter[int]()  # characters, by answer

    async def orders(self) -> list[Order]:
        """As the base class has it."""
        service = self.service
        service.check(self.body, len(self._prompts))
        orders = []
        for prompt in self._prompts:
            if isinstance(prompt, str):
                inputs = await service.prompts.of_text(prompt)
            else:
                inputs = await service.prompts.of_ids(prompt)
            orders.append(service.order(self.body, inputs, self._top))
        return orders

    def choice(self, pieces: Sequence[Piece], end: Delta) -> dict[str, Any]:
        """As the base class has it."""
        return self._text(pieces, end, 0)

    def deltas(self, delta: Delta) -> list[dict[str, Any]]:
        """As the base class has it."""
        offset = self._said[delta.index]
        told = self._text(delta.pieces, delta, offset) | self.details(delta.pieces)
        self._said[delta.index] += len(told["text"])
        return [told]

    def _text(self, pieces: Sequence[Piece], end: Delta, offset: int) -> dict[str, Any]:
        logprobs = None
        if self._top is not None:
            logprobs = plain_logprobs(pieces, self.service.vocabulary, self._top, offset)
        text = "".join(piece.text for piece in pieces)
        return {"text": text, "logprobs": logprobs, **ending(end)}


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One by one: a list of numbers is one prompt."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise refused("prompt: an empty list", "prompt")
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    ids = [prompt for prompt in given if isinstance(prompt, int)]
    lists = [prompt for prompt in given if isinstance(prompt, list)]
    return [*texts, *lists] if not ids else [ids]
