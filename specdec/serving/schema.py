"""Requests as OpenAI's clients send them, with what specdec adds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_T = TypeVar("_T")
_MOST_ITEMS = 4096
_MOST_BIASES = 1024


def _few(given: Any) -> Any:  # Any: JSON values
    """Not more entries than may be, of which each wrong one would be an error of its own."""
    if isinstance(given, dict) and len(given) > _MOST_BIASES:
        raise PydanticCustomError("too_long", f"at most {_MOST_BIASES} tokens")
    return given


# A list with many wrong items is wrong at the first: an error for each takes seconds to tell.
Items = Annotated[list[_T], Field(fail_fast=True)]
Several = Annotated[Items[_T], Field(max_length=_MOST_ITEMS)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[
    dict[str, Bias],
    BeforeValidator(_few),
    Field(json_schema_extra={"maxProperties": _MOST_BIASES}),
]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, Field(max_length=1024)]
Count = Annotated[int, Field(ge=1)]


class Fields(BaseModel):
    """Keeps what it does not know. Where that makes no difference it is ignored, and else refused
    by name: see :func:`specdec.serving.decoding.check_extra`.
    """

    model_config = ConfigDict(extra="allow")


class Speculation(Fields):
    """How drafts are accepted: never looser than the operator of the server has it."""

    policy: Literal["operator", "lossless"] = "operator"
    epsilon: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    drafts: bool = True
    origins: bool = False


class StreamOptions(Fields):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    # Of no use to who reads a stream of ours, and harmless.
    include_obfuscation: bool | None = None


class ImageUrl(Fields):
    """An image: a ``data:`` URL, or what else the server's operator allows. How many tokens it
    becomes is the processor's business, whatever ``detail`` says.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Part(Fields):
    """A part of a message."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Function(Fields):
    """A call of a tool; its arguments are a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(Fields):
    """What an assistant asked to be done."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function


class Message(Fields):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Several[Part] | None = None
    name: str | None = None
    tool_calls: Several[ToolCall] | None = None
    tool_call_id: str | None = None


class ToolFunction(Fields):
    """A function that the model may ask to be called."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None  # Any: a JSON schema
    strict: bool | None = None


class Tool(Fields):
    """A tool."""

    type: Literal["function"]
    function: ToolFunction


class Common(Fields):
    """What both kinds of completion take."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    max_tokens: Count | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    user: str | None = None
    # These are of vLLM.
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    priority: Annotated[int, Field(ge=-10, le=0)] | None = None
    specdec: Speculation | None = None


class ChatRequest(Common):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[Several[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Several[Tool] | None = None


class CompletionRequest(Common):
    """The body of ``POST /v1/completions``."""

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
