"""Keys and values of many sequences in shared pages.

Each sequence's logical positions lie in its own pages, or in pages that it shares:

    [0, committed)                      keys of tokens that are part of the text
    [committed, committed + scratch)    keys of tree nodes that are still speculation

A sequence may leave the first ``lead`` slots of its first page unused, so that some place in its
text, the end of an image, is the end of a page: everything before it can then be shared. Only pages
that no one else refers to are written: the last page of a forked sequence is copied when it grows.
Full committed pages are published under the sequence's page keys, where a later sequence that
begins with the same keys finds them. Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from specdec.cache.pages import PageAllocator
from specdec.cache.pools import Pools
from specdec.cache.sequence import PageView, SequenceKV, note_contiguity
from specdec.kernels import TreeRequest


class PagedKV:
    """Pools of keys and values, one pair per layer, allocated when a layer first writes.

    Args:
        page_size: tokens a page.
        limit: most pages; ``None`` grows without bound.
        flags_visual: keep note of which keys are those of visual tokens.

    Attributes:
        bytes_copied: so far, of shared pages that somebody had to write on in.
    """

    def __init__(
        self, page_size: int = 16, limit: int | None = None, *, flags_visual: bool = False
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size must be at least 1, got {page_size}")
        self.page_size = page_size
        self.allocator = PageAllocator(limit)
        self.bytes_copied = 0
        self._pools = Pools(page_size, flags_visual=flags_visual)
        self._sequences: dict[int, SequenceKV] = {}
        self._views: dict[int, PageView] = {}

    @property
    def bytes_per_page(self) -> int:
        """What a page takes in all layers that have been written."""
        return self.page_size * self._pools.bytes_per_slot

    @property
    def bytes_taken(self) -> int:
        """What the pages that are held now take in all layers."""
        return self.allocator.num_taken * self.bytes_per_page

    @property
    def visual(self) -> Tensor | None:
        """Which slots hold keys of visual tokens, uint8 ``(slots,)``; ``None`` before the first
        key, or if no note of it is kept.
        """
        return self._pools.visual

    def add(self, room: int = 0, keys: Sequence[bytes] = (), lead: int = 0) -> SequenceKV:
        """A new sequence that is expected to hold ``room`` tokens.

        Pages that are published under the first of ``keys`` are shared and count as committed.
        """
        assert 0 <= lead < self.page_size
        pages = self.allocator.find(keys)
        committed = len(pages) * self.page_size - lead if pages else 0
        sequence = SequenceKV(room, lead, pages, committed, keys=list(keys))
        self._sequences[id(sequence)] = sequence
        note_contiguity(sequence)
        return sequence

    def fork(self, sequence: SequenceKV) -> SequenceKV:
        """A second sequence with the same committed text, in the same pages."""
        assert not sequence.scratch_depths, "a sequence with scratch nodes cannot be forked"
        pages = sequence.pages[: self._pages_for(sequence, sequence.committed)]
        self.allocator.share(pages)
        keys = list(sequence.keys)
        twin = SequenceKV(sequence.room, sequence.lead, pages, sequence.committed, keys=keys)
        twin.left_out, twin.places = sequence.left_out, sequence.places
        note_contiguity(twin)
        self._sequences[id(twin)] = twin
        return twin

    def prune(self, sequence: SequenceKV, indices: Sequence[int]) -> SequenceKV:
        """A second sequence with the committed text in some of the same pages, counted from 0 and
        in order. The last one must be among them if it is not full; the others must be.

        Its tokens keep their places in the text, and windows are counted by these.
        """
        assert not sequence.scratch_depths, "a sequence with scratch nodes cannot be pruned"
        assert sequence.places is None, "a pruned sequence is not pruned again"
        used = self._pages_for(sequence, sequence.committed)
        assert all(0 <= i < used for i in indices)
        assert all(one < other for one, other in pairwise(indices))
        assert used == sequence.full_pages(self.page_size) or used - 1 in indices
        if len(indices) == used:
            return self.fork(sequence)
        first = torch.tensor(indices, dtype=torch.long)[:, None] * self.page_size - sequence.lead
        slots = (first + torch.arange(self.page_size)).flatten()
        places = slots[(slots >= 0) & (slots < sequence.committed)]
        twin = SequenceKV(
            room=sequence.room,
            lead=sequence.lead if 0 in indices else 0,
            pages=[sequence.pages[i] for i in indices],
            committed=len(places),
            left_out=sequence.committed - len(places),
            places=places,
        )
        self.allocator.share(twin.pages)
        note_contiguity(twin)
        self._sequences[id(twin)] = twin
        return twin

    def leave_out(self, sequence: SequenceKV, places: Tensor, whole: int) -> None:
        """The sequence, empty still, is given the tokens at these places, int64 ``(n,)``, of a text
        of ``whole`` tokens first.
        """
        assert sequence.length == 0, "what a sequence leaves out is said before it has keys"
        sequence.left_out, sequence.places = whole - len(places), places

    def free(self, sequence: SequenceKV) -> None:
        """Give the sequence's pages back. Freeing it again does nothing."""
        if self._sequences.pop(id(sequence), None) is not None:
            self.allocator.free(sequence.pages)
            sequence.pages.clear()
            sequence.scratch_depths.clear()
            sequence.keys.clear()
            sequence.committed = 0

    def view(self, sequence: SequenceKV, indices: Sequence[int]) -> PageView:
        """A view of these of the sequence's pages, counted from 0 and in order; each must be full
        and committed.
        """
        assert all(0 <= i < sequence.full_pages(self.page_size) for i in indices)
        assert all(one < other for one, other in pairwise(indices))
        lead = sequence.lead if 0 in indices else 0
        view = PageView(tuple(sequence.pages[i] for i in indices), lead)
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
        missing = self._pages_for(sequence, length) - len(sequence.pages)
        first, used = divmod(sequence.lead + sequence.length, self.page_size)
        begun = used > 0 and first < len(sequence.pages)
        copied = begun and self.allocator.refs(sequence.pages[first]) > 1
        if missing > 0 or copied:
            last = sequence.pages[first if copied else -1] if sequence.pages else None
            room = self._pages_for(sequence, max(sequence.room, length))
            fresh = self._allocate(max(missing, 0) + copied, last, room)
            if copied:
                old, sequence.pages[first] = sequence.pages[first], fresh.pop(0)
                self._pools.copy(old, sequence.pages[first], used)
                self.bytes_copied += used * self._pools.bytes_per_slot
                self.allocator.free([old])
            sequence.pages += fresh
            note_contiguity(sequence)
        sequence.scratch_depths.extend(depths)

    def commit(self, sequence: SequenceKV, nodes: Sequence[int]) -> None:
        """Make these scratch nodes, in this order, the next committed tokens and drop the others.

        Only rows that are not in place yet are copied.
        """
        assert len(nodes) <= len(sequence.scratch_depths)
        moves = [(node, index) for index, node in enumerate(nodes) if node != index]
        if moves:
            assert all(one < other for one, other in pairwise(moves)), "a path goes down the tree"
            source = [self._slot(sequence, sequence.committed + node) for node, _ in moves]
            target = [self._slot(sequence, sequence.committed + index) for _, index in moves]
            self._pools.move(source, target)
        before = sequence.full_pages(self.page_size)
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

    def request(
        self, sequence: SequenceKV, nodes: int, visible: Tensor | None = None
    ) -> TreeRequest:
        """The sequence's last ``nodes`` scratch nodes as queries; see :class:`TreeRequest`."""
        return TreeRequest(
            sequence.pages,
            sequence.committed,
            sequence.scratch_depths,
            nodes,
            visible,
            sequence.lead,
            sequence.contiguous,
        )

    def slots(self, sequence: SequenceKV, start: int, stop: int) -> slice | Tensor:
        """The pool rows of logical positions ``[start, stop)``; a slice where they are
        contiguous.
        """
        if sequence.contiguous:
            base = sequence.pages[0] * self.page_size if sequence.pages else 0
            return slice(base + sequence.lead + start, base + sequence.lead + stop)
        return self._index(sequence, torch.arange(start, stop))

    def view_slots(self, view: PageView) -> Tensor:
        """The pool rows of a view, int64 ``(len(pages) * page_size - lead,)``."""
        rows = torch.tensor(view.pages)[:, None] * self.page_size + torch.arange(self.page_size)
        return rows.flatten()[view.lead :]

    def write(self, layer: int, slots: slice | Tensor, keys: Tensor, values: Tensor) -> None:
        """Store a layer's ``keys (1, Hkv, n, D)`` and ``values (1, Hkv, n, Dv)`` in these slots."""
        headed_keys, headed_values = self.pools(layer, keys, values)
        headed_keys[:, :, slots] = keys
        if values.shape[-1]:
            headed_values[:, :, slots] = values

    def pools(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Views ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)`` of a layer's pools, made for the
        likes of these keys and values if there are none yet.
        """
        return self._pools.of(layer, keys, values)

    def flag_visual(self, sequence: SequenceKV, positions: Sequence[int]) -> None:
        """Note that the keys at these logical positions, written before, are visual tokens'."""
        if self.visual is not None and positions:
            self.visual[self._index(sequence, torch.tensor(positions))] = 1

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)`` of a layer that has been
        written.
        """
        return self._pools.layer(layer)

    def check_integrity(self) -> None:
        """Assert that references are owners, that no page is both free and owned, and that every
        page that is being written has one owner.
        """
        sequences = list(self._sequences.values())
        views = [view.pages for view in self._views.values()]
        self.allocator.check_integrity([*(s.pages for s in sequences), *views])
        for sequence in sequences:
            assert self._pages_for(sequence, sequence.length) <= len(sequence.pages)
            if sequence.scratch_depths:
                for page in sequence.pages[sequence.full_pages(self.page_size) :]:
                    assert self.allocator.refs(page) == 1, f"page {page} has two writers"

    def _publish(self, sequence: SequenceKV, first: int) -> None:
        """Publish the full pages from ``first`` on whose keys are known; those that others
        published before are taken over.
        """
        full = min(sequence.full_pages(self.page_size), len(sequence.keys))
        for index in range(first, full):
            page = sequence.pages[index]
            sequence.pages[index] = self.allocator.publish(page, sequence.keys[index])
            if sequence.pages[index] != page:
                sequence.contiguous = False

    def _pages_for(self, sequence: SequenceKV, length: int) -> int:
        """How many pages that many tokens take."""
        return -(-(sequence.lead + length) // self.page_size) if length else 0

    def _allocate(self, count: int, after: int | None, room: int) -> list[int]:
        """Take pages, and have every pool hold every page that exists. If memory does not suffice
        for new ones, there are none.
        """
        before = self.allocator.num_pages
        pages = self.allocator.allocate(count, after=after, room=room)
        try:
            self._pools.hold(self.allocator.num_pages)
            self._pools.clear(pages)
        except BaseException:
            self.allocator.free(pages)
            self.allocator.cut(before)
            raise
        return pages

    def _slot(self, sequence: SequenceKV, position: int) -> int:
        page, offset = divmod(sequence.lead + position, self.page_size)
        return sequence.pages[page] * self.page_size + offset

    def _index(self, sequence: SequenceKV, positions: Tensor) -> Tensor:
        table, places = torch.tensor(sequence.pages), positions + sequence.lead
        return table[places // self.page_size] * self.page_size + places % self.page_size
