"""The families that the generic adapter alone would get wrong, and what is done about each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from transformers import PretrainedConfig

from specdec.runtime.paged_cache import PagedCache
from specdec.verifiers.llama4 import Llama4Cache


class Override(NamedTuple):
    """Attributes:
    shares: prompts that begin alike may share pages.
    counts_padding: what a row's padding is makes a difference: its length is kept ``beside`` the
        sequence, and pages are shared between rows with the same padding only.
    cache: what the model gets as ``past_key_values``.
    """

    shares: bool = True
    counts_padding: bool = False
    cache: type[PagedCache] = PagedCache


_GENERIC = Override()
_OVERRIDES: Mapping[str, Override] = {
    # Every token of a prompt sees every other: a beginning is nothing of its own.
    "paligemma": Override(shares=False),
    "llama4_text": Override(counts_padding=True, cache=Llama4Cache),
}


def override(config: PretrainedConfig) -> Override:
    """What a model with this config needs, by its own family or that of its text tower."""
    text = config.get_text_config(decoder=True)
    found = _OVERRIDES.get(config.model_type) or _OVERRIDES.get(text.model_type)
    return found or _GENERIC
