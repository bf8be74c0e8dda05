"""The engine inside a FastAPI application of one's own: a route that describes an uploaded image.

`pip install '.[serve]'`, `python examples/fastapi_app.py`, and from another terminal:

    curl --data-binary @specdec/assets/images/000.png 'http://127.0.0.1:8001/read?row=1&column=1'

Requests that come at once are answered in one batch; one whose client goes away is cancelled. A
server with OpenAI's interface is `specdec serve`.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from PIL import Image

import specdec
from specdec import pixels
from specdec.demo import load
from specdec.detokenizer import Detokenizer
from specdec.serving import QueueFull

LARGEST = 1 << 20  # bytes of an image
MOST_PIXELS = 10_000_000  # a few bytes may be of very many
FORMATS = ("PNG", "JPEG", "WEBP")


def create_app() -> FastAPI:
    """The application; models are loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model, processor, drafter = load()
        app.state.processor = processor
        async with specdec.AsyncEngine(model, drafter) as engine:
            app.state.engine = engine
            yield
            await engine.drain(timeout=10)

    app = FastAPI(lifespan=lifespan)

    @app.post("/read")
    async def read(request: Request, row: int = 1, column: int = 1) -> StreamingResponse:
        source = io.BytesIO(await upload(request))
        try:  # in a thread: other requests go on
            image = await asyncio.to_thread(pixels.decode, source, MOST_PIXELS, FORMATS)
        except pixels.TooManyPixels as error:
            raise HTTPException(400, str(error)) from error
        except (pixels.NotAnImage, pixels.BrokenImage) as error:
            raise HTTPException(400, "the body is no image") from error
        inputs = encode(app.state.processor, image, f"Read row {row}, column {column}.")
        try:
            stream = await app.state.engine.submit(**inputs, max_new_tokens=64, timeout=30)
        except QueueFull as error:
            raise HTTPException(429, headers={"Retry-After": f"{error.retry_after:.0f}"}) from error
        return StreamingResponse(texts(stream), media_type="text/plain")

    async def texts(stream: specdec.serving.AsyncStream) -> AsyncIterator[str]:
        text = Detokenizer(app.state.processor.tokenizer)
        async with stream:  # left early, when the client goes away, it cancels
            async for emission in stream:
                yield text.add(emission.token)
        yield text.end()

    return app


async def upload(request: Request) -> bytes:
    """The body, of which no more is read than it may have."""
    body = bytearray()
    too_large = int(request.headers.get("content-length", 0)) > LARGEST
    if not too_large:
        async for part in request.stream():
            body += part
            if too_large := len(body) > LARGEST:
                break
    if too_large:
        raise HTTPException(413, f"an image may have {LARGEST} bytes", {"Connection": "close"})
    return bytes(body)


def encode(processor: Any, image: Image.Image, prompt: str) -> dict[str, Any]:
    """What the model takes."""
    question = [{"type": "image"}, {"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": question}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return dict(processor(images=image, text=text, add_special_tokens=False, return_tensors="pt"))


if __name__ == "__main__":
    uvicorn.run(create_app(), port=8001)
