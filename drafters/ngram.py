"""Prompt look-up: the continuation of the last place where the text's ending occurred before.

No model. After Saxena's prompt lookup decoding and transformers' own; here with several
continuations where the tree has room for them, the longest matched suffix first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Dynamic, topology


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
        where they share a beginning. Deterministic siblings, no q."""
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        """Drop the request's index."""
        self._indexes.pop(request_id, None)

    def _tree(self, request: DraftRequest) -> DraftTree:
        shape, depth = request.shape, request.shape.depth
        branches = shape.width if isinstance(shape, Dynamic) else len(shape.children[0])
        index = self._indexes.setdefault(request.id, _Index(self.max_ngram, self.min_ngram))
        index.read(request.tokens)
        tokens, parents = [request.tokens[-1]], [-1]
        children: dict[tuple[int, int], int] = {}
        for start in index.continuations(branches) if depth > 0 else ():
            node = 0
            for token in request.tokens[start : start + depth]:
                if token in self._visual or (
                    (node, token) not in children and len(tokens) == len(shape)
                ):
                    break
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]
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

    def continuations(self, count: int) -> list[int]:
        """Up to ``count`` positions behind earlier occurrences of the text's suffixes: longer
        suffixes first, later occurrences first."""
        found: list[int] = []
        length = len(self._tokens)
        for size in self._sizes:
            if size <= length:
                for end in reversed(self._ends[tuple(self._tokens[length - size :])]):
                    if len(found) == count:
                        return found
                    if end < length and end not in found:
                        found.append(end)
        return found
