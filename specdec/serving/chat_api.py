"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from uuid import uuid4

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from specdec.serving.answers import Answers, Delta
from specdec.serving.chat import count_images
from specdec.serving.errors import of_engine, refused
from specdec.serving.events import DONE, EventStream, event
from specdec.serving.schema import ChatRequest
from specdec.serving.service import Service, unless_gone
from specdec.serving.text import Piece
from specdec.serving.wording import Vocabulary, chat_logprobs, origins

# Any, below: JSON values.

_CHUNK = "chat.completion.chunk"


class ChatCall:
    """One call: how it is checked, submitted, and answered as a whole or as a stream."""

    def __init__(self, service: Service, body: ChatRequest, vocabulary: Vocabulary) -> None:
        self._service, self._body, self._vocabulary = service, body, vocabulary
        self._began = time.monotonic()
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": service.settings.model,
        }
        self._top = body.top_logprobs or 0 if body.logprobs else None
        self._origins = body.specdec is not None and body.specdec.origins

    async def respond(self, request: Request) -> Response:
        """The response.

        Raises:
            ApiError: there is none.
            ClientGone: nobody waits for it.
        """
        self._check()
        try:
            answers = await unless_gone(request, self._submit())
            if self._body.stream:
                return EventStream(self._events(answers), answers.cancel)
            try:
                return JSONResponse(await unless_gone(request, self._whole(answers)))
            finally:
                answers.cancel()
        except (ValueError, RuntimeError) as error:
            raise of_engine(error) from error

    def _check(self) -> None:
        body = self._body
        self._service.check(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise refused("top_logprobs: only with logprobs=true", "top_logprobs")
        most, count = self._service.settings.max_images, count_images(body.messages)
        if count > most:
            raise refused(f"{count} images in one request; this server takes {most}", "messages")

    async def _submit(self) -> Answers:
        service, body = self._service, self._body
        # With tool_choice "none" a model is not told of tools; other choices were refused.
        tools = None if (body.model_extra or {}).get("tool_choice") == "none" else body.tools
        inputs = await service.prompts.of_chat(body.messages, tools)
        order = service.order(body, inputs, self._top)
        return await Answers.of(
            service.engine, service.tokenizer, [order], service.metrics, self._began
        )

    async def _whole(self, answers: Answers) -> dict[str, Any]:
        count = self._body.n or 1
        pieces: list[list[Piece]] = [[] for _ in range(count)]
        ends: list[Delta | None] = [None] * count
        async for delta in answers.deltas():
            pieces[delta.index] += delta.pieces
            if delta.finish is not None:
                ends[delta.index] = delta
        choices = []
        for index, (said, end) in enumerate(zip(pieces, ends, strict=True)):
            assert end is not None, "every answer ends"
            text = "".join(piece.text for piece in said)
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": index, "message": message, **self._details(said)}
            choices.append(choice | {"finish_reason": end.finish, "stop_reason": end.cause})
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": answers.usage(),
            "metrics": answers.metrics_of_call(),
        }

    async def _events(self, answers: Answers) -> AsyncGenerator[bytes, None]:
        count = left = self._body.n or 1
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        try:
            for index in range(count):
                yield event(self._chunk(index, {"role": "assistant", "content": ""}))
            async for delta in answers.deltas():
                if delta.pieces:
                    text = "".join(piece.text for piece in delta.pieces)
                    yield event(self._chunk(delta.index, {"content": text}, delta.pieces))
                if delta.finish is not None:
                    left -= 1
                    last = self._chunk(delta.index, {}, end=delta)
                    # The last chunk tells of the whole call; who asked for usage gets one more.
                    if left == 0 and not with_usage:
                        last["metrics"] = answers.metrics_of_call()
                    yield event(last)
            if with_usage:
                told = {"usage": answers.usage(), "metrics": answers.metrics_of_call()}
                yield event({**self._head, "object": _CHUNK, "choices": [], **told})
        except (ValueError, RuntimeError) as error:
            yield event(of_engine(error).body())
        yield DONE

    def _chunk(
        self,
        index: int,
        new: dict[str, Any],
        pieces: Sequence[Piece] = (),
        end: Delta | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": new, **self._details(pieces)}
        choice["finish_reason"] = None if end is None else end.finish
        if end is not None:
            choice["stop_reason"] = end.cause
        return {**self._head, "object": _CHUNK, "choices": [choice]}

    def _details(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What was asked for besides the text."""
        told: dict[str, Any] = {"logprobs": None}
        if self._top is not None and pieces:
            told["logprobs"] = chat_logprobs(pieces, self._vocabulary, self._top)
        if self._origins:
            told["specdec"] = origins(pieces)
        return told
