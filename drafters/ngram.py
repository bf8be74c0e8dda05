"""Prompt look-up: the continuation of the last place where the text's ending occurred before.

No model. After Saxena's prompt lookup decoding and transformers' own; here with several
continuations where the tree has room for them, the longest matched suffix first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import takewhile

from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Dynamic, topology

_LOOKS = 8  # places that are looked at for each continuation that is wanted


class NgramDrafter:
    """Drafts by looking the text's last n-gram up in the prompt and the output so far.

    Args:
        max_ngram: longest suffix that is looked up.
        min_ngram: shortest.
    """

    name = "ngram"
    model_seconds = 0.0

    def __init__(self, max_ngram: int = 4, min_ngram: int = 1) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self.max_ngram = max_ngram
        self.min_ngram = min_ngram
        self._visual: frozenset[int] = frozenset()
        self._indexes: dict[int, _Index] = {}

    @property
    def identity(self) -> Hashable:
        """One is as good as another with the same sizes."""
        return self.name, self.max_ngram, self.min_ngram

    def check(self, verifier: VerifierSpec) -> None:
        """Fits every verifier; only notes which tokens are visual: they are never drafted."""
        self._visual = verifier.visual_token_ids

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One tree per request: as many continuations as the shape's root has children, merged
        where they share a beginning. Of the nodes that are left, each takes half, the last one all.
        Deterministic siblings, no q.
        """
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        """Drop the request's index."""
        self._indexes.pop(request_id, None)

    def _tree(self, request: DraftRequest) -> DraftTree:
        shape, depth = request.shape, request.shape.depth
        branches = shape.width if isinstance(shape, Dynamic) else len(shape.children[0])
        index = self._indexes.get(request.id)
        if index is None:
            index = self._indexes[request.id] = _Index(self.max_ngram, self.min_ngram)
        index.read(request.tokens)
        tokens, parents = [request.tokens[-1]], [-1]
        children: dict[tuple[int, int], int] = {}

        def grow(run: Sequence[int], most: int) -> None:
            """Add a continuation, at most so many nodes of it that are new."""
            node = 0
            for token in run:
                if (node, token) not in children:
                    if most <= 0:
                        return
                    most -= 1
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]

        runs = index.continuations(branches, depth, self._visual) if len(shape) > 1 else []
        for place, run in enumerate(runs):
            left = len(shape) - len(tokens)
            grow(run, left if place == len(runs) - 1 else (left + 1) // 2)
        for run in runs:  # what shorter ones have left
            grow(run, len(shape) - len(tokens))
        return DraftTree(topology(tuple(parents)), tuple(tokens))


class _Index:
    """Where each n-gram of a growing text ended, most recent last."""

    def __init__(self, max_ngram: int, min_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._tokens: Sequence[int] = ()
        self._read = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Take in what was appended to ``tokens`` since the last call."""
        self._tokens = tokens
        for end in range(self._read + 1, len(tokens) + 1):
            for size in self._sizes:
                if size <= end:
                    self._ends.setdefault(tuple(tokens[end - size : end]), []).append(end)
        self._read = len(tokens)

    def continuations(self, count: int, depth: int, never: frozenset[int]) -> list[Sequence[int]]:
        """Up to ``count`` different continuations of earlier occurrences of the text's suffixes, of
        up to ``depth`` tokens, each as far as the first that is ``never`` drafted: longer suffixes
        first, later occurrences first. Looks at so many occurrences at most, however long the text.
        """
        found: list[Sequence[int]] = []
        length, looks = len(self._tokens), _LOOKS * count
        seen: set[int] = set()
        for size in self._sizes:
            if size > length:
                continue
            for end in reversed(self._ends[tuple(self._tokens[length - size :])]):
                if len(found) == count or len(seen) == looks:
                    return found
                if end == length or end in seen:
                    continue
                seen.add(end)
                run = list(takewhile(lambda t: t not in never, self._tokens[end : end + depth]))
                if run and all(run != other[: len(run)] for other in found):
                    found.append(run)
        return found
