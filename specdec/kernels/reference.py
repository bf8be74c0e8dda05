"""Torch reference of tree attention over paged keys and values.

Knows tensors only: which rows of the pools a request reads, and which of them each node may see, is
decided by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Segment(NamedTuple):
    """One request's share of a ragged batch.

    Attributes:
        start: first query row, inclusive.
        stop: last query row, exclusive.
        pages: where the pools hold the request's keys, in logical order ``[0, length)``: a slice of
            rows where they follow one another (read as a view), else its page table, int64 (pages
            are gathered).
        length: number of keys.
    """

    start: int
    stop: int
    pages: slice | Tensor
    length: int


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention with grouped query heads.

    out = softmax(softcap · tanh(q·kᵀ·scale / softcap) + mask) · v, with the optional ``sinks`` as
    one more logit per query head whose value is zero.

    Args:
        query: ``(B, Hq, T, D)``.
        key: ``(B, Hkv, L, D)``, Hkv divides Hq.
        value: ``(B, Hkv, L, Dv)``.
        mask: additive and in the dtype of query, or bool (True attends); broadcasts to ``(B, 1, T,
            L)``.
        scale: factor on q·kᵀ.
        softcap: bound on the logits, before the mask.
        sinks: ``(Hq,)``.

    Returns:
        ``(B, Hq, T, Dv)`` in the dtype of query.
    """
    batch, heads, rows, size = query.shape
    kv_heads, groups = key.shape[1], heads // key.shape[1]
    if softcap is None and sinks is None:
        if rows > 1 or mask is not None or batch > 1:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scale, enable_gqa=groups > 1
            )
        # One query that sees everything: its grouped heads are rows of one product.
        grouped = query.reshape(batch, kv_heads, groups, size)
        out = F.scaled_dot_product_attention(grouped, key, value, scale=scale)
        return out.reshape(batch, heads, rows, -1)
    # Grouped heads become a dimension of their own, so that keys are broadcast and never repeated.
    grouped = query.reshape(batch * kv_heads, groups, rows, size)
    keys = key.reshape(batch * kv_heads, 1, *key.shape[2:]).expand(-1, groups, -1, -1)
    values = value.reshape(batch * kv_heads, 1, *value.shape[2:]).expand(-1, groups, -1, -1)
    if mask is not None and mask.shape[0] > 1:
        mask = mask.repeat_interleave(kv_heads, dim=0)
    logits = (grouped @ keys.transpose(-1, -2)) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if sinks is not None:
        sink = sinks.view(1, kv_heads, groups, 1, 1).expand(batch, -1, -1, rows, 1)
        sink = sink.reshape(batch * kv_heads, groups, rows, 1).to(logits.dtype)
        logits = torch.cat([logits, sink], dim=-1)
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
    return (weights[..., : key.shape[2]] @ values).reshape(batch, heads, rows, -1)


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: Sequence[Segment],
    mask: Tensor | None,
    *,
    page_size: int,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of every tree node of a ragged batch over its own request's keys.

    Args:
        query: ``(1, Hq, N, D)``, the nodes of all requests, packed.
        keys: pool ``(1, Hkv, slots, D)`` of one layer.
        values: pool ``(1, Hkv, slots, Dv)``.
        segments: one per request; together they cover the N rows.
        mask: additive, ``(N, L)`` in the dtype of query with L ≥ every segment's length: 0 where
            node i may see logical position j of its own request, else -inf. ``None`` lets every
            node see everything.
        page_size: rows a page.
        scale: factor on q·kᵀ.
        softcap: bound on the logits, before the mask.
        sinks: ``(Hq,)``.

    Returns:
        ``(1, Hq, N, Dv)``.
    """
    out = []
    alone = len(segments) == 1
    for start, stop, pages, length in segments:
        if isinstance(pages, slice):
            key, value = keys[:, :, pages], values[:, :, pages]
        else:
            key, value = (_gather(pool, pages, length, page_size) for pool in (keys, values))
        out.append(
            dense_attention(
                query if alone else query[:, :, start:stop],
                key,
                value,
                None if mask is None else mask[None, None, start:stop, :length],
                scale=scale,
                softcap=softcap,
                sinks=sinks,
            )
        )
    return out[0] if alone else torch.cat(out, dim=2)


def _gather(pool: Tensor, pages: Tensor, length: int, page_size: int) -> Tensor:
    """The rows ``(1, H, length, D)`` of a pool ``(1, H, slots, D)``, copied page by page: in memory
    each is one piece, heads included.
    """
    paged: Tensor = pool[0].transpose(0, 1).unflatten(0, (-1, page_size))
    rows: Tensor = paged.index_select(0, pages).flatten(0, 1)[:length]
    return rows.transpose(0, 1)[None]
