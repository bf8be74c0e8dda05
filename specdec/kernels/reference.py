"""Torch reference of everything the Triton kernels do, with the same signatures.

Knows tensors only. It is also the path that runs on CPUs, so where a request's pages follow one
another they are read as a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels.batch import Beside, Segment, TreeBatch
from specdec.kernels.dense import attention_weights, dense_attention, weighted
from specdec.kernels.padded import PaddedGroup


class Attended(NamedTuple):
    """``out``: ``(1, Hq, N, Dv)`` in the dtype of the queries. ``visual_mass``: float32 ``(N,
    Hq)``, how much of each row's softmax lies on keys of visual tokens; ``None`` if not wanted.
    """

    out: Tensor
    visual_mass: Tensor | None


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
    padded = batch.padded(query.device)
    outs, masses = list[Tensor](), list[Tensor]()
    for group in padded.groups:
        if len(group.members) > 1:
            part = _attend_padded(query, keys, values, batch, group, mask, *options)
        else:
            segment = batch.segments[group.members[0]]
            rows = slice(segment.start, segment.stop)
            own = None if mask is None else mask[None, None, rows, : segment.length]
            part = _attend(query[:, :, rows], keys, values, batch, segment, own, *options)
        outs.append(part.out)
        if part.visual_mass is not None:
            masses.append(part.visual_mass)
    out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
    mass = torch.cat(masses) if masses else None
    if padded.order is not None:
        out = out.index_select(2, padded.order)
        mass = None if mass is None else mass.index_select(0, padded.order)
    return Attended(out, mass)


def _attend_padded(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    group: PaddedGroup,
    mask: Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Attended:
    """The rows of a group at once, padding included: ``(1, Hq, B * T, Dv)``."""
    assert mask is not None, "several requests see different keys"
    requests, most = group.rows.shape
    own = query[0].transpose(0, 1)
    if not group.whole:
        own = own.index_select(0, group.rows.flatten())
    rows = own.unflatten(0, (requests, most)).transpose(1, 2)
    key, value = (_at(pool, group.slots) for pool in (keys, values))
    if batch.visual is None and softcap is None and sinks is None:
        heads = keys.shape[1]
        each = rows.reshape(requests, heads, -1, rows.shape[3])
        seen = batch.padded_mask(mask, group, query.shape[1] // heads)
        out = F.scaled_dot_product_attention(each, key, value, attn_mask=seen, scale=scale)
        return Attended(_packed(out.reshape(requests, query.shape[1], most, -1)), None)
    seen = batch.padded_mask(mask, group, 1)
    if batch.visual is None:
        out = dense_attention(rows, key, value, seen, scale=scale, softcap=softcap, sinks=sinks)
        return Attended(_packed(out), None)
    weights = attention_weights(rows, key, seen, scale, softcap, sinks)
    flags = batch.visual[group.slots].float()[:, None, None, :, None]
    mass = _packed((weights @ flags).flatten(1, 2))[0, :, :, 0].T
    return Attended(_packed(weighted(weights, value)), mass)


def _at(pool: Tensor, slots: Tensor) -> Tensor:
    """The rows ``(B, H, L, D)`` of a pool ``(1, H, slots, D)`` in these slots ``(B, L)``."""
    rows = pool[0].transpose(0, 1).index_select(0, slots.flatten())
    shaped: Tensor = rows.unflatten(0, slots.shape)
    return shaped.transpose(1, 2)


def _packed(rows: Tensor) -> Tensor:
    """``(B, H, T, D)`` as ``(1, H, B * T, D)``."""
    return rows.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


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
    return Attended(weighted(weights, value), mass)


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
    target = batch.target(keys.device)
    keys[:, :, target] = new_keys
    values[:, :, target] = new_values


def move(pools: Sequence[Tensor], source: Sequence[int], target: Sequence[int]) -> None:
    """Copy rows of every pool ``(slots, H, D)``: ``source[i]`` to ``target[i]``, as if all were
    read before any is written.
    """
    read = torch.tensor(source)
    written = torch.tensor(target)
    for pool in pools:
        pool[written] = pool[read]
