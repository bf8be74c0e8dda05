"""Prompts from rows: which are asked together, and which are held out.

Knows nothing of where rows come from.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

from specdec.training.prompts import TEMPERATURES, Asked, Asking
from specdec.training.skipped import Skipped, first_of

HELD_OUT_SHARE = 10  # of a user's own prompts, one in ten is kept for measuring


class Rows(ABC):
    """Prompts from rows that are there from the beginning and opened when they are asked.

    All prompts are asked once at each temperature in turn. One prompt in ten, chosen by a checksum,
    is held out. A subclass adds its rows, and calls :meth:`_close` when it has.
    """

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._rows: list[tuple[int, int]] = []  # number of images, and the row
        self._held_out: list[int] = []

    @abstractmethod
    def _open(self, row: int) -> Asked:
        """The prompt of a row.

        Raises:
            ValueError: it cannot be read.
        """

    @abstractmethod
    def _where(self, row: int) -> str:
        """What to call a row."""

    def _add(self, row: int, images: int, mark: bytes) -> None:
        if zlib.crc32(mark) % HELD_OUT_SHARE == 0:
            self._held_out.append(row)
        else:
            self._rows.append((images, row))

    def _close(self, source: str, expected: str) -> None:
        if not self._rows or not self._held_out:
            raise ValueError(
                f"{source}: {len(self._rows)} prompts to learn from and {len(self._held_out)} held "
                f"out; expected {expected}, until there are some of both{first_of(self.skipped)}"
            )
        self._rows.sort(key=lambda row: row[0])

    def batch(self, index: int, size: int) -> Asking | None:
        """See :class:`Prompts`. A batch may be smaller: its prompts have equally many images."""
        chunks = list(self._chunks(size))
        turn, place = divmod(index, len(chunks))
        temperatures = tuple(dict.fromkeys(TEMPERATURES))
        if turn >= len(temperatures):
            return None
        skipped: list[Skipped] = []
        asked = list(self._opened(chunks[place], skipped))
        return Asking(asked, temperatures[turn], skipped)

    def held_out(self, count: int) -> list[Asked]:
        """See :class:`Prompts`."""
        skipped: list[Skipped] = []
        asked = list(islice(self._opened(self._held_out, skipped), count))
        self.skipped += [each for each in skipped if each not in self.skipped]
        return asked

    def kinds(self) -> list[Asked]:
        """See :class:`Prompts`: one for each number of images, the first that can be read."""
        groups = defaultdict[int, list[int]](list)
        for images, row in self._rows:
            groups[images].append(row)
        firsts = (next(self._opened(rows, []), None) for rows in groups.values())
        return [each for each in firsts if each is not None]

    def _opened(self, rows: Sequence[int], skipped: list[Skipped]) -> Iterator[Asked]:
        """Those that can be read; the others are noted in ``skipped``."""
        for row in rows:
            try:
                yield self._open(row)
            except ValueError as error:
                skipped.append(Skipped(self._where(row), str(error)))

    def _chunks(self, size: int) -> Iterator[list[int]]:
        start = 0
        for end in range(1, len(self._rows) + 1):
            full = end - start == size or end == len(self._rows)
            if full or self._rows[end][0] != self._rows[start][0]:
                yield [row for _, row in self._rows[start:end]]
                start = end
