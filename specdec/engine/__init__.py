"""The decode loop: schedule, draft, verify, accept, commit."""

from specdec.engine.controller import Adaptive
from specdec.engine.engine import Engine
from specdec.engine.limits import Limits
from specdec.engine.request import Decoding, Emission, FinishReason, Logprobs, Request

__all__ = [
    "Adaptive",
    "Decoding",
    "Emission",
    "Engine",
    "FinishReason",
    "Limits",
    "Logprobs",
    "Request",
]
