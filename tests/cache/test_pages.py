"""Page accounting under random programs, against a plain set."""

from __future__ import annotations

import random

import pytest

from specdec.cache import OutOfPages, PageAllocator


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [None, 24], ids=["unbounded", "limit"])
def test_no_page_is_lost_or_given_twice(seed: int, limit: int | None) -> None:
    """A page handed out while it is taken, a page that never comes back, a limit that is overrun, a
    failed request that took some pages all the same."""
    rng = random.Random(seed)
    allocator = PageAllocator(limit)
    owners: list[list[int]] = []
    for _ in range(200):
        if owners and rng.random() < 0.4:
            allocator.free(owners.pop(rng.randrange(len(owners))))
        elif owners and rng.random() < 0.5:
            pages = rng.choice(owners)
            count = rng.randrange(0, 4)
            pages += _take(allocator, owners, count, limit, after=pages[-1])
        else:
            pages = _take(allocator, owners, rng.randrange(1, 6), limit, room=rng.randrange(0, 9))
            owners += [pages] if pages else []
        allocator.check_integrity(owners)
        assert allocator.num_taken == sum(map(len, owners))
        assert limit is None or allocator.num_pages <= limit


def _take(
    allocator: PageAllocator,
    owners: list[list[int]],
    count: int,
    limit: int | None,
    after: int | None = None,
    room: int = 0,
) -> list[int]:
    taken = sum(map(len, owners))
    if limit is not None and taken + count > limit:
        with pytest.raises(OutOfPages, match=f"at most {limit}"):
            allocator.allocate(count, after=after, room=room)
        return []
    return allocator.allocate(count, after=after, room=room)


def test_sequences_grow_contiguously_within_their_room() -> None:
    """Sequences laid out end to end, so that each growth tears the next one's pages apart."""
    allocator = PageAllocator()
    first = allocator.allocate(2, room=5)
    second = allocator.allocate(2, room=5)
    for pages in (first, second):
        for _ in range(3):
            pages += allocator.allocate(1, after=pages[-1])
        assert pages == list(range(pages[0], pages[0] + 5))


def test_freeing_twice_is_caught() -> None:
    allocator = PageAllocator()
    pages = allocator.allocate(1)
    allocator.free(pages)
    with pytest.raises(AssertionError, match="freed twice"):
        allocator.free(pages)


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        PageAllocator(0)
