"""What a request may be made of."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from specdec.serving.schema import ChatRequest, CompletionRequest

MANY = 100_000


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": "a"}]} | fields


def turn(**fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "assistant"} | fields])


WRONG: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "messages": (ChatRequest, chat(messages=[1] * MANY)),
    "wrong messages within few": (ChatRequest, chat(messages=[1] * 4000)),
    "parts": (ChatRequest, turn(content=[1] * MANY)),
    "tool calls": (ChatRequest, turn(tool_calls=[1] * MANY)),
    "tools": (ChatRequest, chat(tools=[1] * MANY)),
    "biases": (ChatRequest, chat(logit_bias={str(i): "x" for i in range(MANY)})),
    "stop": (ChatRequest, chat(stop=[1] * MANY)),
    "speculation": (ChatRequest, chat(specdec={f"a{i}": 1 for i in range(MANY)} | {"gamma": -1})),
    "prompts": (CompletionRequest, {"model": "demo", "prompt": [{}] * MANY}),
    "tokens": (CompletionRequest, {"model": "demo", "prompt": [1] * MANY + ["x"] * MANY}),
    "tokens of a prompt": (CompletionRequest, {"model": "demo", "prompt": [["x"] * MANY]}),
    "lists of tokens": (CompletionRequest, {"model": "demo", "prompt": [["x"]] * MANY}),
}


@pytest.mark.parametrize(("schema", "body"), WRONG.values(), ids=WRONG)
def test_many_faults_are_told_as_few(schema: type[BaseModel], body: dict[str, Any]) -> None:
    """Would catch an error for each wrong item: the event loop makes a copy of all of them, which
    takes it ten seconds and hundreds of MiB for half a MiB of a body.
    """
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert caught.value.error_count() < 10
