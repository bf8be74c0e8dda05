"""Which tokens stand for pixels, as transformers' configs say it."""

from __future__ import annotations

from transformers import PretrainedConfig

_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def visual_token_ids(config: PretrainedConfig) -> frozenset[int]:
    """Ids of the placeholders in a model's ``input_ids``."""
    ids = (getattr(config, name, None) for name in _NAMES)
    return frozenset(token for token in ids if token is not None)
