"""Copies into and within the pools, in Triton; see :mod:`specdec.kernels.reference` for what they
do.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdec.kernels.batch import TreeBatch

BLOCK = 1024
_WORDS = {2: tl.int16, 4: tl.int32, 8: tl.int64, 1: tl.int8}


@triton.jit
def store_kernel(
    new_keys,
    new_values,
    keys,
    values,
    slots,
    new_key_row,
    new_key_head,
    new_value_row,
    new_value_head,
    key_row,
    key_head,
    value_row,
    value_head,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: one node's key and value under one head."""
    node = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + node)
    at = tl.arange(0, BLOCK_D)
    key = tl.load(new_keys + node * new_key_row + head * new_key_head + at, mask=at < D)
    tl.store(keys + slot * key_row + head * key_head + at, key, mask=at < D)
    value = tl.load(new_values + node * new_value_row + head * new_value_head + at, mask=at < DV)
    tl.store(values + slot * value_row + head * value_head + at, value, mask=at < DV)


@triton.jit(do_not_specialize=["moves"])
def move_kernel(table, rows, moves, WORD: tl.constexpr, BLOCK: tl.constexpr):
    """One program: a block of one pool's rows, all moves after one another.

    ``table (pools, 2)``: address and words a row of each pool. ``rows (2, moves)``: where from and
    where to.
    """
    pool = tl.program_id(0)
    words = tl.load(table + pool * 2 + 1)
    base = tl.load(table + pool * 2).to(tl.pointer_type(WORD))
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    for move in range(moves):
        source = tl.load(rows + move) * words
        target = tl.load(rows + moves + move) * words
        tl.store(base + target + at, tl.load(base + source + at, mask=at < words), mask=at < words)


def store(
    keys: Tensor, values: Tensor, batch: TreeBatch, new_keys: Tensor, new_values: Tensor
) -> None:
    """One launch for keys and values of all nodes.

    Raises:
        ValueError: shapes or dtypes that do not fit.
    """
    _, kv_heads, nodes, dim = new_keys.shape
    for name, pool, new in (("keys", keys, new_keys), ("values", values, new_values)):
        if (pool.shape[1], pool.shape[3], pool.dtype) != (new.shape[1], new.shape[3], new.dtype):
            raise ValueError(
                f"{name} {tuple(new.shape)} of {new.dtype} do not fit into pools "
                f"{tuple(pool.shape)} of {pool.dtype}"
            )
        if new.shape[2] != batch.nodes or new.stride(3) != 1 or pool.stride(3) != 1:
            raise ValueError(f"{name} must be (1, Hkv, {batch.nodes}, D), D contiguous")
    value_dim = new_values.shape[3]
    store_kernel[(nodes, kv_heads)](
        new_keys,
        new_values,
        keys,
        values,
        batch.slots(new_keys.device),
        new_keys.stride(2),
        new_keys.stride(1),
        new_values.stride(2),
        new_values.stride(1),
        keys.stride(2),
        keys.stride(1),
        values.stride(2),
        values.stride(1),
        D=dim,
        DV=value_dim,
        BLOCK_D=triton.next_power_of_2(max(dim, value_dim)),
    )


def move(pools: Sequence[Tensor], source: Sequence[int], target: Sequence[int]) -> None:
    """One launch for all pools. Moves are done in their order, so none may read a row that one
    before it has written: true of a path in a tree, whose nodes only move towards its root.
    """
    sizes = [pool[0].numel() * pool.itemsize for pool in pools]
    word = gcd(8, *sizes)
    table = torch.tensor([[p.data_ptr(), s // word] for p, s in zip(pools, sizes, strict=True)])
    rows = torch.tensor([list(source), list(target)])
    device = pools[0].device
    grid = (len(pools), triton.cdiv(max(sizes) // word, BLOCK))
    move_kernel[grid](
        table.to(device, non_blocking=True),
        rows.to(device, non_blocking=True),
        len(source),
        WORD=_WORDS[word],
        BLOCK=BLOCK,
    )
