"""The decode loop: schedule, draft, verify, accept, commit."""

from specdec.engine.engine import Engine
from specdec.engine.request import Decoding, Emission, Request

__all__ = ["Decoding", "Emission", "Engine", "Request"]
