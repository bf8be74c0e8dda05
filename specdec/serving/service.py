"""What the routes of a server share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from transformers import PreTrainedTokenizerBase

from specdec.prompts import answer_room
from specdec.serving.answers import Order
from specdec.serving.asynchronous import AsyncEngine
from specdec.serving.chat import Prompts
from specdec.serving.decoding import check_extra, how, stops, wanted_tokens
from specdec.serving.errors import ApiError, refused
from specdec.serving.metrics import Metrics
from specdec.serving.schema import Common
from specdec.serving.settings import Settings
from specdec.serving.speculation import Policy
from specdec.serving.wording import Vocabulary

_T = TypeVar("_T")


class ClientGone(Exception):
    """Nobody waits for this any more."""


class Preparing:
    """Counts calls that the engine does not know of yet: what they asked is being read.

    Attributes:
        calls: how many there are.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> None:
        self.calls += 1

    def __exit__(self, *exception: object) -> None:
        self.calls -= 1


@dataclass(frozen=True, slots=True)
class Service:
    """Attributes:
    engine: answers.
    prompts: encodes.
    tokenizer: decodes; nobody encodes with it, so that any thread may use it.
    settings: the operator's.
    policy: the operator's, of acceptance.
    metrics: what happened.
    vocabulary: what its tokens read like.
    size: how many it has.
    created: when the server started, in seconds since 1970.
    preparing: the calls that are not submitted yet; who checks one is among them.
    """

    engine: AsyncEngine
    prompts: Prompts
    tokenizer: PreTrainedTokenizerBase
    settings: Settings
    policy: Policy
    metrics: Metrics
    vocabulary: Vocabulary
    size: int
    created: int
    preparing: Preparing = field(default_factory=Preparing)

    @property
    def longest(self) -> int:
        """Most tokens of an answer."""
        return self.settings.max_tokens

    def check(self, body: Common, prompts: int = 1) -> None:
        """Refuse what can be refused before anything is computed.

        Raises:
            ApiError: it can be.
            QueueFull, EngineClosed: as :meth:`ThreadedEngine.check_open`.
        """
        self.engine.threaded.check_open(self.preparing.calls - 1)
        if body.model != self.settings.model:
            raise ApiError(
                404,
                f"there is no model {body.model!r}; this server has {self.settings.model!r}",
                param="model",
                code="model_not_found",
            )
        check_extra(body)
        answers = prompts * (body.n or 1)
        if answers > self.settings.max_choices:
            raise refused(
                f"{answers} answers in one request; this server gives {self.settings.max_choices}",
                "n",
            )
        limits = self.engine.threaded.limits
        if answers > (most := limits.max_batch + limits.max_waiting):
            raise refused(
                f"{answers} answers in one request; this server has {most} at most at a time, "
                "running and waiting",
                "n",
            )
        if body.stream_options is not None and not body.stream:
            raise refused("stream_options: only with stream=true", "stream_options")

    def order(self, body: Common, inputs: dict[str, Any], top_logprobs: int | None) -> Order:
        """What the engine is asked. Any: model inputs.

        Raises:
            ApiError: something of it is not done here.
        """
        length = inputs["input_ids"].shape[1]
        asked = body.specdec
        wanted = wanted_tokens(body, self.longest)
        room = answer_room(self.engine.threaded.model, inputs, wanted)
        options = {
            "max_new_tokens": room,
            "acceptance": self.policy.wanted(asked),
            "priority": body.priority or 0,
            "timeout": self.settings.request_seconds,
            "drafts": asked is None or asked.drafts,
            "top_logprobs": top_logprobs,
        }
        if body.min_tokens:
            options["min_new_tokens"] = min(body.min_tokens, room)
        options |= how(body, length, self.size)
        return Order(inputs, body.n or 1, body.seed, stops(body), options)


async def unless_gone(
    request: Request, work: Coroutine[Any, Any, _T], drop: Callable[[_T], None] | None = None
) -> _T:
    """The result of `work`, which is cancelled when the client hangs up.

    Args:
        drop: called with a result that is there and that nobody takes any more.

    Raises:
        ClientGone: it did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    except asyncio.CancelledError:
        ended = working.done() and not working.cancelled() and working.exception() is None
        if ended and drop is not None:
            drop(working.result())
        raise
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
