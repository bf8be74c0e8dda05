"""Draft trees: shapes against elementwise oracles, and the errors that users see."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree import (
    DraftTree,
    Topology,
    chain,
    random_topology,
    root_only,
    static,
    topology,
)

SHAPES = {
    "root": chain(0),
    "chain4": chain(4),
    "static32": static((3, 2)),
    "comb": topology((-1, 0, 0, 1, 1, 3, 3)),
    "random17": random_topology(17, seed=3),
    "random64": random_topology(64, seed=4),
}


def is_ancestor(parents: tuple[int, ...], node: int, above: int) -> bool:
    """Walks up from ``node``: the oracle for the mask."""
    while node >= 0:
        if node == above:
            return True
        node = parents[node]
    return False


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_ancestor_mask_against_a_double_loop(shape: Topology) -> None:
    """A node that sees a cousin, or not its own grandparent, gets wrong logits in silence."""
    n = len(shape)
    expected = [[is_ancestor(shape.parents, i, j) for j in range(n)] for i in range(n)]
    assert shape.ancestors.tolist() == expected


@given(nodes=st.integers(1, 40), seed=st.integers(0, 1000))
def test_parts_of_a_topology_agree(nodes: int, seed: int) -> None:
    shape = random_topology(nodes, seed)
    assert len(shape) == nodes
    for node in range(nodes):
        path = shape.path(node)
        assert path[0] == 0
        assert path[-1] == node
        assert all(shape.parents[b] == a for a, b in itertools.pairwise(path))
        assert shape.depths[node] == len(path) - 1
        assert node in shape.levels[shape.depths[node]]
        assert all(shape.parents[child] == node for child in shape.children[node])
    assert sum(map(len, shape.children)) == nodes - 1
    assert sum(map(len, shape.levels)) == nodes
    assert shape.depth == max(shape.depths)
    assert shape.is_chain == all(len(children) <= 1 for children in shape.children)


@given(nodes=st.integers(1, 40), seed=st.integers(0, 1000), depth=st.integers(0, 12))
def test_truncate_keeps_exactly_the_shallow_nodes(nodes: int, seed: int, depth: int) -> None:
    """Renumbering that mixes up parents would verify tokens in the wrong context."""
    shape = random_topology(nodes, seed)
    q = torch.rand(nodes, 3)
    whole = DraftTree(shape, tuple(range(100, 100 + nodes)), q, "with_replacement")
    cut = whole.truncate(depth)

    kept = [node for node in range(nodes) if shape.depths[node] <= depth]
    assert cut.tokens == tuple(whole.tokens[node] for node in kept)
    assert cut.siblings == whole.siblings
    assert cut.q is not None
    assert torch.equal(cut.q, q[kept])
    for new, old in enumerate(kept):
        before = [whole.tokens[node] for node in shape.path(old)]
        assert [cut.tokens[node] for node in cut.topology.path(new)] == before


def test_builders() -> None:
    assert chain(3).parents == (-1, 0, 1, 2)
    assert chain(3).is_chain
    assert static(()).parents == (-1,)
    assert static((2, 2)).parents == (-1, 0, 0, 1, 1, 2, 2)
    assert static((2, 2)).levels == ((0,), (1, 2), (3, 4, 5, 6))
    assert not static((2, 1)).is_chain
    assert random_topology(9, seed=1).parents == random_topology(9, seed=1).parents
    assert root_only(7).tokens == (7,)
    assert len(root_only(7)) == 1


def test_equal_shapes_are_one_object() -> None:
    """Masks are built once per shape, not once per step."""
    assert chain(4) is topology((-1, 0, 1, 2, 3))
    assert static((2, 2)).truncate(1) is static((2,))
    assert chain(4).truncate(9) is chain(4)


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((), r"parents\[0\] must be -1"),
        ((0,), r"parents\[0\] must be -1"),
        ((-1, -1), r"parents\[1\] = -1: a parent must come before its child"),
        ((-1, 0, 2), r"parents\[2\] = 2: .* so 0\.\.1"),
        ((-1, 2, 0), r"parents\[1\] = 2"),
    ],
)
def test_impossible_parents_are_refused(parents: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology(parents)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="k >= 0 drafted tokens, got -1"):
        chain(-1)
    with pytest.raises(ValueError, match=r"branching factor must be >= 1, got \(2, 0\)"):
        static((2, 0))


def test_draft_trees_whose_parts_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens for a topology of 3 nodes"):
        DraftTree(chain(2), (1, 2))
    with pytest.raises(ValueError, match="siblings='sorted'; known: deterministic"):
        DraftTree(chain(1), (1, 2), siblings="sorted")  # type: ignore[arg-type]  # what users type
    with pytest.raises(ValueError, match="without_replacement need the q"):
        DraftTree(chain(1), (1, 2), siblings="without_replacement")
    with pytest.raises(ValueError, match=r"q has shape \(3, 5\), expected \(2, V\)"):
        DraftTree(chain(1), (1, 2), torch.rand(3, 5), "with_replacement")
    assert len(DraftTree(chain(0), (1,), siblings="with_replacement")) == 1


@given(nodes=st.integers(1, 30), seed=st.integers(0, 1000), end=st.integers(0, 29))
def test_follow_walks_any_path_of_the_tree(nodes: int, seed: int, end: int) -> None:
    """A drafter keeps the keys of the nodes it names: a cousin among them poisons its cache."""
    shape = random_topology(nodes, seed)
    tree = DraftTree(shape, tuple(range(100, 100 + nodes)))
    path = shape.path(min(end, nodes - 1))[1:]
    tokens = [tree.tokens[node] for node in path]
    assert tuple(tree.follow(tokens)) == path
    assert tuple(tree.follow([*tokens, -5, 101])) == path


def test_follow_takes_the_eldest_of_equal_siblings() -> None:
    """As acceptance does."""
    tree = DraftTree(topology((-1, 0, 0, 1, 2)), (9, 1, 1, 0, 2))
    assert list(tree.follow([1, 0])) == [1, 3]
    assert list(tree.follow([1, 2])) == [1]
    assert list(tree.follow([])) == []
