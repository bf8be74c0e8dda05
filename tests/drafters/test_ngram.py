"""Prompt look-up."""

from __future__ import annotations

import random

import pytest

from specdec.drafters import NgramDrafter
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import chain, static

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
