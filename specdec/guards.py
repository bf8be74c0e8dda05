"""Guards: where relaxed acceptance must leave the target alone, whatever an estimator says.

Two things are guarded: *tokens*, which the target neither gives up for others nor takes for
others, and *places*, where the target's own token counts, whichever it is (``closed``).

``digits``
    Tokens: a digit of any script, a mathematical sign, a minus behind a blank or a sign, a number
    word. Places: right behind a digit or a number word.
``negation``
    Tokens: words that negate, join logically or quantify (:data:`specdec.guard_words.NEGATION`).
``units``
    Tokens: a unit's own word or sign, a currency sign. Places: behind a number, blanks and hyphens
    included, until the word there can be no unit: "in", "m" and "second" are units only there.
``quotes``
    Tokens: with a quotation mark. Places: within “...”, "...", «...», `...` and '...' that opens
    where a word begins, to the end of the line or for 200 characters at most.
``markup``
    Tokens: with a sign of JSON, HTML, Markdown, LaTeX or paths; a colon alone is none. Places:
    within {...}, [...], <...>, and (...) from its first digit on; within a block of code; in a
    line of a table, behind its first ``|``; behind one of ``/\\_=#@<``, up to the next blank. An
    unclosed { or [ ends with the paragraph or after 2000 characters in which nothing opens or
    closes, ( and < with the line or after 200, a block of code never.

Special tokens, those that end an answer, ids without a text and parts of a character are guarded
always.

**Words**, the built-in ones and those of the user, are whole and in any case: "nothing" is one,
"note" is not. Where any are guarded,

- a token that holds one whole is guarded, be it at the beginning of a text, behind a blank or
  behind a sign: "no", " No", "NO", "-no";
- a token that begins inside a word is guarded, that is with a small letter, two capitals or an
  apostrophe and no blank before it: which word a begun one becomes is the target's own choice. So
  relaxing never completes a guarded word ("with" + "out"), nor cuts it short or makes another of
  it ("not" + "able");
- of a word that the tokenizer splits, what comes behind the first piece is guarded; and each piece
  wherever it stands, if it has three letters or more and is no everyday word
  (:data:`specdec.guard_words.EVERYDAY`). Phrases are treated alike;
- in scripts without blanks between words, every character may begin a word, and any first piece
  is guarded.

Left open: the first piece of a split word if it is short or an everyday word ("with" may give way
where "without" would have come of it); behind such a piece, a short one that begins with a capital
letter ("i" + "OS"); and capital or caseless letters split in a way in which the tokenizer never
splits them. A tokenizer that drops blanks (WordPiece) hides single quotes, and where a path or an
address goes on.

The built-in words are English. For more, pass ``words``, or inherit from :class:`Guards`, set
``tokens`` and extend ``closed``. Knows nothing of models or of acceptance.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

import torch

from specdec import guard_words
from specdec.guard_state import GuardState, behind, fold, is_digit, word_starts
from specdec.guard_tokens import encode, guarded_texts, split_words
from specdec.token_texts import NOT_TEXT, token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["GUARDS", "GuardState", "Guards"]

GUARDS: Final[tuple[str, ...]] = ("digits", "negation", "units", "quotes", "markup")

_WORDS: Final = {
    "digits": guard_words.NUMBERS,
    "negation": guard_words.NEGATION,
    "units": guard_words.UNITS,
}
_UNIT_STARTS: Final = frozenset(
    unit[:end] for unit in guard_words.UNITS_BEHIND_NUMBERS for end in range(len(unit) + 1)
)
_STRICT_BRACKETS: Final = frozenset("{[<#`")


class Guards:
    """The guards of one tokenizer. Holds nothing that changes; what is open behind an answer is a
    state of the caller's.

    Args:
        tokenizer: whose tokens they are; ``None`` if there are neither names nor words: then only
            ``stop_tokens`` are guarded.
        vocab_size: V, the width of the verifier's logits.
        names: of :data:`GUARDS`.
        words: words or phrases of the user's own, of any language.
        stop_tokens: tokens that end an answer; those beyond V are ignored.

    Attributes:
        tokens: bool ``(V,)`` on the CPU: tokens that are never relaxed into or out of.
        start: the state behind an empty answer.

    Raises:
        ValueError: an unknown name, or no tokenizer where one is needed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        vocab_size: int,
        names: Collection[str] = GUARDS,
        *,
        words: Iterable[str] = (),
        stop_tokens: Iterable[int] = (),
    ) -> None:
        if unknown := sorted(set(names) - set(GUARDS)):
            raise ValueError(f"unknown guards {', '.join(unknown)}; known: {', '.join(GUARDS)}")
        own = [" ".join(word.split()) for word in words if word.strip()]
        if tokenizer is None and (names or own):
            raise ValueError("guards are built from the tokenizer, and none was given")
        self._names = frozenset(names)
        self._texts: dict[int, str | bytes] = {}
        self._begun: frozenset[str] = frozenset()
        self._keep = max(map(len, guard_words.CARDINALS)) + 1
        self.start = GuardState()
        self.tokens = torch.zeros(vocab_size, dtype=torch.bool)
        if tokenizer is not None:
            self._read(tokenizer, own)
        self.tokens[[token for token in stop_tokens if 0 <= token < vocab_size]] = True

    def _read(self, tokenizer: PreTrainedTokenizerBase, own: list[str]) -> None:
        self._texts = texts = token_texts(tokenizer)
        # The tokenizer may write a word in its own way: without accents, with other blanks.
        for tokens in encode(tokenizer, [f" {word}" for word in own]):
            read = [texts.get(token, NOT_TEXT) for token in tokens]
            whole = "".join(text for text in read if isinstance(text, str)).strip()
            if NOT_TEXT not in whole and all(isinstance(text, str) for text in read):
                own = [*own, whole]
        built_in = frozenset[str]().union(*(_WORDS.get(name, ()) for name in self._names))
        words = built_in | {fold(word) for word in own}
        pieces, self._begun = split_words(tokenizer, texts, built_in.union(own))
        self._keep = max(map(len, words | guard_words.CARDINALS)) + 1
        free = set(texts) - guarded_texts(texts, self._names, words) - pieces
        self.tokens[:] = True
        self.tokens[[token for token in free if token < len(self.tokens)]] = False

    def advance(self, state: GuardState, token: int) -> GuardState:
        """The state behind one more token of the answer; takes as long as the token is."""
        text = self._texts.get(token)
        if not text:
            return state
        pending = b""
        if isinstance(text, bytes) or state.pending:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.setstate((state.pending, 0))
            text = decoder.decode(text if isinstance(text, bytes) else text.encode())
            pending = bytes(decoder.getstate()[0])
        for char in text:
            state = behind(state, char, self._keep)
        return state if state.pending == pending else state._replace(pending=pending)

    def closed(self, state: GuardState) -> bool:
        """Whether the next token is guarded, whichever it is."""
        names = self._names
        if state.pending or ("quotes" in names and state.quote):
            return True
        if "markup" in names and (
            state.run or state.row or not _STRICT_BRACKETS.isdisjoint(state.brackets)
        ):
            return True
        word = fold(state.word)
        if ("digits" in names or "units" in names) and (
            is_digit(state.last[-1:]) or word in guard_words.CARDINALS
        ):
            return True
        if "units" in names and state.number and word in _UNIT_STARTS:
            return True
        return self._begins_word(state.tail)

    def _begins_word(self, tail: str) -> bool:
        """Whether it ends with what a guarded word or phrase begins with."""
        begun = self._begun
        if not begun:
            return False
        ends = [at for at in range(1, len(tail)) if tail[at:] in begun or fold(tail[at:]) in begun]
        # Few do, so where words begin is asked last.
        return bool(ends) and not set(word_starts(tail)).isdisjoint(ends)
