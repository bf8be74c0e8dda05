"""specdec: modality-aware speculative decoding for large vision-language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdec.drafters import NgramDrafter, TextOnlyDrafter, load_drafter
    from specdec.engine import Adaptive, Engine
    from specdec.generation import decoder, enabled, generate
    from specdec.interfaces import Drafter, DraftRequest, Verifier, VerifierSpec
    from specdec.policies import Relaxed, load_policy, save_policy
    from specdec.saved_reliance import load_reliance
    from specdec.serving import AsyncEngine, ThreadedEngine
    from specdec.stats import AcceptanceStats
    from specdec.tree import DraftTree, Topology, chain, static, topology
    from specdec.verifiers import TransformersVerifier

__version__ = "0.1.0.dev0"

# Loaded on first use, so that `import specdec` is quick and imports no transformers model code.
_HOMES = {
    "AcceptanceStats": "specdec.stats",
    "Adaptive": "specdec.engine",
    "AsyncEngine": "specdec.serving",
    "DraftRequest": "specdec.interfaces",
    "DraftTree": "specdec.tree",
    "Drafter": "specdec.interfaces",
    "Engine": "specdec.engine",
    "NgramDrafter": "specdec.drafters",
    "Relaxed": "specdec.policies",
    "TextOnlyDrafter": "specdec.drafters",
    "ThreadedEngine": "specdec.serving",
    "Topology": "specdec.tree",
    "TransformersVerifier": "specdec.verifiers",
    "Verifier": "specdec.interfaces",
    "VerifierSpec": "specdec.interfaces",
    "chain": "specdec.tree",
    "decoder": "specdec.generation",
    "enabled": "specdec.generation",
    "generate": "specdec.generation",
    "load_drafter": "specdec.drafters",
    "load_policy": "specdec.policies",
    "load_reliance": "specdec.saved_reliance",
    "save_policy": "specdec.policies",
    "static": "specdec.tree",
    "topology": "specdec.tree",
}

__all__ = [
    "AcceptanceStats",
    "Adaptive",
    "AsyncEngine",
    "DraftRequest",
    "DraftTree",
    "Drafter",
    "Engine",
    "NgramDrafter",
    "Relaxed",
    "TextOnlyDrafter",
    "ThreadedEngine",
    "Topology",
    "TransformersVerifier",
    "Verifier",
    "VerifierSpec",
    "chain",
    "decoder",
    "enabled",
    "generate",
    "load_drafter",
    "load_policy",
    "load_reliance",
    "save_policy",
    "static",
    "topology",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
