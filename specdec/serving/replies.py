"""Responses, as `/openapi.json` describes them. Written by others; tests compare the two."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

# Any, below: what OpenAPI's own format holds.


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Reply):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(_Reply):
    """An error."""

    error: ErrorDetail


class Status(_Reply):
    """That all is well."""

    status: Literal["ok", "ready"]


class Policy(_Reply):
    """How drafts are accepted unless a request says more strictly."""

    kind: Literal["lossless", "relaxed", "rule"]
    epsilon: float | None = None
    gamma: float | None = None
    budget: float | None = None
    reliance: str | None = None
    rule: str | None = None


class ModelFacts(_Reply):
    """What else a model is."""

    policy: Policy
    drafter: str | None
    images: bool
    max_model_len: int | None


class ModelCard(_Reply):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    specdec: ModelFacts


class ModelList(_Reply):
    """All models; there is one."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptDetails(_Reply):
    """Tokens of prompts that were not computed again."""

    cached_tokens: int


class Usage(_Reply):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Speculative(_Reply):
    """See :class:`specdec.stats.AcceptanceStats`; the histogram is a list here, as vLLM's."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_accepted_tokens_per_pos: list[int]
    num_relaxed_tokens: int
    bound_spent: float


class CallMetrics(_Reply):
    """What speculation achieved, and how long it took."""

    speculative_decoding: Speculative
    queue_time_s: float
    time_to_first_token_s: float
    generation_time_s: float


class OriginToken(_Reply):
    """A token and who said it."""

    text: str
    origin: Literal["drafted", "relaxed", "verifier"]
    spent: float


class Origins(_Reply):
    """Tokens whose texts together are the answer's."""

    tokens: list[OriginToken]


class TokenLogprob(_Reply):
    """A token's natural logarithm of probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """Likewise, of one that was chosen."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Reply):
    """One entry a token."""

    content: list[ChosenLogprob]
    refusal: None


class PlainLogprobs(_Reply):
    """One entry a token, in each of four lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class _Choice(_Reply):
    index: int
    finish_reason: Literal["stop", "length"]
    stop_reason: str | None
    specdec: Origins | None = None


class Said(_Reply):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Choice):
    """An answer."""

    message: Said
    logprobs: ChatLogprobs | None


class PlainChoice(_Choice):
    """An answer."""

    text: str
    logprobs: PlainLogprobs | None


class _Completion(_Reply):
    id: str
    created: int
    model: str
    usage: Usage
    metrics: CallMetrics


class ChatCompletion(_Completion):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Completion(_Completion):
    """How prompts go on."""

    object: Literal["text_completion"]
    choices: list[PlainChoice]


_REASONS = {
    400: "The request cannot be answered as it is.",
    401: "An API key is missing.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    429: "Too many requests wait.",
    500: "The server failed.",
    503: "The server is about to stop.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors that a route may answer with, besides those that any may."""
    return {
        status: {"model": Failure, "description": _REASONS[status]}
        for status in sorted({400, 413, *statuses})
    }


def completions(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """All that a route that generates may answer with."""
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    whole = {"model": model, "content": events, "description": "The answer, or events of it."}
    return {200: whole} | answers(*_REASONS)


def describe(app: FastAPI, model: str) -> None:
    """Let `app` describe itself as it is: it has one model, and invalid requests get 400 here, not
    FastAPI's 422.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            for name in ("ChatRequest", "CompletionRequest"):
                fields = schema["components"]["schemas"][name]["properties"]
                fields["model"]["enum"] = [model]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
