"""Page accounting: which pages are free, who refers to the others, and what full pages hold.

Knows no tensors and no requests. A page is *free*, *taken* (somebody refers to it) or *cached*:
nobody refers to it, but its contents are known by a key and can be taken up again. Cached pages
are given away, the longest unused first, when nothing else is left.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

_FREE, _USED = b"\x01", 0


class OutOfPages(RuntimeError):
    """More pages were asked for than the limit leaves."""


def page_key(parent: bytes, tokens: Sequence[int], pixels: Sequence[bytes] = ()) -> bytes:
    """The name of a full page's contents, 16 bytes.

    Args:
        parent: the key of the page before it, or whatever tells apart texts that may not share
            (``b""`` for nothing).
        tokens: its token ids, visual placeholders included.
        pixels: a digest of the pixels behind each of its visual tokens, in order.
    """
    digest = hashlib.blake2b(parent, digest_size=16)
    digest.update(array("q", tokens).tobytes())
    for pixel in pixels:
        digest.update(pixel)
    return digest.digest()


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
        self._free = bytearray()  # one byte a page: 1 free, 0 taken or cached
        self._refs: list[int] = []
        self._cursor = 0
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # the longest unused first

    @property
    def num_pages(self) -> int:
        """Pages that exist."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that nobody refers to but whose contents can be found."""
        return len(self._cached)

    @property
    def num_taken(self) -> int:
        """Pages that somebody refers to."""
        return self._free.count(_USED) - len(self._cached)

    def refs(self, page: int) -> int:
        """How many refer to the page."""
        return self._refs[page]

    def allocate(self, count: int, *, after: int | None = None, room: int = 0) -> list[int]:
        """Take ``count`` pages, each with one reference.

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
        self._provide(count - self._free.count(_FREE))
        pages: list[int] = []
        while len(pages) < count:
            page = self._free.find(_FREE, first)
            if page < 0:
                page = self._free.find(_FREE)
            self._free[page] = _USED
            self._refs[page] = 1
            pages.append(page)
            first = page + 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to each of these taken pages."""
        for page in pages:
            assert self._refs[page] > 0, f"page {page} is shared but not taken"
            self._refs[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """One reference less to each. Pages without any are free, or cached if they have a key."""
        for page in reversed(pages):  # so that the end of a text goes before its beginning
            assert self._refs[page] > 0, f"page {page} was freed twice"
            self._refs[page] -= 1
            if self._refs[page] == 0:
                if page in self._key_of:
                    self._cached[page] = None
                else:
                    self._free[page] = 1

    def cut(self, pages: int) -> None:
        """Have no more than the first ``pages``; all others are free."""
        assert self._free.count(_USED, pages) == 0, "a page is cut that is not free"
        del self._free[pages:], self._refs[pages:]

    def publish(self, page: int, key: bytes) -> int:
        """Let others find this taken, full page, never to be written again, by ``key``.

        Returns:
            The page that has the key: if there was one already, the caller's reference has moved
            to that one.
        """
        assert self._refs[page] > 0, f"page {page} is published but not taken"
        there = self._page_of.setdefault(key, page)
        if there == page:
            self._key_of[page] = key
        else:
            self.find([key])
            self.free([page])
        return there

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages with these keys, up to the first that is not there; one more reference to
        each.
        """
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            self._cached.pop(page, None)
            self._refs[page] += 1
            pages.append(page)
        return pages

    def check_integrity(self, owners: Iterable[Iterable[int]]) -> None:
        """Assert that every page is free, cached, or referred to by exactly these ``owners``, none
        of which refers to a page twice.
        """
        counts: Counter[int] = Counter()
        for pages in map(list, owners):
            assert len(pages) == len(set(pages)), "an owner has a page twice"
            counts.update(pages)
        for page, refs in enumerate(self._refs):
            assert refs == counts[page], f"page {page}: {refs} references, {counts[page]} owners"
            free, cached = self._free[page] != _USED, page in self._cached
            assert [free, cached, refs > 0].count(True) == 1, f"page {page} is in two states"
            assert not free or page not in self._key_of, f"free page {page} has a key"
            assert not cached or page in self._key_of, f"cached page {page} has no key"
        assert {key: page for page, key in self._key_of.items()} == self._page_of

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

    def _provide(self, missing: int) -> None:
        """Make ``missing`` more pages free: new ones, then cached ones."""
        if missing <= 0:
            return
        new = missing if self.limit is None else min(missing, self.limit - self.num_pages)
        new = max(new, 0)  # a limit may have been set below what exists
        if missing - new > len(self._cached):
            raise OutOfPages(
                f"{missing} more pages are needed, {new + len(self._cached)} can be had; "
                f"{self.num_pages} of at most {self.limit} exist"
            )
        if new:
            self._grow(new)
        for _ in range(missing - new):
            page, _ = self._cached.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self._free[page] = 1

    def _grow(self, missing: int) -> None:
        grown = max(missing, self.num_pages)  # doubling keeps the copies amortised
        if self.limit is not None:
            grown = min(grown, self.limit - self.num_pages)
        self._free.extend(_FREE * grown)
        self._refs.extend([0] * grown)
