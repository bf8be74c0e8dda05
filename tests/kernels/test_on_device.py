"""What only a GPU can show of the kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from specdec.kernels import TreeBatch
from specdec.kernels.tiling import tilings
from support.kernel_cases import (
    RAGGED,
    RAGGED_FAR,
    Far,
    Shape,
    attend,
    check,
    in_float,
    make_case,
    with_beside,
)

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


def test_nothing_waits_for_the_device_beside(request: pytest.FixtureRequest) -> None:
    """Nor does the second launch, whose requests have no scratch and perhaps no keys."""
    case = with_beside(make_case(RAGGED, device="cuda"), RAGGED_FAR, dtype=torch.bfloat16)
    attend(case)
    beside = case.options["beside"]
    fresh = TreeBatch(beside.batch.requests, beside.batch.page_size)
    request.getfixturevalue("no_waiting")
    attend(case._replace(options={**case.options, "beside": beside._replace(batch=fresh)}))


def test_captured_launches_read_new_keys_beside() -> None:
    """A launch beside that was captured with old lengths, or casts its queries once only."""
    shapes = [Shape(40, 3), Shape(12, 5)]
    old, new = (
        with_beside(make_case(shapes, device="cuda", seed=s), fars, dtype=torch.bfloat16, seed=s)
        for s, fars in ((1, [Far(33), Far(0)]), (2, [Far(38), Far(0)]))
    )
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        attend(old)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = attend(old)
    rows = tilings(16, torch.float32, old.batch.widest, 2)[0].block_m // 2
    rows_beside = tilings(16, torch.bfloat16, old.batch.widest, 2)[0].block_m // 2
    beside = [case.options["beside"] for case in (old, new)]
    device = old.query.device
    tensors = zip(
        (*old[:3], *beside[0][:2], *old.batch.packed(device, rows)[:5]),
        (*new[:3], *beside[1][:2], *new.batch.packed(device, rows)[:5]),
        strict=True,
    )
    packed = (each.batch.packed(device, rows_beside)[:5] for each in beside)
    for target, source in (*tensors, *zip(*packed, strict=True)):
        target.copy_(source)
    graph.replay()
    expected = in_float(new)
    torch.testing.assert_close(found.out.cpu(), expected.out, atol=1.6e-2, rtol=1.6e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_long_texts_beside(dtype: torch.dtype) -> None:
    """Two launches of many splits, of which some are a prefix that three requests share."""
    shapes = [Shape(3_000, 5), Shape(20, 17), Shape(1, 1), Shape(700, 3)]
    options = {"heads": 8, "kv_heads": 2, "dim": 128, "page_size": 16}
    case = make_case(shapes, dtype=dtype, device="cuda", **options)
    fars = [Far(5_000), Far(4_900, shared=600), Far(0), Far(4_801, shared=600)]
    check(with_beside(case, fars, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_long_texts(dtype: torch.dtype) -> None:
    """Many splits of many pages, and addresses far into the pools."""
    shapes = [Shape(20_000, 5), Shape(3_000, 17), Shape(1, 1)]
    options = {"heads": 8, "kv_heads": 2, "dim": 128, "page_size": 16, "visual": 0.7}
    check(make_case(shapes, dtype=dtype, device="cuda", **options))
