"""Torch reference of everything the Triton kernels do, with the same signatures.

Knows tensors only. It is also the path that runs on CPUs, so where a request's pages follow one
another they are read as a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.batch import Beside, Segment, TreeBatch


class Attended(NamedTuple):
    """``out``: ``(1, Hq, N, Dv)`` in the dtype of the queries. ``visual_mass``: float32 ``(N,
    Hq)``, how much of each row's softmax lies on keys of visual tokens; ``None`` if not wanted.
    """

    out: Tensor
    visual_mass: Tensor | None


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
    weights = attention_weights(query, key, mask, scale, softcap, sinks)
    return _weighted(weights, value)


def attention_weights(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Softmax weights of the keys, float32 ``(B, Hkv, Hq / Hkv, T, L)``; arguments as in
    :func:`dense_attention`.
    """
    batch, heads, rows, size = query.shape
    kv_heads, groups = key.shape[1], heads // key.shape[1]
    # Grouped heads are rows of one product, so that keys are never repeated.
    grouped = query.reshape(batch, kv_heads, groups * rows, size)
    logits = (grouped @ key.transpose(-1, -2)) * scale
    logits = logits.unflatten(2, (groups, rows))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        mask = mask.unsqueeze(2)
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    if sinks is not None:
        sink = sinks.view(1, kv_heads, groups, 1, 1).expand(batch, -1, -1, rows, 1)
        logits = torch.cat([logits, sink.to(logits.dtype)], dim=-1)
    weights: Tensor = logits.softmax(dim=-1, dtype=torch.float32)
    return weights[..., : key.shape[2]]


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """``(B, Hq, T, Dv)`` from weights ``(B, Hkv, G, T, L)`` and values ``(B, Hkv, L, Dv)``."""
    out: Tensor = weights.flatten(2, 3).to(value.dtype) @ value
    headed: Tensor = out.unflatten(2, weights.shape[2:4])
    return headed.flatten(1, 2)


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    *,
    scale: float,
    first: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    beside: Beside | None = None,
) -> Attended:
    """Attention of every tree node of a ragged batch over its own request's keys.

    Args:
        query: ``(1, Hq, N, D)``, the nodes of all requests, packed.
        keys: pool ``(1, Hkv, slots, D)`` of one layer.
        values: pool ``(1, Hkv, slots, Dv)``.
        batch: whose rows read what; with ``batch.visual`` the visual mass is computed as well.
        scale: factor on q·kᵀ.
        first: integers, N of them: the logical position from which on a row sees anything; ``None``
            is 0.
        softcap: bound on the logits, before the mask.
        sinks: ``(Hq,)``, logits that take weight and give nothing.
        beside: keys that the rows see as well, whatever ``first`` says. No visual mass is computed
            then.
    """
    mask = batch.mask(first, query.dtype, query.device)
    options = (scale, softcap, sinks)
    if beside is not None:
        return Attended(_joined(query, keys, values, batch, mask, beside, *options), None)
    if len(batch.segments) == 1:  # worth its own lines: it runs once a layer
        own = None if mask is None else mask[None, None]
        return _attend(query, keys, values, batch, batch.segments[0], own, *options)
    parts = []
    for segment in batch.segments:
        rows = slice(segment.start, segment.stop)
        if segment.start < segment.stop:
            own = None if mask is None else mask[None, None, rows, : segment.length]
            parts.append(_attend(query[:, :, rows], keys, values, batch, segment, own, *options))
    out = torch.cat([part.out for part in parts], dim=2)
    mass = [part.visual_mass for part in parts if part.visual_mass is not None]
    return Attended(out, torch.cat(mass) if mass else None)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    segment: Segment,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Attended:
    """One request's rows ``query (1, Hq, n, D)`` under its mask ``(1, 1, n, length)``."""
    _, _, pages, lead, length = segment
    kept = slice(lead, lead + length)
    key, value = (_rows(pool, segment, batch.page_size) for pool in (keys, values))
    if batch.visual is None:
        out = dense_attention(query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks)
        return Attended(out, None)
    if isinstance(pages, slice):
        flags = batch.visual[pages]
    else:
        paged: Tensor = batch.visual.unflatten(0, (-1, batch.page_size))
        flags = paged[pages.to(paged.device)].flatten()[kept]
    weights = attention_weights(query, key, mask, scale, softcap, sinks)
    mass = (weights @ flags.float())[0].flatten(0, 1).T
    return Attended(_weighted(weights, value), mass)


def _joined(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    mask: Tensor | None,
    beside: Beside,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """As :func:`tree_attention`, over a request's own keys and those beside them."""
    parts = []
    for own, other in zip(batch.segments, beside.batch.segments, strict=True):
        if own.start == own.stop:
            continue
        rows, seen = query, mask
        if len(batch.segments) > 1:
            rows = query[:, :, own.start : own.stop]
            seen = None if mask is None else mask[own.start : own.stop, : own.length]
        key = _rows(keys, own, batch.page_size)
        value = _rows(values, own, batch.page_size)
        if other.length > 0:
            # Joining widens what is narrower on the way.
            key = torch.cat([_rows(beside.keys, other, beside.batch.page_size), key], 2)
            value = torch.cat([_rows(beside.values, other, beside.batch.page_size), value], 2)
            if key.dtype != query.dtype:
                key, value = key.to(query.dtype), value.to(query.dtype)
            seen = None if seen is None else F.pad(seen, (other.length, 0))
        seen = None if seen is None else seen[None, None]
        parts.append(
            dense_attention(rows, key, value, seen, scale=scale, softcap=softcap, sinks=sinks)
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _rows(pool: Tensor, segment: Segment, page_size: int) -> Tensor:
    """A request's keys or values ``(1, H, length, D)``; a view where they are contiguous."""
    if isinstance(segment.pages, slice):
        return pool.narrow(2, segment.pages.start, segment.length)
    kept = slice(segment.lead, segment.lead + segment.length)
    return _gather(pool, segment.pages, page_size)[:, :, kept]


def _gather(pool: Tensor, pages: Tensor, page_size: int) -> Tensor:
    """The rows ``(1, H, n, D)`` of these pages of a pool ``(1, H, slots, D)``, copied page by page:
    in memory each is one piece, heads included.
    """
    paged: Tensor = pool[0].transpose(0, 1).unflatten(0, (-1, page_size))
    rows: Tensor = paged.index_select(0, pages.to(pool.device)).flatten(0, 1)
    return rows.transpose(0, 1)[None]


def store(
    keys: Tensor, values: Tensor, batch: TreeBatch, new_keys: Tensor, new_values: Tensor
) -> None:
    """Write the nodes' keys ``(1, Hkv, N, D)`` and values ``(1, Hkv, N, Dv)`` into one layer's
    pools, ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)``.
    """
    targets = batch.targets
    if len(targets) == 1:  # worth its own lines: it runs once a layer
        keys[:, :, targets[0]] = new_keys
        values[:, :, targets[0]] = new_values
        return
    for (start, stop, *_), target in zip(batch.segments, targets, strict=True):
        keys[:, :, target] = new_keys[:, :, start:stop]
        values[:, :, target] = new_values[:, :, start:stop]


def move(pools: Sequence[Tensor], source: Sequence[int], target: Sequence[int]) -> None:
    """Copy rows of every pool ``(slots, H, D)``: ``source[i]`` to ``target[i]``, as if all were
    read before any is written.
    """
    read = torch.tensor(source)
    written = torch.tensor(target)
    for pool in pools:
        pool[written] = pool[read]
