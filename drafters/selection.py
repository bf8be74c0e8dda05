"""Which visual tokens a drafter keeps: those that are looked at, and some everywhere (SpecVLM).

Places are logical ones, in order. Consecutive visual tokens are one image's *run*; each run keeps
its share. Knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SHARE_UNIFORM = 0.5


def check_ratio(ratio: float) -> float:
    """``ratio``.

    Raises:
        ValueError: it is no share.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio}: the share of visual tokens that is kept is in [0, 1]")
    return ratio


def select(
    visual: Sequence[int],
    gaze: Tensor | None,
    ratio: float,
    share_uniform: float = SHARE_UNIFORM,
) -> list[int]:
    """The visual tokens to keep, ``ceil(ratio * n)`` of every run.

    Args:
        visual: places of the visual tokens.
        gaze: float ``(P,)``: how much the token at each place is looked at; ``None`` if nobody
            knows, and then all are chosen evenly.
        ratio: how many to keep.
        share_uniform: of these, how many are spread evenly over the run.
    """
    kept: list[int] = []
    looked = None if gaze is None else gaze.float().cpu()
    for run in _runs(visual):
        scores = None if looked is None else looked[run.start : run.stop]
        chosen = _choose(len(run), scores, math.ceil(ratio * len(run)), share_uniform)
        kept += [run[i] for i in chosen]
    return kept


def select_pages(
    visual: Sequence[int],
    gaze: Tensor | None,
    ratio: float,
    *,
    committed: int,
    lead: int,
    page_size: int,
    share_uniform: float = SHARE_UNIFORM,
) -> list[int]:
    """The pages of a sequence to keep, counted from 0.

    Pages that hold anything but visual tokens are kept, and the last one unless it is full. Of the
    others of a run as many are as it takes to keep ``ceil(ratio * n)`` of its tokens, those in kept
    pages counted.

    Args:
        visual: places of the visual tokens.
        gaze: as for :func:`select`; a page is looked at as much as all its tokens.
        ratio: how many tokens to keep.
        committed: tokens of the sequence.
        lead: slots of its first page that hold nothing.
        page_size: tokens a page.
        share_uniform: as for :func:`select`.
    """
    used, full = -(-(lead + committed) // page_size), (lead + committed) // page_size
    kept = set(range(used))
    looked = None if gaze is None else gaze.float().cpu()
    for run in _runs(visual):
        # The pages that lie within the run; the unused slots of the first one are no obstacle.
        first = 0 if run.start == 0 else -(-(lead + run.start) // page_size)
        pages = range(first, min((lead + run.stop) // page_size, full))
        if not pages:
            continue
        spans = [range(max(p * page_size - lead, 0), (p + 1) * page_size - lead) for p in pages]
        missing = math.ceil(ratio * len(run)) - (len(run) - sum(map(len, spans)))
        scores = None
        if looked is not None:
            scores = torch.stack([looked[span.start : span.stop].sum() for span in spans])
        count = max(0, -(-missing * len(pages) // sum(map(len, spans))))
        chosen = set(_choose(len(pages), scores, count, share_uniform))
        kept -= {page for i, page in enumerate(pages) if i not in chosen}
    return sorted(kept)


def _runs(places: Sequence[int]) -> Iterator[range]:
    """Consecutive places."""
    start = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] != places[i - 1] + 1:
            yield range(places[start], places[i - 1] + 1)
            start = i


def _choose(count: int, scores: Tensor | None, wanted: int, share_uniform: float) -> list[int]:
    """``wanted`` of ``count`` things, in order: some evenly spaced, of the others those with the
    highest scores.
    """
    even = wanted if scores is None else math.floor(share_uniform * wanted)
    chosen = {(2 * i + 1) * count // (2 * even) for i in range(even)}
    if scores is not None:
        left = scores.clone()
        left[list(chosen)] = -math.inf
        chosen |= set(left.topk(wanted - even).indices.tolist())
    return sorted(chosen)
