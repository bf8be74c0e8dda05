"""Which tokens of a vocabulary are guarded, by what they read like.

:mod:`specdec.guards` says what is promised. Knows texts of tokens, not the state of an answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from specdec import guard_words
from specdec.guard_state import fold, is_digit, is_letter, is_unspaced
from specdec.token_texts import NOT_TEXT, REPLACEMENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Texts = Mapping[int, str | bytes]

_QUOTATION_MARKS: Final = frozenset("\N{LEFT SINGLE QUOTATION MARK}").union(
    *guard_words.QUOTES.items()
)
# An apostrophe that is none: no letter behind it, or a sign before it.
_QUOTE: Final = re.compile(r"['’](?![^\W\d_])|(?<=[\W\d_])['’]")
_MINUS: Final = re.compile(r"[^\w-]-$")
_TELLING: Final = 3  # letters from which on a piece of a word says which one it is


def guarded_texts(texts: Texts, names: Collection[str], words: Collection[str]) -> set[int]:
    """Tokens that are guarded for what they read like.

    Args:
        texts: of all tokens, as :func:`specdec.token_texts.token_texts` gives them.
        names: of :data:`specdec.guards.GUARDS`.
        words: guarded ones, folded.
    """
    whole = {token: text for token, text in texts.items() if isinstance(text, str)}
    alphabet = set().union(*whole.values())
    signs = {sign for sign in alphabet if _is_guarded(sign, names)} | {NOT_TEXT, REPLACEMENT}
    holds = _matcher(words, alphabet)
    digits, quotes = "digits" in names, "quotes" in names
    guarded = set(texts) - set(whole)  # parts of characters
    for token, text in whole.items():
        if (
            not text
            or not signs.isdisjoint(text)
            or (digits and _MINUS.search(text))
            or (quotes and _QUOTE.search(text))
            or (words and (_begins_inside(text) or holds(fold(text))))
        ):
            guarded.add(token)
    return guarded


class SplitWords(NamedTuple):
    """The guarded words that a tokenizer splits.

    Attributes:
        pieces: their pieces, as far as those are guarded wherever they stand.
        begun: what of a word or phrase must be there for the rest of it to be guarded: folded, in
            any case; in capitals, in capitals only.
    """

    pieces: set[int]
    begun: frozenset[str]


def split_words(
    tokenizer: PreTrainedTokenizerBase, texts: Texts, words: Collection[str]
) -> SplitWords:
    """How the tokenizer splits ``words``: at the beginning of a text and behind a blank, as given,
    in small letters, capitalised and in capitals.
    """
    spellings = [
        (fold(word), blank + cased)
        for word in sorted(words)
        for cased in {word, fold(word), word.title(), word.capitalize(), word.upper()}
        for blank in ("", " ")
    ]
    guarded, begun = set[int](), set[str]()
    for (word, spelling), tokens in zip(
        spellings, encode(tokenizer, [spelling for _, spelling in spellings]), strict=True
    ):
        pieces = [(token, texts.get(token, NOT_TEXT)) for token in tokens]
        pieces = [(token, text) for token, text in pieces if text.strip()]
        if len(pieces) < 2:
            continue
        (start, first), *others = pieces
        if _is_telling(first) or is_unspaced(spelling.strip()[0]):
            guarded.add(start)
        guarded.update(token for token, text in others if _is_telling(text))
        least = len(first.strip()) if isinstance(first, str) else 1
        begun.update(_beginnings(word.upper() if spelling.isupper() else word, least))
    # Behind a whole word, what continues it is guarded as that.
    return SplitWords(guarded, frozenset(begun).difference(map(fold, words)))


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Their tokens, without special ones around them."""
    if not texts:
        return []
    tokens: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tokens


def _is_guarded(sign: str, names: Collection[str]) -> bool:
    """Whether every token with this sign is guarded."""
    category = unicodedata.category(sign)
    return (
        ("digits" in names and (is_digit(sign) or category == "Sm"))
        or ("units" in names and (category == "Sc" or sign in guard_words.UNIT_SIGNS))
        or ("quotes" in names and sign in _QUOTATION_MARKS)
        or ("markup" in names and sign in guard_words.MARKUP)
    )


def _matcher(words: Collection[str], alphabet: Iterable[str]) -> Callable[[str], bool]:
    """Says whether a folded text holds one of ``words`` whole, given all characters there are."""
    letters = {letter for sign in alphabet for letter in fold(sign) if is_letter(letter)}
    spaced = "".join(sorted(letter for letter in letters if not is_unspaced(letter)))
    pattern = re.compile(f"[a{spaced}]+(?:'[a{spaced}]+)*")  # no class may be empty
    plain = frozenset(word for word in words if pattern.fullmatch(word))
    # Phrases, and words of scripts that set no blanks.
    others = sorted(set(words) - plain)

    def holds(text: str) -> bool:
        return not plain.isdisjoint(pattern.findall(text)) or any(word in text for word in others)

    return holds


def _begins_inside(text: str) -> bool:
    """Whether a token continues a word."""
    first, second = text[0], text[1:2]
    return first.islower() or first in "'’" or (first.isupper() and second.isupper())


def _is_telling(piece: str | bytes) -> bool:
    """Whether a piece of a word says which one it is."""
    text = fold(piece).strip() if isinstance(piece, str) else ""
    return len(text) >= _TELLING and text not in guard_words.EVERYDAY


def _beginnings(word: str, least: int) -> Iterator[str]:
    """What there is of a word before it is complete, from ``least`` characters on."""
    for end in range(least, len(word)):
        start = word[:end]
        # Everyday words and small letters say nothing; the letters behind them are guarded anyway.
        common = fold(start).strip() in guard_words.EVERYDAY or (end == 1 and start.islower())
        if not common:
            yield start
