"""What a verifier computed for an answer, and an answer as drafters learn from it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Of one answer of T tokens, visual placeholders included.

    ``positions``: int64 ``(R, T)``, the position ids that the verifier used, R = 1, 3 or 4.
    ``taps``: ``(T, layers * H)``, inputs of the tapped layers. ``last``: ``(T, H)``, last hidden
    state: the verifier's logits behind token t are ``lm_head(last[t])``. ``visual_keys`` and
    ``visual_values``: ``(T_read, Hkv, D)``, the verifier's keys (turned) and values of one layer
    at the places ``read``, int64 ``(T_read,)``.
    """

    positions: Tensor
    taps: Tensor
    last: Tensor
    visual_keys: Tensor | None
    visual_values: Tensor | None
    read: Tensor


class Example(NamedTuple):
    """An answer of A tokens behind its prompt.

    ``tokens``: int64 ``(T,)``, prompt then answer, visual placeholders included. ``visual``: bool
    ``(T,)``. ``top_ids`` int64 and ``top_p`` fp32 ``(A, K)``: the verifier's K most probable tokens
    at each place of the answer, most probable first, at temperature 1.
    """

    tokens: Tensor
    prompt_length: int
    visual: Tensor
    top_ids: Tensor
    top_p: Tensor
    temperature: float
    task: str
    features: Features | None


def without_visual(example: Example) -> Example:
    """The answer as a drafter that sees no image reads it."""
    kept = ~example.visual
    return example._replace(
        tokens=example.tokens[kept],
        prompt_length=int(kept[: example.prompt_length].sum()),
        visual=example.visual[kept],
        features=None,
    )
