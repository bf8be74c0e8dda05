"""One call of a client: checked, submitted, and answered as a whole or as a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar
from uuid import uuid4

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Scope

from specdec.serving.answers import Answers, Delta, Order
from specdec.serving.errors import of_engine
from specdec.serving.events import DONE, EventStream, event
from specdec.serving.guard import CUT_OFF, USAGE
from specdec.serving.schema import Common
from specdec.serving.service import Service, unless_gone
from specdec.serving.text import Piece
from specdec.serving.wording import origins

# Any, below: JSON values.

_READING_SECONDS = 60.0  # that a client has to read the last of a stream


class Call(ABC):
    """What chat completions and completions have in common.

    Attributes:
        count: how many answers there will be; known once the orders are.
    """

    prefix: ClassVar[str]  # of ids
    whole: ClassVar[str]  # what a response is
    part: ClassVar[str]  # what an event is

    def __init__(self, service: Service, body: Common) -> None:
        self.service, self.body = service, body
        self.count = 0
        self._began = time.monotonic()
        self._origins = body.specdec is not None and body.specdec.origins
        self._head = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": service.settings.model,
        }

    @abstractmethod
    async def orders(self) -> list[Order]:
        """What the engine is asked.

        Raises:
            ApiError: something of it is not done here.
        """

    @abstractmethod
    def choice(self, pieces: Sequence[Piece], end: Delta) -> dict[str, Any]:
        """An answer, without its index."""

    def opening(self) -> list[dict[str, Any]]:
        """Choices of events before any token, without an index."""
        return []

    @abstractmethod
    def deltas(self, delta: Delta) -> list[dict[str, Any]]:
        """Choices of the events that tell what is new, without their index."""

    async def respond(self, request: Request) -> Response:
        """The response.

        Raises:
            ApiError: there is none.
            ClientGone: nobody waits for it.
        """
        service = self.service
        try:
            answers = await unless_gone(request, self._submit(), Answers.cancel)
            request.scope[USAGE] = answers.usage
            if self.body.stream:
                seconds = service.settings.request_seconds + _READING_SECONDS
                events = self._events(answers, request.scope)
                return EventStream(events, answers.cancel, seconds)
            try:
                return JSONResponse(await unless_gone(request, self._whole(answers)))
            finally:
                answers.cancel()
        except (ValueError, RuntimeError) as error:
            raise of_engine(error) from error

    def details(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """What was asked for besides the text."""
        return {"specdec": origins(pieces)} if self._origins else {}

    async def _submit(self) -> Answers:
        service = self.service
        with service.preparing:
            orders = await self.orders()
            self.count = sum(order.samples for order in orders)
            return await Answers.of(
                service.engine, service.tokenizer, orders, service.metrics, self._began
            )

    async def _whole(self, answers: Answers) -> dict[str, Any]:
        pieces: list[list[Piece]] = [[] for _ in range(self.count)]
        ends: dict[int, Delta] = {}
        async with aclosing(answers.deltas()) as deltas:
            async for delta in deltas:
                pieces[delta.index] += delta.pieces
                if delta.finish is not None:
                    ends[delta.index] = delta
        choices = [
            {"index": index, **self.choice(said, ends[index]), **self.details(said)}
            for index, said in enumerate(pieces)
        ]
        told = {"usage": answers.usage(), "metrics": answers.speculation()}
        return {**self._head, "object": self.whole, "choices": choices, **told}

    async def _events(self, answers: Answers, scope: Scope) -> AsyncGenerator[bytes, None]:
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage
        left = self.count
        try:
            for index in range(self.count):
                for choice in self.opening():
                    yield self._event([{"index": index, **choice}])
            async with aclosing(answers.deltas()) as deltas:
                async for delta in deltas:
                    left -= delta.finish is not None
                    # The last one tells of the whole call; who asked for usage gets one more.
                    ends = left == 0 and not with_usage
                    for new in self._news(delta, answers if ends else None):
                        yield new
            if with_usage:
                yield self._event([], usage=answers.usage(), metrics=answers.speculation())
        except Exception as error:  # it has begun: all that is left is to say so
            told = of_engine(error)
            scope[CUT_OFF] = told.code
            yield event(told.body())
        yield DONE

    def _news(self, delta: Delta, ending: Answers | None) -> Iterator[bytes]:
        """Events that tell what is new; the last of them also what `ending` achieved."""
        *others, last = [{"index": delta.index, **choice} for choice in self.deltas(delta)]
        for choice in others:
            yield self._event([choice])
        yield self._event([last], **({"metrics": ending.speculation()} if ending else {}))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._head, "object": self.part, "choices": choices, **more})


def ending(end: Delta | None) -> dict[str, Any]:
    """Why an answer ended, as a choice says it."""
    if end is None or end.finish is None:
        return {"finish_reason": None}
    return {"finish_reason": end.finish, "stop_reason": end.cause}
