"""Which visual tokens and pages are kept."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch

from specdec.drafters.selection import check_ratio, select, select_pages

VISUAL = [*range(3, 13), *range(20, 27)]  # two images, of 10 and 7 tokens


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("looked", [False, True])
def test_every_image_keeps_its_share(ratio: float, looked: bool) -> None:
    """A share counted over all images, of which one would be lost, or rounded down to nothing."""
    gaze = torch.rand(30, generator=torch.Generator().manual_seed(1)) if looked else None
    kept = select(VISUAL, gaze, ratio)
    assert kept == sorted(set(kept))
    first, second = (sum(place in run for place in kept) for run in (range(3, 13), range(20, 27)))
    assert (first, second) == (math.ceil(10 * ratio), math.ceil(7 * ratio))
    assert set(kept) <= set(VISUAL)


def test_what_is_looked_at_is_kept_and_the_rest_is_spread() -> None:
    gaze = torch.zeros(30)
    gaze[[4, 5, 6, 25]] = torch.tensor([3.0, 2.0, 1.0, 1.0])
    assert select(VISUAL, gaze, 0.3, share_uniform=0.0) == [4, 5, 6, 20, 21, 25][:3] + select(
        range(20, 27), gaze, 0.3, share_uniform=0.0
    )
    assert {4, 5} <= set(select(VISUAL, gaze, 0.4, share_uniform=0.5))
    assert select(range(8), None, 0.5) == [1, 3, 5, 7]
    assert select(range(8), torch.zeros(8), 0.5, share_uniform=1.0) == [1, 3, 5, 7]


def test_an_even_choice_leaves_no_large_hole() -> None:
    """Bunched at one end of the image: no gap is longer than twice the spacing."""
    for count in (7, 16, 100, 333):
        for ratio in (0.1, 0.25, 0.5):
            kept = [-1, *select(range(count), None, ratio), count]
            gaps = [after - before for before, after in pairwise(kept)]
            assert max(gaps) <= 2 * math.ceil(1 / ratio)


@pytest.mark.parametrize("seed", range(40))
def test_pages_with_words_are_kept_and_the_others_by_ratio(seed: int) -> None:
    """A page of the text that is lost, a begun one, one too many or too few: against what each
    page holds, counted token by token."""
    rng = random.Random(seed)
    size, lead = rng.choice([1, 2, 4, 5]), 0
    lead = rng.randrange(size)
    length = rng.randrange(1, 60)
    visual = sorted(
        place
        for start in rng.sample(range(length), min(3, length))
        for place in range(start, min(length, start + rng.randrange(1, 25)))
    )
    visual = sorted(set(visual))
    gaze = torch.rand(length) if rng.random() < 0.5 else None
    pages = [[p for p in range(length) if (lead + p) // size == i] for i in range(length + 1)]
    pages = [page for page in pages if page]
    full = (lead + length) // size
    free = {i for i, page in enumerate(pages) if i < full and set(page) <= set(visual)}
    before: set[int] = set()
    for ratio in (0.0, 0.3, 0.6, 1.0):
        kept = select_pages(visual, gaze, ratio, committed=length, lead=lead, page_size=size)
        assert kept == sorted(set(kept))
        assert set(range(len(pages))) - free <= set(kept)
        if ratio == 0:
            assert set(kept) == set(range(len(pages))) - free
        if ratio == 1:
            assert kept == list(range(len(pages)))
        tokens = sum(place in visual for page in kept for place in pages[page])
        # A first page that is not all there, of each run, may have counted for more.
        assert tokens >= ratio * len(visual) - (lead if 0 in free else 0)
        least = sum(place in visual for i in set(kept) - free for place in pages[i])
        most = max(least, math.ceil(ratio * len(visual)) + 4 * size)
        assert tokens <= most
        assert len(kept) >= len(before)
        before = set(kept)


def test_the_pages_that_are_looked_at_are_kept() -> None:
    gaze = torch.zeros(40)
    gaze[17] = 1.0
    kept = select_pages(
        range(4, 36), gaze, 1 / 8, committed=40, lead=0, page_size=4, share_uniform=0.0
    )
    assert kept == [0, 4, 9]


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan])
def test_what_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio="):
        check_ratio(ratio)
