"""Keys beside a request's own, in pools of another dtype and page size.

Both pools have nan in every slot that is no request's, so that a read too far shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.kernels import Beside, TreeBatch, TreeRequest, reference
from support.devices import DEVICES
from support.kernel_cases import (
    RAGGED,
    RAGGED_FAR,
    Case,
    Far,
    Shape,
    attend,
    check,
    make_case,
    oracle,
    with_beside,
)

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
on_devices = pytest.mark.parametrize("device", DEVICES)


def check_reference(case: Case) -> None:
    """1e-5 is for sums of at most 41 products in fp32 against float64."""
    found = reference.tree_attention(*case[:4], **case.options)
    assert found.visual_mass is None
    assert found.out.dtype == case.query.dtype
    bound = {FP32: 1e-5, BF16: 1.6e-2}[case.query.dtype]
    torch.testing.assert_close(found.out.double(), oracle(case).out, atol=bound, rtol=bound)


@pytest.mark.parametrize("contiguous", [False, True], ids=["scattered", "contiguous"])
@pytest.mark.parametrize("sinks", [False, True], ids=["no_sinks", "sinks"])
@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "softcap"])
@pytest.mark.parametrize("window", [False, True], ids=["full", "window"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 8), (3, 3, 5), (6, 1, 80)], ids=["gqa", "mha", "mqa80"]
)
def test_the_reference_matches_the_oracle(
    heads: int,
    kv_heads: int,
    dim: int,
    window: bool,
    softcap: float | None,
    sinks: bool,
    contiguous: bool,
) -> None:
    """A mask whose columns are moved by the keys beside, a window that hides those, the keys of
    another request or none where there are some, a slot before or behind them.

    Pools beside are of bfloat16: their numbers are taken as they are.
    """
    case = make_case(
        RAGGED,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )
    fars = RAGGED_FAR
    if contiguous:
        fars = tuple(far._replace(shared=0) for far in fars)
    check_reference(with_beside(case, fars, dtype=BF16, contiguous=contiguous))


@pytest.mark.parametrize(
    ("dtype", "beside"),
    [(FP32, FP32), (BF16, BF16), (BF16, FP32)],
    ids=["fp32", "bf16", "bf16_fp32"],
)
def test_the_reference_in_other_dtypes(dtype: torch.dtype, beside: torch.dtype) -> None:
    """Joined keys that are left wider than the queries."""
    check_reference(with_beside(make_case(RAGGED, dtype=dtype), RAGGED_FAR, dtype=beside))


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_reference_on_one_chain(nodes: int) -> None:
    """One request goes another way: no mask at all, or one that is not cut out of a larger one."""
    requests = [TreeRequest([5, 6, 7, 8], 10, range(nodes), nodes, contiguous=True)]
    case = make_case([Shape(10, nodes)])
    keys, values = torch.randn(2, 1, 2, 64, 16)
    case = case._replace(keys=keys, values=values, batch=TreeBatch(requests, 4))
    check_reference(with_beside(case, [Far(11, lead=3)], dtype=BF16, contiguous=True))


def test_the_reference_where_one_request_has_all_rows() -> None:
    """Its mask is as wide as the keys of the request without rows, which are more."""
    case = make_case([Shape(4, 3), Shape(30, 0)])
    check_reference(with_beside(case, [Far(9), Far(2)]))


@on_devices
@pytest.mark.parametrize("splits", [None, 3], ids=["whole", "split"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": True},
        {"softcap": 2.0},
        {"sinks": True},
        {"visual": None},
        {"window": True, "softcap": 2.0, "sinks": True},
    ],
    ids=["plain", "window", "softcap", "sinks", "unflagged", "all"],
)
def test_every_option_matches_the_oracle(
    options: dict[str, Any], splits: int | None, device: str
) -> None:
    """Partial results that overwrite others, weights of the two launches in different units, a
    window or an ancestor mask on keys beside, sinks that count twice."""
    case = with_beside(make_case(RAGGED, device=device, **options), RAGGED_FAR)
    check(case, oracle(case), splits)


@on_devices
@pytest.mark.parametrize(
    ("dtype", "beside"),
    [(FP32, BF16), (FP32, FP16), (BF16, BF16), (BF16, FP32), (FP16, BF16)],
    ids=["fp32_bf16", "fp32_fp16", "bf16_bf16", "bf16_fp32", "fp16_bf16"],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [(4, 2, 16, 16), (7, 1, 63, 63), (4, 2, 111, 128)],
    ids=["16", "63", "111to128"],
)
def test_dtypes_and_head_sizes(
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    dtype: torch.dtype,
    beside: torch.dtype,
    device: str,
) -> None:
    """Queries that are not of the pools' dtype in one of the launches, a tiling for the other."""
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "value_dim": value_dim}
    case = make_case(RAGGED, dtype=dtype, device=device, **sizes)
    case = with_beside(case, RAGGED_FAR, dtype=beside)
    check(case, splits=2)
    assert attend(case).out.dtype == dtype


