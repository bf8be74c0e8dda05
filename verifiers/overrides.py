"""The families that the generic adapter alone would get wrong, and what is done about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from transformers import PretrainedConfig

from specdec.runtime.hook import PagedCache
from specdec.verifiers.llama4 import Llama4Cache


class Override(NamedTuple):
    """Attributes:
    shares: prompts that begin alike may share pages.
    cache: what the model gets as ``past_key_values``.
    """

    shares: bool = True
    cache: type[PagedCache] = PagedCache


_GENERIC = Override()
_OVERRIDES: Mapping[str, Override] = {
    # Every token of a prompt sees every other: a beginning is nothing of its own.
    "paligemma": Override(shares=False),
    "llama4": Override(cache=Llama4Cache),
    "llama4_text": Override(cache=Llama4Cache),
}


def override(config: PretrainedConfig) -> Override:
    """What a model with this config needs."""
    return _OVERRIDES.get(config.model_type, _GENERIC)
