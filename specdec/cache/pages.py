"""Page accounting: which pages are free. Knows no tensors and no requests."""

from __future__ import annotations

from collections.abc import Iterable

_FREE, _TAKEN = b"\x01", 0


class OutOfPages(RuntimeError):
    """More pages were asked for than the limit leaves."""


class PageAllocator:
    """Hands out page numbers ``0, 1, …``, preferring contiguous ones.

    Contiguous pages can be read as a view instead of being gathered, so a sequence grows behind its
    last page where that is free, and each new sequence starts behind the room that the one before
    it said it would need.

    Args:
        limit: most pages that may exist; ``None`` grows without bound.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"a page limit must be at least 1, got {limit}")
        self.limit = limit
        self._free = bytearray()  # one byte a page: 1 free, 0 taken
        self._cursor = 0

    @property
    def num_pages(self) -> int:
        """Pages that exist, free or taken."""
        return len(self._free)

    @property
    def num_taken(self) -> int:
        return self._free.count(_TAKEN)

    def allocate(self, count: int, *, after: int | None = None, room: int = 0) -> list[int]:
        """Take ``count`` pages.

        Args:
            count: how many.
            after: the sequence's last page, to continue behind it; ``None`` starts a new sequence.
            room: pages that a new sequence is expected to need in all.

        Raises:
            OutOfPages: the limit leaves fewer than ``count``; nothing was taken.
        """
        if count <= 0:
            return []
        first = after + 1 if after is not None else self._start(max(count, room))
        missing = count - self._free.count(_FREE)
        if missing > 0:
            self._grow(missing)
        pages: list[int] = []
        while len(pages) < count:
            page = self._free.find(_FREE, first)
            if page < 0:
                page = self._free.find(_FREE)
            self._free[page] = _TAKEN
            pages.append(page)
            first = page + 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Give pages back. Freeing a free page is a bug, and is caught."""
        for page in pages:
            assert self._free[page] == _TAKEN, f"page {page} was freed twice"
            self._free[page] = 1

    def check_integrity(self, owners: Iterable[Iterable[int]]) -> None:
        """Assert that the taken pages are exactly those of ``owners``, each owned once."""
        owned = [page for pages in owners for page in pages]
        assert len(owned) == len(set(owned)), "a page has two owners"
        taken = {page for page in range(self.num_pages) if self._free[page] == _TAKEN}
        assert taken == set(owned), f"taken {sorted(taken)}, owned {sorted(owned)}"

    def _start(self, room: int) -> int:
        """The first page of a run of ``room`` free ones, behind the last such run where
        possible.
        """
        run = _FREE * room
        start = self._free.find(run, self._cursor)
        if start < 0:
            start = self._free.find(run)
        if start < 0 and (self.limit is None or self.num_pages + room <= self.limit):
            start = self.num_pages
            self._grow(room)
        start = max(start, 0)
        self._cursor = start + room
        return start

    def _grow(self, missing: int) -> None:
        if self.limit is not None and self.num_pages + missing > self.limit:
            raise OutOfPages(
                f"{missing} more pages are needed; {self.num_pages} of at most {self.limit} exist"
            )
        grown = max(missing, self.num_pages)  # doubling keeps the copies amortised
        if self.limit is not None:
            grown = min(grown, self.limit - self.num_pages)
        self._free.extend(_FREE * grown)
