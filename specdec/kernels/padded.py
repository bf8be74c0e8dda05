"""Which requests of a ragged batch the reference attends at once.

Requests of a group are padded to its most rows and its most keys: a short call takes longer to
begin than to compute. Padding reads nothing that is not the request's own, so whatever other slots
hold stays where it is. Knows no tensors of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specdec.kernels.batch import TreeRequest

# In keys that one row attends to, measured on two cores: what another group costs, and what a key
# costs beside that, for being gathered.
_CALL = 4000
_GATHERED = 4
# Share of a group's own work that may be padding.
_PADDING = 0.25
# Keys from which on reading a contiguous request's in their place saves more than a call costs.
_LONG = 1024


class PaddedGroup(NamedTuple):
    """Requests that are attended at once.

    Attributes:
        members: requests, in order.
        rows: int64 ``(B, T)``: their query rows; of one with fewer the last is repeated.
        slots: int64 ``(B, L)``: the pool rows of their keys by logical position; behind those of a
            shorter one its first is repeated.
        whole: the rows are those of the batch as they come.
    """

    members: list[int]
    rows: Tensor
    slots: Tensor
    whole: bool

    def mask(self, mask: Tensor, groups: int) -> Tensor:
        """Of a mask ``(N, L')`` of all rows what these see, ``(B, 1, groups * T, L)``: a row for
        each of ``groups`` query heads that read the same keys, those of a head together.
        """
        own = mask[:, : self.slots.shape[1]].index_select(0, self.rows.flatten())
        each: Tensor = own.unflatten(0, self.rows.shape)
        return each.repeat(1, groups, 1)[:, None]


class Padded(NamedTuple):
    """A batch by groups.

    Attributes:
        groups: those of one member are attended by themselves.
        order: int64 ``(N,)``: where each query row is among the rows of all groups; ``None`` if
            there it is.
    """

    groups: list[PaddedGroup]
    order: Tensor | None


def pad(
    requests: Sequence[TreeRequest], starts: Sequence[int], page_size: int, device: torch.device
) -> Padded:
    """Requests with a row or more, in groups.

    Args:
        requests: of the batch.
        starts: their first query rows.
        page_size: tokens a page.
        device: where the tensors are wanted.
    """
    groups, found = [], list[int]()
    for members in _grouped(requests):
        own = [requests[member] for member in members]
        most = max(request.nodes for request in own)
        rows = [
            starts[member] + min(node, requests[member].nodes - 1)
            for member in members
            for node in range(most)
        ]
        found += rows
        shaped = torch.tensor(rows).view(len(members), most)
        slots = _slots(own, page_size) if len(members) > 1 else torch.zeros(1, 0)
        whole = rows == list(range(starts[-1]))
        groups.append(PaddedGroup(members, shaped.to(device), slots.to(device), whole))
    order = None
    if found != list(range(len(found))):
        # Of a row that is repeated any will do.
        place = {row: index for index, row in enumerate(found)}
        order = torch.tensor([place[row] for row in range(len(place))]).to(device)
    return Padded(groups, order)


def _grouped(requests: Sequence[TreeRequest]) -> list[list[int]]:
    """Neighbours by rows and keys are put together as long as little of it is padding."""
    live = [index for index, request in enumerate(requests) if request.nodes > 0]
    live.sort(key=lambda index: (requests[index].nodes, requests[index].length), reverse=True)
    groups, apart = list[list[int]](), list[list[int]]()
    work = longest = widest = 0
    for index in live:
        request = requests[index]
        if request.contiguous and request.length >= _LONG:
            apart.append([index])
            continue
        own = (request.nodes + _GATHERED) * request.length
        if groups:
            most = max(longest, request.length)
            padded = (len(groups[-1]) + 1) * (widest + _GATHERED) * most
            if padded - work - own <= _CALL + _PADDING * (work + own):
                groups[-1].append(index)
                work, longest = work + own, most
                continue
        groups.append([index])
        work, longest, widest = own, request.length, request.nodes
    return [sorted(group) for group in groups + apart]


def _slots(requests: Sequence[TreeRequest], page_size: int) -> Tensor:
    """The pool rows of the requests' keys ``(B, L)``, padded by those of their first keys."""
    longest = max(request.length for request in requests)
    most = max(len(request.pages) for request in requests)
    pages = [[*request.pages, *[0] * (most - len(request.pages))] for request in requests]
    leads = torch.tensor([[request.lead] for request in requests])
    places = torch.arange(longest).expand(len(requests), -1)
    behind = places >= torch.tensor([[request.length] for request in requests])
    places = places.masked_fill(behind, 0) + leads
    first = torch.tensor(pages).gather(1, places // page_size) * page_size
    return first + places % page_size
