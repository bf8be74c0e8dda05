"""Keys and values of many sequences in shared pages.

Each sequence's logical positions lie in its own pages, or in pages that it shares:

    [0, committed)                      keys of tokens that are part of the text
    [committed, committed + scratch)    keys of tree nodes that are still speculation

Only pages that no one else refers to are written: the last page of a forked sequence is copied when
it grows. Full committed pages are published under the sequence's page keys, where a later sequence
that begins with the same keys finds them; one place within a page may be published as well, and is
copied by those who find it. Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.cache.pages import OutOfPages, PageAllocator


class Mark(NamedTuple):
    """A place in a text, ``length`` tokens from its beginning, within a page; ``key`` names what
    the page holds up to there (see ``pages.page_key``).
    """

    key: bytes
    length: int


@dataclass(slots=True, eq=False)
class SequenceKV:
    """One sequence's page table. Change it through :class:`PagedKV` only.

    Attributes:
        room: tokens that the sequence is expected to hold in all.
        pages: its pages, in logical order.
        committed: tokens whose keys are part of the text.
        scratch_depths: for each scratch node its depth behind the last committed token: a node's
            logical position is ``committed + depth``.
        keys: what its full pages are published under, in order (see ``pages.page_key``); those of
            pages that are not full yet may be there already.
        mark: a place within a page that is published too.
        contiguous: the pages follow one another.
        beside: what the model keeps of the text besides keys; not looked at here, nor forked.
    """

    room: int = 0
    pages: list[int] = field(default_factory=list)
    committed: int = 0
    scratch_depths: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    mark: Mark | None = None
    contiguous: bool = True
    beside: object | None = None

    @property
    def length(self) -> int:
        """Committed tokens and scratch nodes."""
        return self.committed + len(self.scratch_depths)


@dataclass(frozen=True, slots=True, eq=False)
class PageView:
    """Some full pages of a sequence, in order, to be read only. They stay as they are, whatever
    becomes of the sequence, until the view is closed with :meth:`PagedKV.close`.
    """

    pages: tuple[int, ...]


class _Pool:
    """Rows ``(slots, Hkv, D)`` and ``(slots, Hkv, Dv)``, and views of them in attention's order."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.headed = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]


