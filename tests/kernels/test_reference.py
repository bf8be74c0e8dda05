"""Attention of the reference against a double loop over single elements."""

from __future__ import annotations

import pytest
import torch

from specdec.kernels import TreeBatch, TreeRequest, reference
from specdec.kernels.dense import dense_attention
from support.kernel_cases import RAGGED, Case, Shape, make_case, oracle


@pytest.mark.parametrize("visual", [None, 0.5], ids=["plain", "mass"])
@pytest.mark.parametrize("sinks", [False, True], ids=["no_sinks", "sinks"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "softcap"])
@pytest.mark.parametrize("window", [False, True], ids=["full", "window"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 3, 5), (6, 1, 80)], ids=["gqa", "mha", "mqa80"]
)
def test_tree_attention_matches_the_oracle(
    heads: int,
    kv_heads: int,
    dim: int,
    window: bool,
    softcap: float | None,
    sinks: bool,
    visual: float | None,
) -> None:
    """A wrong head grouping, a segment that reads another's keys, a mask or a window off by one,
    mass of the wrong keys, or a read of a slot that is not the request's: those hold nan.

    The tolerance is 1e-5 for sums of at most 23 products in fp32 against float64.
    """
    case = make_case(
        RAGGED,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        window=window,
        softcap=softcap,
        sinks=sinks,
        visual=visual,
    )
    check(case)


def test_contiguous_pages_of_a_chain_match_the_oracle() -> None:
    """The path that is read as a view, without a mask of its own."""
    case = make_case([Shape(10, 3), Shape(5, 1)])
    keys, values = torch.randn(2, 1, 2, 64, 16)
    requests = [
        TreeRequest([5, 6, 7, 8], 10, [0, 1, 2], 3, contiguous=True),
        TreeRequest([1, 2], 5, [0], 1, contiguous=True),
    ]
    batch = TreeBatch(requests, 4, case.batch.visual)
    check(case._replace(keys=keys, values=values, batch=batch))
    alone = TreeBatch(requests[1:], 4, None)
    check(case._replace(query=case.query[:, :, 3:], keys=keys, values=values, batch=alone))


def check(case: Case) -> None:
    expected = oracle(case)
    found = reference.tree_attention(*case[:4], **case.options)
    torch.testing.assert_close(found.out.double(), expected.out, atol=1e-5, rtol=1e-5)
    if expected.visual_mass is None:
        assert found.visual_mass is None
    else:
        torch.testing.assert_close(
            found.visual_mass.double(), expected.visual_mass, atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("softcap", [None, 3.0], ids=["uncapped", "softcap"])
def test_dense_attention_takes_a_bool_mask_per_row(softcap: float | None) -> None:
    """Batch rows mixed up where heads are grouped: each row has a mask of its own."""
    query, key, value = torch.randn(3, 4, 5, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    mask = torch.rand(3, 1, 5, 6) < 0.5
    mask[..., 0] = True
    out = dense_attention(query, key, value, mask, scale=0.4, softcap=softcap)
    for row in range(3):
        for head in range(4):
            for place in range(5):
                logits = key[row, head // 2].double() @ query[row, head, place].double() * 0.4
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = logits.masked_fill(~mask[row, 0, place], -torch.inf).softmax(0)
                expected = weights @ value[row, head // 2].double()
                torch.testing.assert_close(
                    out[row, head, place].double(), expected, atol=1e-5, rtol=1e-5
                )
