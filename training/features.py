"""What a verifier computed for an answer."""

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
