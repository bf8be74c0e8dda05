"""Decoding at an acceptance that is given, with models whose weights are random.

The verifier computes everything and then says what was known beforehand: behind a word always the
next word of its vocabulary. So a drafter can be right as often as it is told to, at any precision
and however near the logits of noise are to one another. Knows nothing of time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from specdec.eval.projection import Acceptance
from specdec.interfaces import (
    Drafter,
    DraftRequest,
    Piece,
    Prefilled,
    Prompt,
    Reads,
    Verified,
    VerifierSpec,
    reads_of,
)
from specdec.tree import DraftTree, Topology
from specdec.verifiers import TransformersVerifier

_SURE = 1e4  # a logit above all others, in any dtype


def successor(token: int, size: int) -> int:
    """What is said behind a token: words are the second quarter of ``size`` tokens."""
    first = size // 4
    return first + (token + 1) % first


class ReplayedVerifier(TransformersVerifier):
    """A verifier that says :func:`successor` behind every token, whatever its model computes."""

    def prefill(self, prompt: Prompt, room: int, rows: Sequence[int] | None = None) -> Prefilled:
        """As for any verifier."""
        out = super().prefill(prompt, room, rows)
        last = prompt.input_ids[:, -1].tolist()
        chosen = range(len(last)) if rows is None else rows
        return out._replace(logits=self._lead(out.logits, [last[row] for row in chosen]))

    def verify(
        self, handles: Sequence[Any], trees: Sequence[DraftTree], pieces: Sequence[Piece] = ()
    ) -> Verified:
        """As for any verifier."""
        out = super().verify(handles, trees, pieces)
        tokens = list(chain.from_iterable(tree.tokens for tree in trees))
        return out._replace(logits=self._lead(out.logits, tokens))

    def _lead(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        said = torch.tensor([successor(token, self.spec.vocab_size) for token in tokens])
        there = said.to(logits.device, non_blocking=True)[:, None]
        return logits.scatter(1, there, _SURE)


class ReplayingDrafter:
    """Drafts for a :class:`ReplayedVerifier`: right at the acceptance that is given, by chance.

    Args:
        acceptance: how often, by position along the eldest children; their siblings are wrong.
        behind: a drafter that proposes as well, for the time it takes; nobody looks at what.
        seed: of the chance.
    """

    name = "replayed"

    def __init__(
        self, acceptance: Acceptance, behind: Drafter | None = None, seed: int = 0
    ) -> None:
        self._acceptance = acceptance
        self._behind = behind
        self._random = random.Random(seed)
        self._size = 0

    @property
    def model_seconds(self) -> float:
        """Of the drafter behind."""
        return 0.0 if self._behind is None else self._behind.model_seconds

    @property
    def reads(self) -> Reads:
        """What the drafter behind reads."""
        return reads_of(self._behind)

    def check(self, verifier: VerifierSpec) -> None:
        """Note how large the vocabulary is."""
        self._size = verifier.vocab_size
        if self._behind is not None:
            self._behind.check(verifier)

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """Trees of the shapes that are asked for."""
        if self._behind is not None:
            self._behind.propose(batch)
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        """Have the drafter behind forget the request."""
        if self._behind is not None:
            self._behind.release(request_id)

    def _tree(self, request: DraftRequest) -> DraftTree:
        shape = request.shape
        assert isinstance(shape, Topology), "a replayed tree has a shape known beforehand"
        tokens, right = [request.tokens[-1]], [True]
        for node in range(1, len(shape)):
            parent = shape.parents[node]
            place = shape.children[parent].index(node)
            truth = successor(tokens[parent], self._size)
            good = place == 0 and right[parent] and self._accepted(shape.depths[node])
            # Wrong ones lie behind the truth, each sibling at another place.
            tokens.append(truth if good else self._beyond(truth, 1 + place))
            right.append(good)
        return DraftTree(shape, tuple(tokens))

    def _accepted(self, position: int) -> bool:
        before = self._acceptance.at(position - 1) if position > 1 else 1.0
        return self._random.random() * before < self._acceptance.at(position)

    def _beyond(self, token: int, by: int) -> int:
        for _ in range(by):
            token = successor(token, self._size)
        return token
