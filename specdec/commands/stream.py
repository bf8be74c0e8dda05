"""The text of an answer while its tokens arrive, and which of them a drafter proposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from specdec.engine import Emission


class Piece(NamedTuple):
    """Some text of an answer. `drafted`: a drafter proposed it and the verifier kept it."""

    text: str
    drafted: bool


class Pieces:
    """Decodes emissions one by one and hands on the text that each of them adds.

    A token that ends inside a character adds nothing; the one that completes it adds the whole.

    Args:
        tokenizer: decodes; special tokens are left out.
        show: called with every piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[Piece], None]) -> None:
        self.tokens: list[int] = []
        self.num_drafted = 0
        self._tokenizer = tokenizer
        self._show = show
        # What is new in the text of tokens [start, end) shows against that of [start, shown): a
        # token's text depends on the one before it, so a few stay in the window.
        self._start = self._shown = 0

    def __call__(self, emission: Emission) -> None:
        """Take in a token. Usable as the `on_emission` of `specdec.generate`."""
        self.tokens.append(emission.token)
        self.num_drafted += emission.drafted
        text = self._decode(len(self.tokens))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._advance(text, emission.drafted)

    def end(self) -> None:
        """Hand on what is left of an answer that ended inside a character."""
        self._advance(self._decode(len(self.tokens)), drafted=False)

    def _advance(self, text: str, drafted: bool) -> None:
        added = text[len(self._decode(self._shown)) :]
        self._start, self._shown = self._shown, len(self.tokens)
        if added:
            self._show(Piece(added, drafted))

    def _decode(self, end: int) -> str:
        tokens = self.tokens[self._start : end]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
