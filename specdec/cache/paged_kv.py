"""Keys and values of many sequences in shared pages.

Each sequence's logical positions lie in its own pages:

    [0, committed)                      keys of tokens that are part of the text
    [committed, committed + scratch)    keys of tree nodes that are still speculation

Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specdec.cache.pages import PageAllocator


@dataclass(slots=True, eq=False)
class SequenceKV:
    """One sequence's page table. Change it through :class:`PagedKV` only.

    Attributes:
        room: tokens that the sequence is expected to hold in all.
        pages: its pages, in logical order.
        committed: tokens whose keys are part of the text.
        scratch_depths: for each scratch node its depth behind the last committed token: a node's
            logical position is ``committed + depth``.
        contiguous: the pages follow one another.
    """

    room: int = 0
    pages: list[int] = field(default_factory=list)
    committed: int = 0
    scratch_depths: list[int] = field(default_factory=list)
    contiguous: bool = True

    @property
    def length(self) -> int:
        """Committed tokens and scratch nodes."""
        return self.committed + len(self.scratch_depths)


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

    def add(self, room: int = 0) -> SequenceKV:
        """A new, empty sequence that is expected to hold ``room`` tokens."""
        sequence = SequenceKV(room=room)
        self._sequences[id(sequence)] = sequence
        return sequence

    def free(self, sequence: SequenceKV) -> None:
        """Give the sequence's pages back. Freeing it again does nothing."""
        if self._sequences.pop(id(sequence), None) is not None:
            self.allocator.free(sequence.pages)
            sequence.pages.clear()
            sequence.scratch_depths.clear()
            sequence.committed = 0

    def extend(self, sequence: SequenceKV, depths: Sequence[int]) -> None:
        """Add scratch nodes at these depths, taking pages as needed.

        Raises:
            OutOfPages: the limit is reached; the sequence is as it was.
        """
        length = sequence.length + len(depths)
        missing = -(-length // self.page_size) - len(sequence.pages)
        if missing > 0:
            last = sequence.pages[-1] if sequence.pages else None
            room = -(-max(sequence.room, length) // self.page_size)
            before = self.allocator.num_pages
            sequence.pages += self.allocator.allocate(missing, after=last, room=room)
            if self.allocator.num_pages > before:
                for layer, old in self._pools.items():
                    pools = zip((old.keys, old.values), old.headed, strict=True)
                    self._pools[layer] = _Pool(*(self._grown(pool, like) for pool, like in pools))
            first = sequence.pages[0]
            sequence.contiguous = sequence.pages == list(range(first, first + len(sequence.pages)))
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
        sequence.committed += len(nodes)
        self.rollback(sequence)

    def rollback(self, sequence: SequenceKV) -> None:
        """Drop the scratch nodes. Their pages stay with the sequence, for the next ones."""
        sequence.scratch_depths.clear()

    def slots(self, sequence: SequenceKV, start: int, stop: int) -> slice | Tensor:
        """The pool rows of logical positions ``[start, stop)``; a slice where they are
        contiguous.
        """
        if sequence.contiguous:
            base = sequence.pages[0] * self.page_size if sequence.pages else 0
            return slice(base + start, base + stop)
        return self._index(sequence, torch.arange(start, stop))

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
        """Assert that every page is free or owned by one sequence, which has just enough of
        them.
        """
        self.allocator.check_integrity(s.pages for s in self._sequences.values())
        for sequence in self._sequences.values():
            assert sequence.length <= len(sequence.pages) * self.page_size

    def _grown(self, pool: Tensor | None, like: Tensor) -> Tensor:
        """Rows of ``like (1, H, n, D)`` for every page that exists, with the old pool's."""
        slots = self.allocator.num_pages * self.page_size
        grown = like.new_empty((slots, like.shape[1], like.shape[3]))
        if pool is not None:
            grown[: pool.shape[0]] = pool
        return grown

    def _index(self, sequence: SequenceKV, positions: Tensor) -> Tensor:
        table = torch.tensor(sequence.pages)
        return table[positions // self.page_size] * self.page_size + positions % self.page_size
