"""A batch as the Triton kernel reads it: a few tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from specdec.kernels.prefix import PrefixGroup

if TYPE_CHECKING:
    from specdec.kernels.batch import TreeRequest

WORD = 32  # bits of an ancestor word
MAX_SCRATCH = 256  # nodes of a request


class PackedBatch(NamedTuple):
    """A batch on the device, all int32. Nothing in it is read back by the host.

    Attributes:
        tiles: ``(tiles, 8)``: work items of the kernel, each some rows against some keys: request,
            first entry in ``rows``, number of rows, first key, end of keys, scratch keys behind
            them, unused slots of the request's first page, 1 if the keys are the end of the
            request's (it may have no scratch) and 0 if they are a prefix of several.
        rows: query rows of the tiles.
        tables: ``(R, P)``, page tables.
        ancestors: ``(N, W)``: bit ``t`` of word ``w``: the row sees scratch node ``32·w + t``.
        depths: ``(R, 32·W)``, of the scratch nodes.
        grouped: some tiles are prefixes of several requests.
        longest: most keys that a tile reads, for choosing how often to split them.
    """

    tiles: Tensor
    rows: Tensor
    tables: Tensor
    ancestors: Tensor
    depths: Tensor
    grouped: bool
    longest: int


def pack(
    requests: Sequence[TreeRequest],
    groups: Sequence[PrefixGroup],
    page_size: int,
    tile_rows: int,
    device: torch.device,
) -> PackedBatch:
    """The requests, those of a group reading what they share together, in tiles of at most
    ``tile_rows`` rows.

    Raises:
        ValueError: a tree has more scratch nodes than the kernel's ancestor masks hold.
    """
    scratch = max(len(request.depths) for request in requests)
    if scratch > MAX_SCRATCH:
        raise ValueError(
            f"a tree has {scratch} nodes; the Triton kernel takes at most {MAX_SCRATCH}"
        )
    words = max(1, -(-scratch // WORD))
    width = max(len(request.pages) for request in requests)
    tiles, rows = _tiles(requests, groups, page_size, tile_rows)
    parts = [
        torch.tensor(tiles, dtype=torch.int32),
        torch.tensor(rows, dtype=torch.int32),
        torch.tensor([_padded(r.pages, width) for r in requests], dtype=torch.int32),
        torch.cat([_words(request, words) for request in requests]),
        torch.tensor([_padded(r.depths, words * WORD) for r in requests], dtype=torch.int32),
    ]
    # One copy to the device for all of them.
    moved = torch.cat([part.flatten() for part in parts]).to(device, non_blocking=True)
    flat = moved.split([part.numel() for part in parts])
    on_device = [piece.view(part.shape) for piece, part in zip(flat, parts, strict=True)]
    longest = max(end - begin for _, _, _, begin, end, *_ in tiles)
    tiles_there, rows_there, tables, ancestors, depths = on_device
    return PackedBatch(tiles_there, rows_there, tables, ancestors, depths, bool(groups), longest)


def _tiles(
    requests: Sequence[TreeRequest],
    groups: Sequence[PrefixGroup],
    page_size: int,
    tile_rows: int,
) -> tuple[list[list[int]], list[int]]:
    """Tiles and their rows: first those of shared prefixes, then what is each request's own."""
    starts = accumulate((request.nodes for request in requests), initial=0)
    rows_of = [range(start, stop) for start, stop in pairwise(starts)]
    tiles: list[list[int]] = []
    rows: list[int] = []

    def cover(own: Sequence[int], request: int, begin: int, end: int, last: bool) -> None:
        scratch = len(requests[request].depths) if last else 0
        for start in range(0, len(own), tile_rows):
            part = own[start : start + tile_rows]
            lead = requests[request].lead
            tiles.append([request, len(rows), len(part), begin, end, scratch, lead, int(last)])
            rows.extend(part)

    shared = [0] * len(requests)
    for members, pages in groups:
        together = [row for member in members for row in rows_of[member]]
        lead = requests[members[0]].lead
        assert all(requests[member].lead == lead for member in members)  # of the same first page
        end = pages * page_size - lead
        cover(together, members[0], 0, end, last=False)
        for member in members:
            shared[member] = end
    for index, request in enumerate(requests):
        cover(rows_of[index], index, shared[index], request.committed, last=True)
    return tiles, rows


def _padded(numbers: Sequence[int], length: int) -> list[int]:
    return [*numbers, *[0] * (length - len(numbers))]


def _words(request: TreeRequest, words: int) -> Tensor:
    """What each node sees, as bits: int32 ``(nodes, words)``."""
    scratch = len(request.depths)
    seen = torch.zeros(request.nodes, words * WORD, dtype=torch.bool)
    if request.visible is None:
        seen[:, :scratch] = True
        seen = seen.tril_(scratch - request.nodes)
    else:
        seen[:, :scratch] = request.visible
    bits = seen.view(-1, words, WORD).long() << torch.arange(WORD)
    unsigned = bits.sum(-1)
    return torch.where(unsigned >= 1 << 31, unsigned - (1 << 32), unsigned).to(torch.int32)
