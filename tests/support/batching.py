"""Requests to an engine, prompts as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specdec.engine import Decoding, Engine, Request
from specdec.interfaces import Prompt

NEW_TOKENS = 20


def submit(engine: Engine, ids: Tensor, priority: int = 0, **how: Any) -> Request:
    prompt = engine.verifier.encode(Prompt(ids, (0,), {}))
    assert prompt.encoded is not None
    decoding = Decoding(max_length=ids.shape[1] + NEW_TOKENS, **how)
    (request,) = engine.submit(prompt, decoding, priority)
    return request


def finish(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def whole(engine: Engine, ids: Tensor) -> Request:
    """A prompt that is not run in pieces."""
    decoding = Decoding(max_length=ids.shape[1] + NEW_TOKENS)
    (request,) = engine.submit(Prompt(ids, (0,), {}), decoding)
    return request
