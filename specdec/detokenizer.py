"""The text of tokens that arrive one by one. Knows nothing of where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_OPEN = "\N{REPLACEMENT CHARACTER}"  # what a character that is not complete decodes to
_LONG = 16  # tokens: more than are ever open of text that is valid


class Detokenizer:
    """Gives the text that each token adds; together that is the text of all of them.

    A token that ends inside a character adds nothing; the one that completes it adds the whole.

    Args:
        tokenizer: decodes; special tokens are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        # What is new in the text of tokens [start, end) shows against that of [start, shown): a
        # token's text depends on the one before it, so a few stay in the window.
        self._start = self._shown = 0

    def add(self, token: int) -> str:
        """What ``token`` adds."""
        self.tokens.append(token)
        count = len(self.tokens)
        # Where nothing has become a character for long, the last tokens say whether it goes on.
        if count - self._start > _LONG and self._decode(count, since=count - _LONG).endswith(_OPEN):
            return ""
        text = self._decode(count)
        return "" if text.endswith(_OPEN) else self._advance(text)

    def end(self) -> str:
        """What is left of a text that ended inside a character."""
        return self._advance(self._decode(len(self.tokens)))

    def _advance(self, text: str) -> str:
        added = text[len(self._decode(self._shown)) :]
        self._start, self._shown = self._shown, len(self.tokens)
        return added

    def _decode(self, end: int, since: int | None = None) -> str:
        tokens = self.tokens[self._start if since is None else since : end]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
