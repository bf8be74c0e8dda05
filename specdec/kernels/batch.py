"""What a ragged batch of tree nodes reads, in the forms that the two backends need.

A request's keys lie in its pages, by logical position:

    [0, committed)                      of the text, visible to all its nodes
    [committed, committed + scratch)    of tree nodes; a node sees its ancestors and itself

The first ``lead`` slots of its first page hold nothing. Its queries are its last ``nodes`` scratch
nodes. Layers that see only the end of the text (sliding windows, chunks) say so per node by
``first``: the logical position from which on it sees anything. A scratch node's logical position is
``committed + depth``. Knows tensors only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.kernels.packed import PackedBatch, pack
from specdec.kernels.padded import Padded, PaddedGroup, pad
from specdec.kernels.prefix import PrefixGroup, prefix_groups


@dataclass(frozen=True, slots=True, eq=False)
class TreeRequest:
    """One request of a batch.

    Attributes:
        pages: its page table.
        committed: tokens of text.
        depths: of each scratch node, behind the last committed token.
        nodes: how many of the last scratch nodes are queries.
        visible: bool ``(nodes, scratch)`` on the CPU: which scratch nodes each query sees, itself
            included; ``None`` is all up to itself, as in a chain.
        lead: slots of the first page that hold nothing.
        contiguous: the pages follow one another.
    """

    pages: Sequence[int]
    committed: int
    depths: Sequence[int]
    nodes: int
    visible: Tensor | None = None
    lead: int = 0
    contiguous: bool = False

    @property
    def length(self) -> int:
        """Keys, scratch included."""
        return self.committed + len(self.depths)

    def slot(self, position: int, page_size: int) -> int:
        """The pool row of a logical position."""
        page, offset = divmod(self.lead + position, page_size)
        return self.pages[page] * page_size + offset


class Beside(NamedTuple):
    """Keys that every row of a request sees besides its own, in other pools, of any dtype.

    Attributes:
        keys: pool ``(1, Hkv, slots, D)``.
        values: pool ``(1, Hkv, slots, Dv)``.
        batch: its requests, as many and with as many rows as those of the batch that it lies
            beside, have no scratch nodes: all their keys are committed.
    """

    keys: Tensor
    values: Tensor
    batch: TreeBatch


class Segment(NamedTuple):
    """A request as the reference reads it.

    Attributes:
        start: first query row, inclusive.
        stop: last query row, exclusive.
        pages: where the pools hold the keys, in logical order: a slice of rows where they follow
            one another (read as a view), else the page table, int64 (pages are gathered).
        lead: slots of the first page of a table that hold nothing.
        length: number of keys.
    """

    start: int
    stop: int
    pages: slice | Tensor
    lead: int
    length: int


@dataclass(eq=False)
class TreeBatch:
    """A packed batch; what is derived from it is computed once, for all layers.

    Attributes:
        requests: in the order of their rows.
        page_size: tokens a page.
        visual: uint8 ``(slots,)``: which pool rows are keys of visual tokens; ``None``: visual mass
            is not wanted.
    """

    requests: Sequence[TreeRequest]
    page_size: int
    visual: Tensor | None = None
    _masks: dict[tuple[int | None, torch.dtype], Tensor | None] = field(default_factory=dict)
    _firsts: list[Tensor] = field(default_factory=list)  # alive, so that their ids stay theirs
    _slots: dict[torch.device, Tensor] = field(default_factory=dict)
    _packed: dict[tuple[torch.device, int], PackedBatch] = field(default_factory=dict)
    _padded: dict[torch.device, Padded] = field(default_factory=dict)
    _grouped: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)  # masks

    def __post_init__(self) -> None:
        for request in self.requests:
            # Rows that have no keys here are beside others that do.
            assert not request.depths or 0 <= request.nodes <= len(request.depths)
            assert request.lead + request.length <= len(request.pages) * self.page_size

    @cached_property
    def starts(self) -> list[int]:
        """First row of each request, and the number of rows."""
        return list(accumulate((request.nodes for request in self.requests), initial=0))

    @property
    def nodes(self) -> int:
        """Query rows in all."""
        return self.starts[-1]

    @cached_property
    def groups(self) -> list[PrefixGroup]:
        """Requests that begin with the same full pages of text."""
        full = [(r.lead + r.committed) // self.page_size for r in self.requests]
        texts = [[*r.pages[:count]] for r, count in zip(self.requests, full, strict=True)]
        return prefix_groups(texts, self.page_size)

    @property
    def widest(self) -> int:
        """Most rows that read the same keys."""
        own = [request.nodes for request in self.requests]
        return max(own + [sum(own[r] for r in group.members) for group in self.groups])

    @cached_property
    def segments(self) -> list[Segment]:
        """The requests as the reference reads them."""
        segments = []
        for request, start in zip(self.requests, self.starts, strict=False):
            where: slice | Tensor
            if request.length == 0:
                where = slice(0, 0)
            elif request.contiguous:
                base = request.slot(0, self.page_size)
                where = slice(base, base + request.length)
            else:
                used = -(-(request.lead + request.length) // self.page_size)
                where = torch.tensor(request.pages[:used])
            stop = start + request.nodes
            segments.append(Segment(start, stop, where, request.lead, request.length))
        return segments

    def slots(self, device: torch.device) -> Tensor:
        """The pool rows of the queries' own keys, int64 ``(N,)``."""
        if device not in self._slots:
            slots = [
                request.slot(place, self.page_size)
                for request in self.requests
                for place in range(request.length - request.nodes, request.length)
            ]
            self._slots[device] = torch.tensor(slots).to(device, non_blocking=True)
        return self._slots[device]

    def packed(self, device: torch.device, tile_rows: int) -> PackedBatch:
        """The batch as the kernel reads it; see :func:`specdec.kernels.packed.pack`."""
        if (device, tile_rows) not in self._packed:
            self._packed[device, tile_rows] = pack(
                self.requests, self.groups, self.page_size, tile_rows, device
            )
        return self._packed[device, tile_rows]

    def padded(self, device: torch.device) -> Padded:
        """The batch as the reference reads it; see :func:`specdec.kernels.padded.pad`."""
        if device not in self._padded:
            self._padded[device] = pad(self.requests, self.starts, self.page_size, device)
        return self._padded[device]

    def padded_mask(self, mask: Tensor, group: PaddedGroup, heads: int) -> Tensor:
        """Of a mask that :meth:`mask` gave what a group sees; see :meth:`PaddedGroup.mask`."""
        name = (id(mask), id(group), heads)
        if name not in self._grouped:
            self._grouped[name] = group.mask(mask, heads)
        return self._grouped[name]

    def target(self, device: torch.device) -> slice | Tensor:
        """As :meth:`slots`; a slice where they follow one another."""
        return self.slots(device) if self._run is None else self._run

    @cached_property
    def _run(self) -> slice | None:
        if len(self.requests) > 1 or not self.requests[0].contiguous:
            return None
        request = self.requests[0]
        stop = request.slot(0, self.page_size) + request.length
        return slice(stop - request.nodes, stop)

    def mask(self, first: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What each row sees of its own request's keys, additive ``(N, L)`` with L the longest: 0,
        else -inf; ``None`` if every row sees everything.
        """
        name = (None if first is None else id(first), dtype)
        if name not in self._masks:
            if first is not None:
                self._firsts.append(first)
            mask = self._mask(first, dtype)
            self._masks[name] = None if mask is None else mask.to(device)
        return self._masks[name]

    def _mask(self, first: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        live = [request for request in self.requests if request.nodes > 0]
        if first is None and self.nodes == 1 and live[0].visible is None:
            return None
        longest = max(request.length for request in self.requests)
        behind = [r.length - r.nodes + node for r in live for node in range(1, r.nodes + 1)]
        hidden = torch.arange(longest) >= torch.tensor(behind)[:, None]
        for request, start in zip(self.requests, self.starts, strict=False):
            if request.visible is not None:
                rows = hidden[start : start + request.nodes]
                rows[:, request.committed : request.length] = ~request.visible
        if first is not None:
            hidden |= self._positions(longest) < first.reshape(-1, 1).cpu()
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)

    def _positions(self, longest: int) -> Tensor:
        """Logical positions ``(N, longest)`` of each row's own request's keys."""
        rows = []
        for request in self.requests:
            positions = torch.arange(longest)
            scratch = torch.tensor(request.depths) + request.committed
            positions[request.committed : request.length] = scratch
            rows.append(positions.expand(request.nodes, longest))
        return torch.cat(rows)
