"""What is wrong with a request, in OpenAI's shape. No traceback and no text of a user's in it."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from specdec.cache import OutOfPages
from specdec.engine.faults import described
from specdec.serving.stream import EngineClosed, QueueFull, RequestFailed

logger = logging.getLogger("specdec.serving")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
# How pydantic names alternatives among the parts of a place.
_ALTERNATIVE = re.compile(r"(constrained-)?str|int|list\[.*\]")
_LONGEST = 600  # characters of a message, which may repeat what was sent


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the field that it is about.
        code: for programs.
        headers: to send along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:  # Any: JSON values
        """The response, ready for JSON."""
        return {
            "error": {
                "message": _clean(self.message),
                "type": _TYPES.get(self.status, "server_error"),
                "param": None if self.param is None else _clean(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The same, as a response."""
        return JSONResponse(self.body(), self.status, self.headers)


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, message, param=param, code=code)


def of_engine(error: Exception) -> ApiError:
    """What an exception of the engine means to who asked."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        wait = {"Retry-After": str(math.ceil(error.retry_after))}
        return ApiError(429, str(error), code="queue_full", headers=wait)
    if isinstance(error, RequestFailed) and isinstance(error.__cause__, Exception):
        error = error.__cause__
        if isinstance(error, EngineClosed):
            return draining("the answer was cut off, as the server stops")
        if isinstance(error, OutOfPages):
            return refused(
                "the prompt and its answer need more memory for keys than this server has; ask "
                "for less",
                code="context_length_exceeded",
            )
        if isinstance(error, ValueError):
            return internal(error)
    if isinstance(error, EngineClosed):
        return draining()
    if isinstance(error, ValueError):
        return refused(str(error))
    return internal(error)


def draining(what: str = "the server is about to stop and takes no more requests") -> ApiError:
    """The server takes no requests any more."""
    return ApiError(
        503,
        f"{what}; ask another, or this one later",
        code="draining",
        headers={"Retry-After": "5"},
    )


def internal(error: BaseException) -> ApiError:
    """A bug of ours, or of what we stand on. Where it is goes into the log; its message does not,
    which may hold what somebody asked.
    """
    logger.error("%s", described(error))
    return ApiError(
        500, "the server failed at this request; its log says where", code="internal_error"
    )


def install(app: FastAPI) -> None:
    """Let `app` report errors like this."""

    @app.exception_handler(ApiError)
    async def _ours(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return _invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return ApiError(error.status_code, message, headers=error.headers).response()


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that does not fit the schema; of alternatives the one that came furthest."""
    first = max(errors, key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
    place = [str(part) for part in first["loc"][1:] if not _ALTERNATIVE.fullmatch(str(part))]
    if first["type"] == "json_invalid":
        return refused("the body is not JSON", code="invalid_json")
    param = ".".join(place) or None
    if param is None:
        return refused(f"the body: {first['msg']}; is its Content-Type application/json?")
    return refused(f"{param}: {first['msg']}", param, "invalid_value")


def _clean(text: str) -> str:
    """What can be sent as UTF-8, whatever the text repeats."""
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return text.encode("utf-8", "replace").decode()
