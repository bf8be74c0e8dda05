"""Drafters for tests: one that guesses, one that is right some of the time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Topology


class GuessingDrafter:
    """Proposes tokens at random, or with probability ``right`` the true continuation.

    The truth is looked up by prompt: ``answers`` maps a prompt (visual tokens included) to the
    whole greedy answer. Along a path that left the truth there is none.
    """

    name = "guessing"
    model_seconds = 0.0

    def __init__(
        self,
        answers: dict[tuple[int, ...], list[int]] | None = None,
        right: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.answers = answers or {}
        self.right = right
        self.rng = random.Random(seed)
        self.released: list[int] = []

    def check(self, verifier: VerifierSpec) -> None:
        self.vocab_size = verifier.vocab_size

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        self.released.append(request_id)

    def _tree(self, request: DraftRequest) -> DraftTree:
        shape = request.shape
        assert isinstance(shape, Topology)
        answer = self.answers.get(tuple(request.tokens[: request.prompt_length]), [])
        written = len(request.tokens) - request.prompt_length
        tokens, true = [request.tokens[-1]], [answer[:written] == request.tokens[-written:]]
        for node in range(1, len(shape)):
            parent, place = shape.parents[node], written + shape.depths[node] - 1
            eldest = shape.children[parent][0] == node
            known = eldest and true[parent] and place < len(answer)
            right = known and self.rng.random() < self.right
            tokens.append(answer[place] if right else self.rng.randrange(2, self.vocab_size))
            true.append(bool(right))
        q = torch.full((len(shape), self.vocab_size), 1 / self.vocab_size)
        return DraftTree(shape, tuple(tokens), q)


class BrokenDrafter(GuessingDrafter):
    """Raises in its n-th proposal."""

    name = "broken"

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        self.after -= 1
        if self.after < 0:
            raise RuntimeError("the drafter broke")
        return super().propose(batch)
