"""Softmax attention over dense keys and values. Knows no pages."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


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
        if rows > 1:
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scale, enable_gqa=groups > 1
            )
        # Grouped heads of one query see the same: they are rows of one product.
        grouped = query.reshape(batch, kv_heads, groups, size)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scale)
        return out.reshape(batch, heads, rows, -1)
    weights = attention_weights(query, key, mask, scale, softcap, sinks)
    return weighted(weights, value)


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


def weighted(weights: Tensor, value: Tensor) -> Tensor:
    """``(B, Hq, T, Dv)`` from weights ``(B, Hkv, G, T, L)`` and values ``(B, Hkv, L, Dv)``."""
    out: Tensor = weights.flatten(2, 3).to(value.dtype) @ value
    headed: Tensor = out.unflatten(2, weights.shape[2:4])
    return headed.flatten(1, 2)
