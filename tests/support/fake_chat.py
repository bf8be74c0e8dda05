"""A server of the playground's protocol that does what a test tells it, without any model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

import specdec

PAGE = Path(specdec.__file__).parent / "serving" / "page"
POLICY = "default-src 'self'; img-src 'self' data: blob:"
RELAXED = {"kind": "relaxed", "epsilon": 0.3, "gamma": 1.0, "budget": 2.5, "reliance": "probe"}
TOKENS = [
    ("The", "verifier", 0.0),
    (" cross", "drafted", 0.0),
    (" rests", "relaxed", 0.12),
    (" up", "drafted", 0.0),
    (" there", "verifier", 0.0),
    (", I", "drafted", 0.0),
    (" am", "drafted", 0.0),
    (" quite", "drafted", 0.0),
    (" sure", "verifier", 0.0),
    (" of", "drafted", 0.0),
    (" it.", "verifier", 0.0),
]

ANSWER = "".join(text for text, _, _ in TOKENS)


@dataclass
class Fake:
    """What the next requests meet.

    Attributes:
        policy: the operator's.
        images: whether the model takes any.
        max_tokens: most of an answer.
        key: the API key that is asked for, if any.
        refusal: status and headers of the answer to the next question.
        breaks: the connection ends in the middle of an answer.
        drafts: whether the drafter does anything.
        plain_seconds: what ten tokens take without drafts; 0.1 with them.
        held: answers stop after three tokens while this is cleared.
        tokens: of an answer.
        asked: bodies of the questions so far, comparisons included.
        hung_up: answers that the client did not wait for.
    """

    policy: dict[str, Any] = field(default_factory=lambda: dict(RELAXED))  # Any: JSON values
    images: bool = True
    max_tokens: int = 4096
    key: str | None = None
    refusal: tuple[int, dict[str, str]] | None = None
    breaks: bool = False
    drafts: bool = True
    plain_seconds: float = 0.25
    held: threading.Event = field(default_factory=threading.Event)
    tokens: list[tuple[str, str, float]] = field(default_factory=lambda: list(TOKENS))
    asked: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON values
    hung_up: int = 0

    def reset(self) -> None:
        """As new."""
        self.__init__()  # type: ignore[misc]  # the fields' defaults are said once, above
        self.held.set()


def app(fake: Fake) -> FastAPI:
    """The routes."""
    made = FastAPI()

    def shut(request: Request) -> Response | None:
        if fake.key is None or request.headers.get("authorization") == f"Bearer {fake.key}":
            return None
        return refused(401, "no key")

    @made.get("/v1/models")
    def models(request: Request) -> Response:
        about = {"policy": fake.policy, "drafter": "tiny", "images": fake.images}
        about |= {"max_tokens": fake.max_tokens, "max_model_len": 4096}
        entry = {"id": "fake", "object": "model", "specdec": about}
        return shut(request) or JSONResponse({"object": "list", "data": [entry]})

    @made.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        fake.asked.append(body)
        if (closed := shut(request)) is not None:
            return closed
        if fake.refusal is not None:
            (status, headers), fake.refusal = fake.refusal, None
            return refused(status, "said by the server", headers)
        return StreamingResponse(answer(fake, body), media_type="text/event-stream")

    made.mount("/", StaticFiles(directory=PAGE, html=True))

    @made.middleware("http")
    async def secure(request: Request, call_next: Any) -> Response:  # Any: Starlette's own type
        response: Response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cache-Control"] = "no-store"
        return response

    return made


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    error = {"message": message, "type": "some_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


async def answer(fake: Fake, body: dict[str, Any]) -> AsyncIterator[str]:
    """Server-sent events, two tokens in each."""
    plain = not body["specdec"].get("drafts", True)
    try:
        for begin in range(0, len(fake.tokens), 2):
            while begin > 2 and not fake.held.is_set() and not plain:
                await asyncio.sleep(0.01)
            if begin > 2 and fake.breaks:
                return
            some = fake.tokens[begin : begin + 2]
            tokens = [{"text": t, "origin": o, "spent": s} for t, o, s in some]
            delta = {"content": "".join(t for t, _, _ in some)}
            choice = {"index": 0, "delta": delta, "specdec": {"tokens": tokens}}
            yield event({"choices": [choice | {"finish_reason": None}]})
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": usage(fake), "metrics": metrics(fake, plain)})
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        fake.hung_up += 1
        raise


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def usage(fake: Fake) -> dict[str, Any]:
    tokens = len(fake.tokens)
    cached = {"cached_tokens": 128}
    return {"prompt_tokens": 150, "completion_tokens": tokens, "prompt_tokens_details": cached}


def metrics(fake: Fake, plain: bool) -> dict[str, Any]:
    seconds = fake.plain_seconds if plain else 0.1
    times = {"time_to_first_token_s": 0.3, "generation_time_s": seconds}
    plain = plain or not fake.drafts
    counts = {
        "mean_acceptance_length": 1.0 if plain else 2.75,
        "draft_acceptance_rate": 0.0 if plain else 0.875,
        "acceptance_histogram": [10] if plain else [0, 1, 3],
        "num_spec_steps": 10 if plain else 4,
        "num_draft_tokens": 0 if plain else 8,
        "num_accepted_draft_tokens": 0 if plain else 7,
        "num_relaxed_tokens": 0 if plain else 1,
        "bound_spent": 0.0 if plain else 0.12,
    }
    return {"speculative_decoding": counts} | times


@contextmanager
def served(application: Any) -> Iterator[str]:  # Any: an ASGI application
    """An address of 127.0.0.1 at which an application answers, from a thread."""
    config = uvicorn.Config(application, port=0, log_level="error", ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until, "the server did not start within a minute"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
