"""The text of an answer while its tokens arrive, and which of them a drafter proposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from specdec.detokenizer import Detokenizer

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
        self.num_drafted = 0
        self._text = Detokenizer(tokenizer)
        self._show = show

    @property
    def tokens(self) -> list[int]:
        """All that arrived."""
        return self._text.tokens

    def __call__(self, emission: Emission) -> None:
        """Take in a token. Usable as the `on_emission` of `specdec.generate`."""
        self.num_drafted += emission.drafted
        self._hand_on(self._text.add(emission.token), emission.drafted)

    def end(self) -> None:
        """Hand on what is left of an answer that ended inside a character."""
        self._hand_on(self._text.end(), drafted=False)

    def _hand_on(self, text: str, drafted: bool) -> None:
        if text:
            self._show(Piece(text, drafted))
