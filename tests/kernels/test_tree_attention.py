"""The Triton kernel: in the interpreter, or on a GPU where there is one.

Every case has nan in every slot that is no request's, so that a read too far shows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.kernels import TreeBatch, TreeRequest
from support.devices import DEVICES
from support.kernel_cases import RAGGED, Shape, attend, check, in_float, make_case, oracle

pytestmark = pytest.mark.parametrize("device", DEVICES)


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
    ids=["plain", "window", "softcap", "sinks", "no_mass", "all"],
)
def test_every_option_matches_the_oracle(
    options: dict[str, Any], splits: int | None, device: str
) -> None:
    """A rule of the kernel that differs from the definition, whatever the reference does."""
    case = make_case(RAGGED, device=device, **options)
    check(case, oracle(case), splits)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [
        (4, 4, 16, 16),
        (7, 1, 63, 63),
        (6, 2, 80, 80),
        (4, 2, 96, 48),
        (8, 2, 111, 128),
        (2, 1, 256, 256),
    ],
    ids=["16", "63", "80", "96to48", "111to128", "256"],
)
def test_head_sizes_and_dtypes(
    heads: int, kv_heads: int, dim: int, value_dim: int, dtype: torch.dtype, device: str
) -> None:
    """Odd sizes, which overrun their power of two, and groups that are no power of two."""
    sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "value_dim": value_dim}
    check(make_case(RAGGED, dtype=dtype, device=device, **sizes), splits=2)


@pytest.mark.parametrize("committed", [15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("nodes", [1, 5])
def test_around_the_end_of_a_page(committed: int, nodes: int, device: str) -> None:
    """Nodes that begin a page, end one, or lie across two."""
    check(make_case([Shape(committed, nodes)], page_size=16, device=device))


@pytest.mark.parametrize("nodes", [31, 32, 33, 255])
def test_large_trees(nodes: int, device: str) -> None:
    """Ancestor masks of several words, their highest bit included; trees of several tiles."""
    check(make_case([Shape(20, nodes), Shape(3, 2)], device=device, window=True))


def test_a_tree_that_is_too_large_is_refused(device: str) -> None:
    case = make_case([Shape(4, 257)], device=device)
    with pytest.raises(ValueError, match=r"257 nodes.*at most 256"):
        attend(case)


@pytest.mark.parametrize("visual", [0.0, 1.0], ids=["none", "all"])
def test_visual_mass_of_nothing_and_of_everything(visual: float, device: str) -> None:
    """Exactly 0 where no key is visual; where all committed ones are, the rest lies on nodes."""
    case = make_case(RAGGED, visual=visual, device=device)
    mass = attend(case).visual_mass
    assert mass is not None
    if visual == 0:
        assert mass.abs().max() == 0
    check(case)


def test_without_committed_text(device: str) -> None:
    """Tiles whose splits have no keys at all must not spoil the others."""
    check(make_case([Shape(0, 1), Shape(0, 4)], device=device), splits=4)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("lead", [0, 2])
@pytest.mark.parametrize("window", [False, True], ids=["full", "window"])
def test_shared_prefixes_are_read_once(window: bool, lead: int, splits: int, device: str) -> None:
    """Three of five requests share 33 pages: partial results merged with the wrong weights, rows
    of no group that take over somebody's prefix, a window that cuts into it."""
    first, *others = Shape(140, 3), Shape(134, 2, 1, shared=33), Shape(170, 5, shared=33)
    shapes = [shape._replace(lead=lead) for shape in (first, *others)]
    shapes.insert(2, Shape(7, 4))
    case = make_case([*shapes, Shape(0, 1)], device=device, window=window, sinks=True, seed=3)
    groups = case.batch.groups
    assert [(group.members, group.pages) for group in groups] == [([0, 1, 3], 33)]
    check(case, splits=splits)
    tiles = case.batch.packed(case.query.device, 4).tiles.tolist()
    prefixes = [tile for tile in tiles if tile[7] == 0]
    assert {(tile[3], tile[4]) for tile in prefixes} == {(0, 132 - lead)}
    assert sum(tile[2] for tile in prefixes) == 10  # all their rows, and no others


def test_rows_that_follow_one_another_in_memory_or_not(device: str) -> None:
    """Queries come as a view of rows, as transformers makes them, or heads first."""
    case = make_case(RAGGED, device=device)
    expected = in_float(case)
    check(case._replace(query=case.query.contiguous()), expected)
    check(case._replace(query=case.query.transpose(1, 2).contiguous().transpose(1, 2)), expected)


def test_a_chain_needs_no_mask_of_its_own(device: str) -> None:
    """``visible=None``: nodes see everything up to themselves."""
    case = make_case([Shape(9, 4, before=2)], device=device)
    (request,) = case.batch.requests
    chain = TreeRequest(request.pages, 9, range(6), 4)
    batch = TreeBatch([chain], case.batch.page_size, case.batch.visual)
    check(case._replace(batch=batch), oracle(case._replace(batch=batch)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(1, 3, 8, 16)}, "do not fit"),
        ({"query": torch.zeros(1, 4, 18, 16, dtype=torch.float16)}, "query is torch.float16"),
        ({"query": torch.zeros(1, 4, 2, 16)}, "nodes"),
        ({"query": torch.zeros(1, 4, 16, 18).transpose(2, 3)}, "contiguous"),
    ],
    ids=["heads", "dtype", "rows", "strides"],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, device: str) -> None:
    case = make_case(RAGGED, device=device)
    change = {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(ValueError, match=message):
        attend(case._replace(**change))