class PagedKV:
    """Pools of keys and values, one pair per layer, allocated when a layer first writes.

    Args:
        page_size: tokens a page.
        limit: most pages; ``None`` grows without bound.
    """

    def __init__(self, page_size: int = 16, limit: int | None = None) -> None:
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, got {page_size}")
        self.page_size = page_size
        self.allocator = PageAllocator(limit)
        self._pools: dict[int, _Pool] = {}
        self._sequences: dict[int, SequenceKV] = {}
        self._views: dict[int, PageView] = {}

    @property
    def bytes_per_page(self) -> int:
        """What a page takes in all layers that have been written."""
        return self.page_size * sum(
            rows.stride(0) * rows.itemsize
            for pool in self._pools.values()
            for rows in (pool.keys, pool.values)
        )

    def add(
        self, room: int = 0, keys: Sequence[bytes] = (), mark: Mark | None = None
    ) -> SequenceKV:
        """A new sequence that is expected to hold ``room`` tokens.

        Pages that are published under the first of ``keys`` are shared and count as committed. If
        they end in the page of ``mark``, and that is published, the rest up to it is copied.
        """
        pages = self.allocator.find(keys)
        sequence = SequenceKV(room, pages, len(pages) * self.page_size, keys=list(keys), mark=mark)
        self._sequences[id(sequence)] = sequence
        if mark is not None and mark.length // self.page_size == len(pages):
            self._copy_up_to(sequence, mark)
        _note_contiguity(sequence)
        return sequence

    def _copy_up_to(self, sequence: SequenceKV, mark: Mark) -> None:
        found = self.allocator.find([mark.key])
        if found:
            try:
                last = sequence.pages[-1] if sequence.pages else None
                room = -(-max(sequence.room, mark.length) // self.page_size)
                fresh = self._allocate(1, last, room)
            except OutOfPages:
                fresh = []
            if fresh:
                self._copy_rows(found[0], fresh[0], mark.length % self.page_size)
                sequence.pages += fresh
                sequence.committed = mark.length
            self.allocator.free(found)

    def fork(self, sequence: SequenceKV) -> SequenceKV:
        """A second sequence with the same committed text, in the same pages."""
        assert not sequence.scratch_depths, "a sequence with scratch nodes cannot be forked"
        pages = sequence.pages[: -(-sequence.committed // self.page_size)]
        self.allocator.share(pages)
        twin = SequenceKV(sequence.room, pages, sequence.committed, keys=list(sequence.keys))
        _note_contiguity(twin)
        self._sequences[id(twin)] = twin
        return twin

    def free(self, sequence: SequenceKV) -> None:
        """Give the sequence's pages back. Freeing it again does nothing."""
        if self._sequences.pop(id(sequence), None) is not None:
            self.allocator.free(sequence.pages)
            sequence.pages.clear()
            sequence.scratch_depths.clear()
            sequence.keys.clear()
            sequence.committed = 0

    def view(self, sequence: SequenceKV, indices: Sequence[int]) -> PageView:
        """A view of these of the sequence's pages, counted from 0; each must be full and
        committed.
        """
        assert all(0 <= i < sequence.committed // self.page_size for i in indices)
        view = PageView(tuple(sequence.pages[i] for i in indices))
        self.allocator.share(view.pages)
        self._views[id(view)] = view
        return view

    def close(self, view: PageView) -> None:
        """Let the view's pages go. Closing it again does nothing."""
        if self._views.pop(id(view), None) is not None:
            self.allocator.free(view.pages)

    def extend(self, sequence: SequenceKV, depths: Sequence[int]) -> None:
        """Add scratch nodes at these depths, taking pages as needed.

        Raises:
            OutOfPages: the limit is reached; the sequence is as it was.
        """
        length = sequence.length + len(depths)
        missing = -(-length // self.page_size) - len(sequence.pages)
        first, used = divmod(sequence.length, self.page_size)
        copied = used > 0 and self.allocator.refs(sequence.pages[first]) > 1
        if missing > 0 or copied:
            last = sequence.pages[first if copied else -1] if sequence.pages else None
            room = -(-max(sequence.room, length) // self.page_size)
            fresh = self._allocate(max(missing, 0) + copied, last, room)
            if copied:
                old, sequence.pages[first] = sequence.pages[first], fresh.pop(0)
                self._copy_rows(old, sequence.pages[first], used)
                self.allocator.free([old])
            sequence.pages += fresh
            _note_contiguity(sequence)
        sequence.scratch_depths.extend(depths)

    def commit(self, sequence: SequenceKV, nodes: Sequence[int]) -> None:
        """Make these scratch nodes, in this order, the next committed tokens and drop the others.

        Only rows that are not in place yet are copied.
        """
        assert len(nodes) <= len(sequence.scratch_depths)
        moves = [(node, index) for index, node in enumerate(nodes) if node != index]
        if moves:
            base = torch.tensor(sequence.committed)
            source = self._index(sequence, base + torch.tensor([node for node, _ in moves]))
            target = self._index(sequence, base + torch.tensor([index for _, index in moves]))
            for pool in self._pools.values():
                pool.keys[target] = pool.keys[source]
                pool.values[target] = pool.values[source]
        before = sequence.committed // self.page_size
        sequence.committed += len(nodes)
        self.rollback(sequence)
        self._publish(sequence, before)

    def name(self, sequence: SequenceKV, keys: Sequence[bytes]) -> None:
        """Give the keys of the sequence's next pages; full ones are published at once."""
        before = len(sequence.keys)
        sequence.keys += keys
        self._publish(sequence, before)

    def rollback(self, sequence: SequenceKV) -> None:
        """Drop the scratch nodes. Their pages stay with the sequence, for the next ones."""
        sequence.scratch_depths.clear()

    def where(self, sequence: SequenceKV) -> slice | Tensor:
        """Where the sequence's keys are: a slice of pool rows where its pages follow one another,
        else its page table, int64.
        """
        if sequence.contiguous:
            return self.slots(sequence, 0, sequence.length)
        return torch.tensor(sequence.pages[: -(-sequence.length // self.page_size)])

    def slots(self, sequence: SequenceKV, start: int, stop: int) -> slice | Tensor:
        """The pool rows of logical positions ``[start, stop)``; a slice where they are
        contiguous.
        """
        if sequence.contiguous:
            base = sequence.pages[0] * self.page_size if sequence.pages else 0
            return slice(base + start, base + stop)
        return self._index(sequence, torch.arange(start, stop))

    def view_slots(self, view: PageView) -> Tensor:
        """The pool rows of a view, int64 ``(len(pages) * page_size,)``."""
        rows = torch.tensor(view.pages)[:, None] * self.page_size + torch.arange(self.page_size)
        return rows.flatten()

    def write(self, layer: int, slots: slice | Tensor, keys: Tensor, values: Tensor) -> None:
        """Store a layer's ``keys (1, Hkv, n, D)`` and ``values (1, Hkv, n, Dv)`` in these slots."""
        pool = self._pools.get(layer)
        if pool is None:
            pool = _Pool(self._grown(None, keys), self._grown(None, values))
            self._pools[layer] = pool
        headed_keys, headed_values = pool.headed
        headed_keys[:, :, slots] = keys
        headed_values[:, :, slots] = values

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)`` of a layer that has been
        written.
        """
        return self._pools[layer].headed

    def check_integrity(self) -> None:
        """Assert that references are owners, that no page is both free and owned, and that every
        page that is being written has one owner.
        """
        sequences = list(self._sequences.values())
        views = [view.pages for view in self._views.values()]
        self.allocator.check_integrity([*(s.pages for s in sequences), *views])
        for sequence in sequences:
            assert sequence.length <= len(sequence.pages) * self.page_size
            if sequence.scratch_depths:
                for page in sequence.pages[sequence.committed // self.page_size :]:
                    assert self.allocator.refs(page) == 1, f"page {page} has two writers"

    def _publish(self, sequence: SequenceKV, first: int) -> None:
        """Publish the full pages from ``first`` on whose keys are known; those that others
        published before are taken over.
        """
        full = min(sequence.committed // self.page_size, len(sequence.keys))
        for index in range(first, full):
            page = sequence.pages[index]
            sequence.pages[index] = self.allocator.publish(page, sequence.keys[index])
            if sequence.pages[index] != page:
                sequence.contiguous = False
        mark = sequence.mark
        if mark is not None and mark.length <= sequence.committed:
            self.allocator.note(sequence.pages[mark.length // self.page_size], mark.key)
            sequence.mark = None

    def _allocate(self, count: int, after: int | None, room: int) -> list[int]:
        """Take pages, and have every pool hold every page that exists."""
        before = self.allocator.num_pages
        pages = self.allocator.allocate(count, after=after, room=room)
        if self.allocator.num_pages > before:
            for layer, old in self._pools.items():
                pools = zip((old.keys, old.values), old.headed, strict=True)
                self._pools[layer] = _Pool(*(self._grown(pool, like) for pool, like in pools))
        return pages

    def _grown(self, pool: Tensor | None, like: Tensor) -> Tensor:
        """Rows of ``like (1, H, n, D)`` for every page that exists, with the old pool's."""
        slots = self.allocator.num_pages * self.page_size
        grown = like.new_empty((slots, like.shape[1], like.shape[3]))
        if pool is not None:
            grown[: pool.shape[0]] = pool
        return grown

    def _copy_rows(self, source: int, target: int, count: int) -> None:
        """Copy the first rows of one page to another, in every layer."""
        old, new = source * self.page_size, target * self.page_size
        for pool in self._pools.values():
            for rows in (pool.keys, pool.values):
                rows[new : new + count] = rows[old : old + count]

    def _index(self, sequence: SequenceKV, positions: Tensor) -> Tensor:
        table = torch.tensor(sequence.pages)
        return table[positions // self.page_size] * self.page_size + positions % self.page_size


def _note_contiguity(sequence: SequenceKV) -> None:
    first = sequence.pages[0] if sequence.pages else 0
    sequence.contiguous = sequence.pages == list(range(first, first + len(sequence.pages)))
