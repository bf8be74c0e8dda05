"""The HTTP server's application: which path is answered by what."""

from __future__ import annotations

import copy
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from transformers import PreTrainedTokenizerBase, ProcessorMixin

import specdec
from specdec.prompts import context_length
from specdec.serving import errors, guard, pages, replies
from specdec.serving.asynchronous import AsyncEngine
from specdec.serving.chat import Prompts, Reader
from specdec.serving.chat_completions import ChatCall
from specdec.serving.completions import CompletionCall
from specdec.serving.errors import ApiError
from specdec.serving.images import ImageReader
from specdec.serving.metrics import CONTENT_TYPE, Metrics
from specdec.serving.schema import ChatRequest, CompletionRequest
from specdec.serving.service import Service
from specdec.serving.settings import Settings
from specdec.serving.speculation import Policy
from specdec.serving.wording import Vocabulary
from specdec.verifiers.spec import read_spec


def create_app(
    engine: AsyncEngine,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    settings: Settings | None = None,
    *,
    images: Reader | None = None,
) -> FastAPI:
    """An application that answers with `engine`, and closes it when it ends.

    Args:
        engine: answers.
        processor: its model's, or its tokenizer.
        settings: the operator's.
        images: reads the images of requests; by default from `data:` URLs only.
    """
    settings = settings or Settings()
    model = engine.threaded.model
    whole: Any = processor  # Any: a tokenizer is its own, a processor has one
    tokenizer = copy.deepcopy(getattr(whole, "tokenizer", whole))
    service = Service(
        engine=engine,
        prompts=Prompts(model, processor, settings, images or ImageReader()),
        tokenizer=tokenizer,
        settings=settings,
        policy=Policy(engine.threaded.acceptance),
        metrics=Metrics(lambda: engine.stats),
        vocabulary=Vocabulary(tokenizer),
        size=read_spec(model).vocab_size,
        created=int(time.time()),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()
        service.prompts.close()

    app = FastAPI(
        title="specdec",
        version=specdec.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    errors.install(app)
    replies.describe(app, settings.model)
    app.include_router(pages.router())
    guard.install(app, settings)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    settings = service.settings
    # The guard checks keys; this tells of them.
    bearer = HTTPBearer(auto_error=False)
    key: dict[str, Any] = {"dependencies": [Security(bearer)] if settings.api_keys else []}
    card = {
        "id": settings.model,
        "object": "model",
        "created": service.created,
        "owned_by": "specdec",
        "specdec": {
            "policy": service.policy.describe(),
            "drafter": settings.drafter,
            "images": service.prompts.takes_images,
            "max_tokens": settings.max_tokens,
            "max_model_len": context_length(service.engine.threaded.model),
        },
    }

    @app.post("/v1/chat/completions", responses=replies.completions(replies.ChatCompletion), **key)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        return await ChatCall(service, body).respond(request)

    @app.post("/v1/completions", responses=replies.completions(replies.Completion), **key)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        return await CompletionCall(service, body).respond(request)

    @app.get("/v1/models", response_model=replies.ModelList, responses=replies.answers(401), **key)
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get(
        "/v1/models/{model:path}",
        response_model=replies.ModelCard,
        responses=replies.answers(401, 404),
        **key,
    )
    async def model(model: str) -> JSONResponse:
        if model != settings.model:
            raise ApiError(404, f"there is no model {model!r}", param="model")
        return JSONResponse(card)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=replies.Status, responses=replies.answers(503))
    async def health() -> JSONResponse:
        if service.engine.stats.error is not None:
            raise ApiError(503, "the engine has failed; its log says why", code="engine_failed")
        return JSONResponse({"status": "ok"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_model=replies.Status, responses=replies.answers(503))
    async def ready() -> JSONResponse:
        stats = service.engine.stats
        if stats.draining or stats.error is not None:
            raise errors.draining()
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse, responses=replies.answers(401), **key)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)
