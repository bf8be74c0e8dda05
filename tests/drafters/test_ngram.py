"""Prompt look-up."""

from __future__ import annotations

import random

import pytest

from specdec.drafters import NgramDrafter
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import Dynamic, Shape, chain, static, topology

IMAGE = 99
SPEC = VerifierSpec("a verifier", 100, 8, 1, frozenset([IMAGE]), frozenset())


def propose(tokens: list[int], branching: tuple[int, ...], depth: int = 50) -> list[list[int]]:
    """The paths of the proposed tree, from root to leaf."""
    drafter = NgramDrafter()
    drafter.check(SPEC)
    (tree,) = drafter.propose(
        [DraftRequest(0, tokens, len(tokens), static(branching).truncate(depth))]
    )
    leaves = [node for node in range(len(tree)) if not tree.topology.children[node]]
    return [[tree.tokens[node] for node in tree.topology.path(leaf)] for leaf in leaves]


def oracle(tokens: list[int], depth: int) -> list[int]:
    """The continuation of the latest earlier place that shares the longest suffix, up to 4
    tokens.
    """
    for size in (4, 3, 2, 1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:] and size < len(tokens):
                return tokens[end : end + depth]
    return []


@pytest.mark.parametrize("seed", range(30))
def test_a_chain_is_the_latest_longest_match(seed: int) -> None:
    """Against a scan of the whole text, also when the text grows between two proposals."""
    rng = random.Random(seed)
    tokens = [rng.randrange(4) for _ in range(rng.randrange(1, 40))]
    drafter = NgramDrafter()
    drafter.check(SPEC)
    for _ in range(4):
        (tree,) = drafter.propose([DraftRequest(0, tokens, len(tokens), chain(5))])
        assert list(tree.tokens) == [tokens[-1], *oracle(tokens, 5)]
        tokens = tokens + [rng.randrange(4) for _ in range(rng.randrange(1, 5))]


def test_longer_suffixes_come_first_and_beginnings_are_shared() -> None:
    tokens = [1, 2, 3, 7, 8, 5, 2, 3, 7, 9, 4, 1, 2, 3]
    assert propose(tokens, (2, 1, 1)) == [[3, 7, 8, 5], [3, 7, 9, 4]]


def test_visual_tokens_are_never_drafted() -> None:
    assert propose([1, 2, IMAGE, IMAGE, 5, 1, 2], (1, 1)) == [[2]]
    assert propose([1, 2, 6, IMAGE, 5, 1, 2], (1, 1)) == [[2, 6]]


def test_nothing_to_find() -> None:
    assert propose([1, 2, 3], (2, 2)) == [[3]]
    assert propose([1, 1], (1, 1), depth=0) == [[1]]


def test_no_larger_than_the_shape() -> None:
    tokens = [1, 2, 3, 4, 1, 5, 6, 7, 1, 8, 9, 2, 1]
    drafter = NgramDrafter()
    drafter.check(SPEC)
    for shape in (static((3,)), static((2, 1)), chain(2)):
        (tree,) = drafter.propose([DraftRequest(0, tokens, len(tokens), shape)])
        assert len(tree) <= len(shape)
        assert tree.topology.depth <= shape.depth


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="min_ngram"):
        NgramDrafter(max_ngram=1, min_ngram=2)


def tree_of(tokens: list[int], shape: Shape) -> list[list[int]]:
    drafter = NgramDrafter()
    drafter.check(SPEC)
    (tree,) = drafter.propose([DraftRequest(0, tokens, len(tokens), shape)])
    assert len(tree) <= len(shape)
    assert tree.topology.depth <= shape.depth
    leaves = [node for node in range(len(tree)) if not tree.topology.children[node]]
    return [[tree.tokens[node] for node in tree.topology.path(leaf)] for leaf in leaves]


# Behind a 1, most recent last: 40 …, 20 …, 10 …
THREE = [1, *range(40, 50), 1, *range(20, 30), 1, *range(10, 20), 1]


def test_a_budget_is_spread_over_continuations() -> None:
    """The most recent continuation took the whole budget; or each got the same, where the first is
    the best guess.
    """
    paths = tree_of(THREE, Dynamic(14, 8, width=3))
    assert paths == [[1, *range(10, 17)], [1, *range(20, 24)], [1, *range(40, 43)]]
    assert tree_of(THREE, Dynamic(14, 8, width=1)) == [[1, *range(10, 18)]]
    assert tree_of(THREE, Dynamic(3, 8, width=4)) == [[1, 10, 11], [1, 20]]


def test_what_a_continuation_leaves_goes_to_the_others() -> None:
    """A continuation that ends early, at the end of the text or at an image, wastes no nodes."""
    tokens = [1, *range(20, 30), 1, 10, IMAGE, 1]
    assert tree_of(tokens, Dynamic(8, 7, width=2)) == [[1, 10], [1, *range(20, 27)]]
    tokens = [1, 10, IMAGE, 5, 1, *range(20, 30), 1]
    assert sorted(tree_of(tokens, Dynamic(8, 7, width=2))) == [[1, 10], [1, *range(20, 27)]]


def test_the_same_continuation_counts_once() -> None:
    """Three recent repetitions would hide what came before them, and an image behind the suffix
    would take a place for nothing.
    """
    tokens = [1, 7, 7, 1, 5, 6, 2, 1, 5, 6, 2, 1, 5, 6, 2, 1, IMAGE, 3, 1]
    assert sorted(tree_of(tokens, static((2, 1)))) == [[1, 5, 6], [1, 7, 7]]


@pytest.mark.parametrize("seed", range(20))
def test_never_larger_than_any_shape(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.choice([1, 2, 3, IMAGE]) for _ in range(60)]
    shape = Dynamic(rng.randrange(12), rng.randrange(5), rng.randrange(1, 5))
    tree_of([*tokens, 1], shape)
    tree_of([*tokens, 1], topology((-1, *(rng.randrange(node) for node in range(1, 9)))))


def test_a_step_takes_no_longer_in_a_long_text() -> None:
    """Tokens read by a step, counted: a scan of the text, or of all occurrences of a frequent
    token, grows with it.
    """

    class Counted(list[int]):
        reads = 0

        def __getitem__(self, place):  # type: ignore[no-untyped-def]  # an int or a slice
            value = super().__getitem__(place)
            Counted.reads += len(value) if isinstance(place, slice) else 1
            return value

    counts = []
    for length in (200, 20000):
        drafter = NgramDrafter()
        tokens = Counted([1, 2] * (length // 2))
        request = DraftRequest(0, tokens, length, Dynamic(16, 8, width=4))
        drafter.propose([request])
        tokens.append(1)
        Counted.reads = 0
        drafter.propose([request])
        counts.append(Counted.reads)
    assert counts[0] == counts[1]
