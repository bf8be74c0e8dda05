"""Requests that the reference attends at once: who with whom, and that padding changes nothing.

Pools hold nan in every slot that is no request's, so a read too far shows.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.kernels import TreeBatch, TreeRequest, padded, reference
from specdec.kernels.padded import pad
from support.kernel_cases import Case, Shape, make_case, oracle

CPU = torch.device("cpu")
# Odd sizes, two that share an image's pages, one without rows, one behind unused slots.
MIXED = (
    Shape(23, 3, lead=1),
    Shape(21, 1, shared=5, lead=1),
    Shape(7, 0),
    Shape(0, 5),
    Shape(14, 3, before=2, lead=3),
    Shape(25, 1, shared=4, lead=1),
    Shape(5, 1),
)
ALIKE = (Shape(9, 2), Shape(13, 2, lead=2), Shape(10, 2, before=1))


def check(case: Case) -> None:
    """1e-5 is for sums of at most 28 products in fp32 against float64."""
    found, expected = reference.tree_attention(*case[:4], **case.options), oracle(case)
    torch.testing.assert_close(found.out.double(), expected.out, atol=1e-5, rtol=1e-5)
    if expected.visual_mass is not None:
        assert found.visual_mass is not None
        mass = found.visual_mass.double()
        torch.testing.assert_close(mass, expected.visual_mass, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("most", [0, 20, 10**6], ids=["apart", "some", "together"])
@pytest.mark.parametrize("shapes", [MIXED, ALIKE], ids=["mixed", "alike"])
@pytest.mark.parametrize(
    "options",
    [{}, {"window": True}, {"sinks": True, "softcap": 2.0}, {"visual": 0.5, "window": True}],
    ids=["plain", "window", "sinks_softcap", "mass"],
)
def test_every_grouping_matches_the_oracle(
    options: dict[str, Any],
    shapes: tuple[Shape, ...],
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows handed back in another order, padding that is attended to or nan, the mask of another
    request or of another head, a slot before the first."""
    monkeypatch.setattr(padded, "_CALL", most)
    monkeypatch.setattr(padded, "_PADDING", 0.0)
    case = make_case(shapes, kv_heads=2, dim=5, value_dim=7, **{"visual": None, **options})
    count = len(case.batch.padded(CPU).groups)
    live = sum(shape.nodes > 0 for shape in shapes)
    assert count == {0: live, 10**6: 1}.get(most, count)
    assert most != 20 or 1 < count < live
    check(case)


def test_chains_and_trees_side_by_side() -> None:
    """A chain has no mask of its own; it must not be given that of a tree."""
    case = make_case((Shape(11, 4), Shape(9, 4), Shape(12, 1)), visual=None)
    first, *others = case.batch.requests
    depths = [0, 1, 2, 3]
    chain = TreeRequest(first.pages, first.committed, depths, 4, None, first.lead)
    check(case._replace(batch=TreeBatch([chain, *others], case.batch.page_size)))


def test_long_contiguous_requests_are_read_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come behind the others and their rows have to go back between them."""
    monkeypatch.setattr(padded, "_LONG", 6)
    requests = [
        TreeRequest([5, 6, 7, 8], 10, [0, 1], 2, contiguous=True),
        TreeRequest([1, 2], 3, [0], 1, contiguous=True),
        TreeRequest([4, 3], 5, [0], 1),
    ]
    batch = TreeBatch(requests, 4)
    assert [group.members for group in batch.padded(CPU).groups] == [[1, 2], [0]]
    keys, values = torch.randn(2, 1, 2, 64, 16)
    case = make_case([Shape(10, 2), Shape(3, 1), Shape(5, 1)], visual=None)
    check(case._replace(keys=keys, values=values, batch=batch))


def test_groups_hold_little_padding() -> None:
    """A piece of a prompt that thirty single nodes are padded to, a request that is forgotten or
    attended twice, padding without bound."""
    rng = random.Random(0)
    for _ in range(50):
        requests = []
        for _ in range(rng.randrange(1, 33)):
            nodes = rng.choice([0, 1, 1, 1, 5, 9, 256])
            committed = rng.choice([40, 150, 170, 1500])
            pages = range(-(-(committed + nodes) // 16))
            requests.append(TreeRequest(pages, committed, range(nodes), nodes))
        starts = TreeBatch(requests, 16).starts
        if not starts[-1]:
            continue
        groups = pad(requests, starts, 16, CPU).groups
        members = sorted(member for group in groups for member in group.members)
        assert members == [i for i, request in enumerate(requests) if request.nodes]
        for group in groups:
            sizes = [(requests[i].nodes, requests[i].length) for i in group.members]
            needed = sum(nodes * length for nodes, length in sizes)
            widest, longest = (max(column) for column in zip(*sizes, strict=True))
            assert len(sizes) * widest * longest <= 2 * needed + padded._CALL
            assert widest < 256 or min(nodes for nodes, _ in sizes) == 256


@pytest.mark.parametrize("contiguous", [False, True], ids=["scattered", "contiguous"])
@pytest.mark.parametrize("count", [1, 3])
def test_new_keys_are_stored_where_their_nodes_are(count: int, contiguous: bool) -> None:
    """One row off, another request's slots, or slots that are nobody's."""
    pages = ([4, 5], [6, 7], [1, 2]) if contiguous else ([4, 3], [7, 0], [2, 6])
    requests = [
        TreeRequest(table, 2 + i, range(3), 2, lead=1, contiguous=contiguous)
        for i, table in enumerate(pages[:count])
    ]
    batch = TreeBatch(requests, 4)
    keys, values = torch.zeros(1, 2, 32, 3), torch.zeros(1, 2, 32, 5)
    new_keys, new_values = torch.randn(1, 2, 2 * count, 3), torch.randn(1, 2, 2 * count, 5)
    reference.store(keys, values, batch, new_keys, new_values)
    expected: tuple[Tensor, Tensor] = (torch.zeros_like(keys), torch.zeros_like(values))
    for row in range(2 * count):
        request = requests[row // 2]
        slot = request.slot(request.length - 2 + row % 2, 4)
        expected[0][:, :, slot] = new_keys[:, :, row]
        expected[1][:, :, slot] = new_values[:, :, row]
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])
