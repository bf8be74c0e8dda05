"""Which pages a text is in, and where in them. Knows no tensors of keys and owns no pages.

Logical positions count what a sequence holds; *places* count the whole text, of which it may leave
some out. Without that the two are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class SequenceKV:
    """One sequence's page table. Change it through :class:`PagedKV` only.

    Attributes:
        room: tokens that the sequence is expected to hold in all.
        lead: slots of the first page that hold nothing.
        pages: its pages, in logical order.
        committed: tokens whose keys are part of the text.
        scratch_depths: for each scratch node its depth behind the last committed token: a node's
            logical position is ``committed + depth``.
        keys: what its full pages are published under, in order (see ``pages.page_key``); those of
            pages that are not full yet may be there already.
        contiguous: the pages follow one another.
        left_out: tokens of the text whose keys it does without, all of them committed.
        places: int64 ``(committed,)`` on the CPU: what places in the text the committed tokens have
            that were there when some were left out; ``None`` if none were.
        beside: what the model keeps of the text besides keys; not looked at here, nor forked.
    """

    room: int = 0
    lead: int = 0
    pages: list[int] = field(default_factory=list)
    committed: int = 0
    scratch_depths: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    contiguous: bool = True
    left_out: int = 0
    places: Tensor | None = None
    beside: object | None = None

    @property
    def length(self) -> int:
        """Committed tokens and scratch nodes."""
        return self.committed + len(self.scratch_depths)

    @property
    def end(self) -> int:
        """Committed tokens and those left out: the place in the text of what comes next."""
        return self.committed + self.left_out

    def index(self, places: Tensor) -> Tensor:
        """How many committed tokens lie before each of these places in the text; places behind all
        of them count on.
        """
        if self.places is None:
            return places
        before = torch.searchsorted(self.places.to(places.device), places)
        whole = len(self.places) + self.left_out  # when some were left out
        return torch.where(places < whole, before, places - self.left_out)

    def committed_places(self) -> Tensor:
        """The places of all committed tokens in the text, int64 ``(committed,)`` on the CPU."""
        known = torch.zeros(0, dtype=torch.long) if self.places is None else self.places
        return torch.cat([known, torch.arange(len(known) + self.left_out, self.end)])

    def full_pages(self, page_size: int) -> int:
        """How many pages the committed text fills."""
        return (self.lead + self.committed) // page_size


@dataclass(frozen=True, slots=True, eq=False)
class PageView:
    """Some full pages of a sequence, in order, to be read only; the first ``lead`` slots hold
    nothing. They stay as they are, whatever becomes of the sequence, until the view is closed with
    :meth:`PagedKV.close`.
    """

    pages: tuple[int, ...]
    lead: int


def note_contiguity(sequence: SequenceKV) -> None:
    """Say whether the sequence's pages follow one another, whenever they have changed."""
    first = sequence.pages[0] if sequence.pages else 0
    sequence.contiguous = sequence.pages == list(range(first, first + len(sequence.pages)))
