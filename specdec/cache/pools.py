"""The tensors behind the pages: a pool of rows for the keys and one for the values of each layer.

Knows nothing of sequences; which pages are whose is for others to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.kernels import backend


class _Pool(NamedTuple):
    """Rows ``(slots, Hkv, D)`` and ``(slots, Hkv, Dv)``, and views of them in attention's order,
    ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)``.
    """

    keys: Tensor
    values: Tensor
    headed: tuple[Tensor, Tensor]


class Pools:
    """Pools of every layer that has been written, all with the same pages.

    Args:
        page_size: slots a page.
        flags_visual: keep note of which slots hold keys of visual tokens.

    """

    def __init__(self, page_size: int, *, flags_visual: bool) -> None:
        self._visual: Tensor | None = None
        self._page_size = page_size
        self._flags_visual = flags_visual
        self._slots = 0
        self._layers: dict[int, _Pool] = {}
        self._source: list[int] = []  # moves that nobody has looked at the result of yet
        self._target: list[int] = []

    @property
    def visual(self) -> Tensor | None:
        """Notes of which slots hold keys of visual tokens, uint8 ``(slots,)``; ``None`` before the
        first key, or if none are kept.
        """
        self._settle()
        return self._visual

    @property
    def bytes_per_slot(self) -> int:
        """What a slot takes in all layers."""
        return sum(rows.stride(0) * rows.itemsize for rows in self._rows())

    def of(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a layer's pools, made for the likes of ``keys (1, Hkv, n, D)`` and ``values (1,
        Hkv, n, Dv)`` if there are none yet.
        """
        self._settle()
        pool = self._layers.get(layer)
        if pool is None:
            if self._flags_visual and self._visual is None:
                self._visual = torch.zeros(self._slots, dtype=torch.uint8, device=keys.device)
            pool = self._layers[layer] = self._pool(
                _rows_like(keys, self._slots), _rows_like(values, self._slots)
            )
        return pool.headed

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of a layer's pools."""
        self._settle()
        return self._layers[layer].headed

    def hold(self, pages: int) -> None:
        """Have room for at least that many pages; what the pools hold stays in its place.

        If memory does not suffice, pools that have grown already stay so: to let go of an old one
        only when all have grown would take half as much again.
        """
        slots = pages * self._page_size
        if slots <= self._slots:
            return
        self._settle()
        for layer, old in self._layers.items():
            there = len(old.keys)
            if there < slots:
                grown = [_rows_like(like, slots) for like in old.headed]
                for new, rows in zip(grown, (old.keys, old.values), strict=True):
                    new[:there] = rows
                self._layers[layer] = self._pool(*grown)
        if self._visual is not None:
            more = self._visual.new_zeros(slots - len(self._visual))
            self._visual = torch.cat([self._visual, more])
        self._slots = slots

    def clear(self, pages: Sequence[int]) -> None:
        """Forget what is noted of these pages' slots."""
        self._settle()
        if self._visual is not None:
            self._visual.view(-1, self._page_size)[pages] = 0

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first slots of one page to another, in every layer."""
        self._settle()
        old, new = source * self._page_size, target * self._page_size
        for rows in self._rows():
            rows[new : new + count] = rows[old : old + count]

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy slots to others, in every layer; see :func:`specdec.kernels.reference.move`.

        It is done when somebody looks, together with what other sequences move until then: each
        moves within pages that it alone writes.
        """
        self._source += source
        self._target += target

    def _settle(self) -> None:
        if self._source:
            rows = self._rows()
            backend(rows[0].device).move(rows, self._source, self._target)
            self._source, self._target = [], []

    def _rows(self) -> list[Tensor]:
        """Everything that is kept per slot, ``(slots, H, D)`` each."""
        both = [rows for pool in self._layers.values() for rows in (pool.keys, pool.values)]
        rows = [rows for rows in both if rows.shape[-1]]  # a layer may have no values
        return rows if self._visual is None else [*rows, self._visual.view(-1, 1, 1)]

    def _pool(self, keys: Tensor, values: Tensor) -> _Pool:
        return _Pool(keys, values, (keys.transpose(0, 1)[None], values.transpose(0, 1)[None]))


def _rows_like(like: Tensor, slots: int) -> Tensor:
    """Unwritten rows ``(slots, H, D)`` for the likes of ``(1, H, n, D)``."""
    return like.new_empty((slots, like.shape[1], like.shape[3]))
