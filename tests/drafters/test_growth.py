"""Dynamic trees against a search that keeps every candidate and looks at no tensor."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specdec.drafters.calibration import Calibration
from specdec.drafters.growth import Wave, grow
from specdec.interfaces import DraftRequest
from specdec.tree import DraftTree, Dynamic, chain, static

TOKENS = 12
Path = tuple[int, ...]


class Table:
    """A model whose next token depends on the last one only."""

    def __init__(self, seed: int, vocabulary: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2.5 * torch.randn(TOKENS, TOKENS, generator=generator)
        self.vocabulary = vocabulary
        self.forwards = self.rows = 0

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        return self.logits[[request.tokens[-1] % TOKENS for request in requests]]

    def run(self, wave: Wave) -> Tensor:
        self.forwards += 1
        self.rows += len(wave.tokens)
        return self.logits[wave.tokens % TOKENS]


def accepted(q: float, calibration: Calibration) -> float:
    odds = q / (1 - q)
    return float(1 / (1 + math.exp(-calibration.shift) * odds**-calibration.slope))


def search(table: Table, root: int, shape: Dynamic, calibration: Calibration) -> set[Path]:
    """The most probable paths: of each level the ``width`` best are gone on from, with ``width``
    children each.
    """
    found: dict[Path, float] = {}
    frontier: dict[Path, float] = {(): 1.0}
    for _ in range(shape.depth):
        level = {}
        for path, score in frontier.items():
            q = table.logits[(path[-1] if path else root) % TOKENS].softmax(-1).tolist()
            for token in sorted(range(TOKENS), key=lambda t: -q[t])[: shape.width]:
                name = token if table.vocabulary is None else int(table.vocabulary[token])
                level[*path, name] = score * accepted(q[token], calibration)
        found |= level
        best = sorted(level, key=lambda path: -level[path])[: shape.width]
        frontier = {path: level[path] for path in best}
    kept = sorted(found, key=lambda path: -found[path])[: shape.budget]
    return {path for path in kept if found[path] >= shape.least}


def paths(tree: DraftTree) -> set[Path]:
    found: list[Path] = [()]
    for node in range(1, len(tree)):
        found.append((*found[tree.topology.parents[node]], tree.tokens[node]))
    return set(found[1:])


@pytest.mark.parametrize(
    "calibration", [Calibration(), Calibration(0.4, -0.3), Calibration(1.6, 0.8)], ids=str
)
def test_the_most_probable_nodes_are_drafted(calibration: Calibration) -> None:
    """The growing stops early where nothing can still enter the tree, and never too early; the
    product is of calibrated probabilities, and of the names that tokens have in the vocabulary.
    """
    rng = random.Random(3)
    differ = 0
    for seed in range(60):
        vocabulary = None if seed % 2 else torch.arange(TOKENS) * 5 + 2
        table = Table(seed, vocabulary)
        shape = Dynamic(
            rng.randrange(1, 20), rng.randrange(1, 6), rng.randrange(1, 5), rng.choice([0, 0.02])
        )
        requests = [DraftRequest(i, [7, root], 1, shape) for i, root in enumerate((3, 9))]
        grown = grow(table, requests, calibration=calibration)
        for request, (tree, _) in zip(requests, grown, strict=True):
            wanted = search(table, request.tokens[-1], shape, calibration)
            assert paths(tree) == wanted, (seed, shape)
            differ += wanted != search(table, request.tokens[-1], shape, Calibration())
    assert (differ > 20) == (calibration != Calibration())


def test_growing_stops_where_nothing_more_can_enter() -> None:
    """A tree of one node needs no forward but the first, however deep it may be."""
    table = Table(0)
    grow(table, [DraftRequest(0, [3], 1, Dynamic(1, 8, 4))])
    assert table.forwards <= 1
    wide = Table(0)
    grow(wide, [DraftRequest(0, [3], 1, Dynamic(200, 3, 4))])
    assert (wide.forwards, wide.rows) == (2, 8)


def test_what_is_missing_has_no_children() -> None:
    """Where fewer tokens may be drafted than a shape has children, the others' places stay empty,
    and so does what lies below them.
    """
    table = Table(0)
    only = table.logits.argmax(-1)
    table.logits = torch.full_like(table.logits, -math.inf)
    table.logits[torch.arange(TOKENS), only] = 0.0
    ((tree, ran),) = grow(table, [DraftRequest(0, [7, 3], 1, static((2, 2, 2)))])
    assert tree.topology == chain(3)
    path = [3]
    for _ in range(3):
        path.append(int(only[path[-1]]))
    assert list(tree.tokens) == path
    assert [node for node in ran if node >= 0] == [1, 2]


def test_requests_that_sample_end_before_those_that_do_not() -> None:
    """Distributions of the first level alone, kept of a greedy request because one beside it drew
    there, and then not of its other levels.
    """
    greedy = DraftRequest(0, [1, 2], 2, chain(4))
    drawn = DraftRequest(1, [1, 3], 2, chain(1), temperature=1.0)
    one, other = grow(Table(0), [greedy, drawn], "without_replacement", Calibration())
    assert one.tree.topology == chain(4)
    assert one.tree.q is None
    assert other.tree.q is not None
    (alone,) = grow(Table(0), [greedy], "without_replacement", Calibration())
    assert one.tree.tokens == alone.tree.tokens
