"""Which slots an EAGLE head's text has: one rule for training and for serving.

A slot holds what stands for one token: its embedding, and the verifier's state behind the token
before it. Its position is that of the token before it. Of a text t_0 … t_n, by how the head sees
images (``drafters/eagle_head.py``):

- ``hidden``: a slot for every token but the first.
- ``shared``: a slot for every token of the text but the first token; the first one behind an image
  holds the verifier's state behind the last visual token.
- ``compressed``: as ``shared``, and before the first slot behind each image as many slots as the
  head has queries, which hold what they read of the image, at the position of its last token.

An image is a run of visual tokens; two without a token between them are one. Knows tensors only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdec.drafters.eagle_head import Vision


class Slots(NamedTuple):
    """S slots in order; each attends to itself and those before it.

    ``before``: int64 ``(S,)``, place of the token before the slot's: it is known by the state
    behind that token, at that token's position; the slot's own token is the next one.
    ``query``: bool ``(S,)``, slots of images; theirs is the place of the image's last token.
    ``seen``: int64 ``(S,)``, how many images ended before the slot's token, its own included.
    ``images``: int64 ``(I, 2)``, half-open ranges of places.
    """

    before: Tensor
    query: Tensor
    seen: Tensor
    images: Tensor


def slots(visual: Tensor, vision: Vision, queries: int = 1) -> Slots:
    """The slots of a text.

    Args:
        visual: bool ``(T,)``, which of its tokens are visual.
        vision: how the head sees images.
        queries: slots of each image, if compressed.
    """
    images = runs(visual)
    places = torch.arange(1, len(visual), device=visual.device)
    if vision != "hidden":
        places = places[~visual[1:]]
    before, query = places - 1, torch.zeros_like(places, dtype=torch.bool)
    if vision == "compressed":
        ends = (images[:, 1] - 1).repeat_interleave(queries)
        before = torch.cat([ends, before])
        query = torch.cat([torch.ones_like(ends, dtype=torch.bool), query])
        # Stable: the slots of an image stay before that of the token behind it.
        order = before.argsort(stable=True)
        before, query = before[order], query[order]
    seen = torch.searchsorted(images[:, 1].contiguous(), before + 1, right=True)
    return Slots(before, query, seen, images)


def runs(visual: Tensor) -> Tensor:
    """Images as half-open ranges of places, int64 ``(I, 2)``."""
    edges = torch.nn.functional.pad(visual.int(), (1, 1)).diff()
    return torch.stack([(edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]], 1)
