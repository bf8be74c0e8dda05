"""What only a GPU can show of the kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from specdec.kernels import TreeBatch
from specdec.kernels.tiling import tilings
from support.kernel_cases import RAGGED, Shape, attend, check, in_float, make_case

pytestmark = pytest.mark.gpu


@pytest.fixture
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_nothing_waits_for_the_device(request: pytest.FixtureRequest) -> None:
    """A length or a table that is read back by the host would stall every layer."""
    case = make_case(RAGGED, device="cuda", window=True)
    attend(case)  # compiles and tunes, which may wait
    again = TreeBatch(case.batch.requests, case.batch.page_size, case.batch.visual)
    request.getfixturevalue("no_waiting")
    attend(case._replace(batch=again))


def test_a_captured_launch_reads_new_lengths() -> None:
    """Launch shapes or arguments that depend on lengths would replay the old ones."""

    old = make_case([Shape(40, 3), Shape(12, 5)], device="cuda", seed=1)
    new = make_case([Shape(41, 3), Shape(13, 5)], device="cuda", seed=2)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attend(old)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = attend(old)
    rows = tilings(16, torch.float32, old.batch.widest, 2)[0].block_m // 2
    tensors = zip(
        (*old[:3], old.batch.visual, *old.batch.packed(old.query.device, rows)[:5]),
        (*new[:3], new.batch.visual, *new.batch.packed(new.query.device, rows)[:5]),
        strict=True,
    )
    for target, source in tensors:
        assert target is not None
        target.copy_(source)
    graph.replay()
    expected = in_float(new)
    torch.testing.assert_close(found.out.cpu(), expected.out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_long_texts(dtype: torch.dtype) -> None:
    """Many splits of many pages, and addresses far into the pools."""
    shapes = [Shape(20_000, 5), Shape(3_000, 17), Shape(1, 1)]
    options = {"heads": 8, "kv_heads": 2, "dim": 128, "page_size": 16, "visual": 0.7}
    check(make_case(shapes, dtype=dtype, device="cuda", **options))
