"""Attention of the reference kernel against a double loop over single elements."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from specdec.kernels.reference import Segment, dense_attention, tree_attention


def oracle(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    allowed: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One head and one query at a time, in float64. ``query (N, Hq, D)``, ``keys (L, Hkv, D)``."""
    groups = query.shape[1] // keys.shape[1]
    out = torch.zeros(*query.shape[:2], values.shape[-1], dtype=torch.float64)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            logits = []
            for position in range(keys.shape[0]):
                product = query[row, head].double() @ keys[position, head // groups].double()
                logit = float(product) * scale
                if softcap is not None:
                    logit = softcap * math.tanh(logit / softcap)
                logits.append(logit if allowed[row, position] else -math.inf)
            if sinks is not None:
                logits.append(float(sinks[head]))
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            for position in range(keys.shape[0]):
                out[row, head] += weights[position] * values[position, head // groups].double()
    return out


@pytest.mark.parametrize("sinks", [False, True], ids=["plain", "sinks"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "softcap"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 3, 5), (6, 1, 80)], ids=["gqa", "mha", "mqa80"]
)
def test_tree_attention_matches_the_oracle(
    heads: int, kv_heads: int, dim: int, softcap: float | None, sinks: bool
) -> None:
    """A wrong head grouping, a segment that reads another's keys, a mask row off by one, or a read
    of a slot that is not the request's: every slot that nobody owns holds nan.

    The tolerance is 1e-5 for sums of at most 23 products in fp32 against float64.
    """
    keys = torch.full((64, kv_heads, dim), math.nan)
    values = keys.clone()
    table = torch.tensor([13, 2, 15])
    segments = [Segment(0, 3, slice(10, 24), 14), Segment(3, 7, table, 9)]
    rows_of = [torch.arange(10, 24), (table[:, None] * 4 + torch.arange(4)).flatten()[:9]]
    for segment, slots in zip(segments, rows_of, strict=True):
        keys[slots] = torch.randn(segment.length, kv_heads, dim)
        values[slots] = torch.randn(segment.length, kv_heads, dim)
    query = torch.randn(7, heads, dim)
    allowed = torch.rand(7, 14) < 0.6
    allowed[:, 0] = True
    allowed[3:, 9:] = False
    mask = torch.zeros(7, 14).masked_fill(~allowed, -math.inf)
    sink = torch.randn(heads) if sinks else None
    headed = (rows.transpose(0, 1)[None] for rows in (query, keys, values))
    out = tree_attention(
        *headed, segments, mask, page_size=4, scale=0.3, softcap=softcap, sinks=sink
    )
    out = out[0].transpose(0, 1)
    for segment, slots in zip(segments, rows_of, strict=True):
        rows = slice(segment.start, segment.stop)
        expected = oracle(
            query[rows],
            keys[slots],
            values[slots],
            allowed[rows],
            0.3,
            softcap,
            sink,
        )
        torch.testing.assert_close(out[rows].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["uncapped", "softcap"])
def test_dense_attention_takes_a_bool_mask_per_row(softcap: float | None) -> None:
    """Batch rows mixed up where heads are grouped: each row has a mask of its own."""
    query, key, value = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    mask = torch.rand(3, 1, 5, 6) < 0.5
    mask[..., 0] = True
    out = dense_attention(query, key, value, mask, scale=0.4, softcap=softcap)
    for row in range(3):
        expected = oracle(
            query[row].transpose(0, 1),
            key[row].transpose(0, 1),
            value[row].transpose(0, 1),
            mask[row, 0],
            0.4,
            softcap,
            None,
        )
        torch.testing.assert_close(
            out[row].transpose(0, 1).double(), expected, atol=1e-5, rtol=1e-5
        )