@on_devices
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("text", [False, True], ids=["own_texts", "common_text"])
def test_requests_on_one_image_read_it_once(text: bool, splits: int, device: str) -> None:
    """Four of six requests share 20 pages of 8 beside, with nothing or little behind them, and
    perhaps a text too. Requests beside have no scratch, so that what is a prefix must not be told
    by that: the end of a request's keys would overwrite the prefix."""
    first, *others = Shape(140, 3), Shape(134, 2, 1, shared=33), Shape(170, 5, shared=33)
    if not text:
        others = [shape._replace(shared=0) for shape in others]
    case = make_case(
        [first, *others, Shape(7, 4), Shape(3, 0), Shape(0, 1)], device=device, sinks=True
    )
    fars = [Far(170, lead=3), Far(157, 20, lead=3), Far(9), *([Far(164, 20, lead=3)] * 2), Far(0)]
    case = with_beside(case, fars)
    assert bool(case.batch.groups) == text
    batch = case.options["beside"].batch
    assert [(group.members, group.pages) for group in batch.groups] == [([0, 1, 3, 4], 20)]
    check(case, splits=splits)
    tiles = batch.packed(case.query.device, 4).tiles.tolist()
    prefixes = [tile for tile in tiles if tile[7] == 0]
    assert {(tile[3], tile[4]) for tile in prefixes} == {(0, 157)}
    assert sum(tile[2] for tile in prefixes) == 9  # all their rows, and no others
    assert all(tile[3] == 157 for tile in tiles if tile[7] == 1 and tile[0] in (0, 1, 3))


@on_devices
def test_a_large_tree(device: str) -> None:
    """Several tiles, and ancestor words that are not those of the launch beside."""
    case = make_case([Shape(20, 65), Shape(3, 2)], device=device, window=True)
    check(with_beside(case, [Far(19), Far(40)]), splits=2)


@on_devices
def test_nothing_beside(device: str) -> None:
    """Page tables without entries; every row has what it has without."""
    case = make_case(RAGGED, device=device, visual=None)
    expected = attend(case)
    found = attend(with_beside(case, [Far(0)] * len(RAGGED)), splits=2)
    torch.testing.assert_close(found.out, expected.out, atol=1e-6, rtol=1e-6)


@on_devices
def test_a_chain_beside_contiguous_pages(device: str) -> None:
    """``visible=None`` on both sides: the rows beside see everything, the nodes all up to
    themselves."""
    case = make_case([Shape(9, 4, before=2)], device=device)
    (request,) = case.batch.requests
    chain = TreeRequest(request.pages, 9, range(6), 4)
    case = case._replace(batch=TreeBatch([chain], case.batch.page_size))
    case = with_beside(case, [Far(21, lead=1)], contiguous=True)
    check(case, oracle(case))


@on_devices
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": (1, 1, 96, 16)}, r"keys beside have shape \(1, 1, 96, 16\); \(1, 2, 96, 16\)"),
        ({"keys": (1, 2, 96, 8)}, r"keys beside .* expected beside keys of shape \(1, 2, "),
        ({"values": (1, 2, 40, 16)}, r"values beside have shape \(1, 2, 40, 16\); \(1, 2, "),
        ({"values": (1, 2, 96, 12)}, r"values beside have shape"),
        ({"values": FP16}, "keys beside are torch.float32, values beside torch.float16"),
        ({"keys": torch.float64, "values": torch.float64}, "float64"),
        ({"rows": 2}, r"from rows \[0, 2, .*the batch from \[0, 3, "),
        ({"depths": (0,)}, "no scratch nodes"),
        ({"strides": True}, "keys beside must be contiguous"),
    ],
    ids=[
        "heads",
        "dim",
        "slots",
        "value_dim",
        "two_dtypes",
        "dtype",
        "rows",
        "scratch",
        "strides",
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, device: str) -> None:
    """Anything else would be read as if it did."""
    case = with_beside(make_case(RAGGED, device=device), RAGGED_FAR)
    keys, values, batch = case.options["beside"]
    pools = {"keys": keys, "values": values}
    for name in pools.keys() & change.keys():
        if isinstance(change[name], tuple):
            pools[name] = torch.zeros(change[name], device=device)
        else:
            pools[name] = pools[name].to(change[name])
    requests = list(batch.requests)
    if "rows" in change:
        requests[0] = TreeRequest(requests[0].pages, 13, (), change["rows"])
    if "depths" in change:
        requests[0] = TreeRequest(requests[0].pages, 8, (0, 1, 2), 3)
    if "strides" in change:
        pools["keys"] = keys.transpose(2, 3).contiguous().transpose(2, 3)
    beside = Beside(pools["keys"], pools["values"], TreeBatch(requests, batch.page_size))
    with pytest.raises(ValueError, match=message):
        attend(case._replace(options={**case.options, "beside": beside}))
