"""Copies into and within pools, of both backends, against plain indexing."""

from __future__ import annotations

import pytest
import torch

from specdec.kernels import TreeBatch, TreeRequest, backend, forced
from specdec.kernels.dispatch import BackendName
from support.devices import DEVICES

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("name", ["reference", "triton"]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 16), (80, 48), (63, 65)])
def test_nodes_are_stored_in_their_slots(
    dim: int, value_dim: int, dtype: torch.dtype, name: BackendName, device: str
) -> None:
    """A node written to another request's page, or to where its scratch begins, or a head mixed
    up: every other slot must stay as it was."""
    requests = [
        TreeRequest([7, 2], 3, [0, 1, 1], 2),
        TreeRequest([1], 0, [0], 1, contiguous=True),
        TreeRequest([4, 5], 4, [0, 0, 0], 0),
    ]
    batch = TreeBatch(requests, 4)
    slots = [2 * 4 + 0, 2 * 4 + 1, 1 * 4 + 0]
    keys, values = (torch.randn(40, 3, size, device=device).to(dtype) for size in (dim, value_dim))
    new = [torch.randn(3, 3, size, device=device).to(dtype) for size in (dim, value_dim)]
    expected = [pool.clone() for pool in (keys, values)]
    for pool, rows in zip(expected, new, strict=True):
        pool[slots] = rows
    with forced(name):
        headed = [t.transpose(0, 1)[None] for t in (keys, values)]
        rows = [t.transpose(0, 1)[None] for t in new]
        backend(keys.device).store(*headed, batch, *rows)
    torch.testing.assert_close(keys, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(values, expected[1], rtol=0, atol=0)


def test_paths_move_in_every_pool(name: BackendName, device: str) -> None:
    """A row that is overwritten before it is read (2 moves to 1, then 3 to 2), a pool of another
    width or dtype that is forgotten or moved by the wrong number of bytes."""
    pools = [
        torch.randn(12, 2, 16, device=device),
        torch.randn(12, 1, 9, device=device).half(),
        torch.randn(12, 4, 520, device=device).bfloat16(),
        torch.randint(0, 255, (12, 1, 1), dtype=torch.uint8, device=device),
    ]
    expected = [pool.clone() for pool in pools]
    source, target = [2, 3, 6, 11], [1, 2, 3, 5]
    for pool in expected:
        pool[target] = pool[source]
    with forced(name):
        backend(pools[0].device).move(pools, source, target)
    for pool, right in zip(pools, expected, strict=True):
        torch.testing.assert_close(pool, right, rtol=0, atol=0)
