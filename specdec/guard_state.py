"""What is open behind a text: a word, a number, a quoted string, brackets, a row of a table.

A fold over characters, so that it does not matter which tokens a text came in. Knows characters
only, not what is to be guarded.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from specdec.guard_words import APOSTROPHES, BRACKETS, CARDINALS, GLUE, QUOTES

# Characters without anything opening or closing, behind which what is open is given up.
LINE: Final = 200  # quoted strings, (...) and <...>
BLOCK: Final = 2000  # {...} and [...]
FENCE: Final = "`"  # among brackets: a block of code
DEEPEST: Final = 64


class GuardState(NamedTuple):
    """What is open behind the answer so far; small, immutable and hashable. Its parts are not part
    of the interface.

    Attributes:
        tail: the last characters, as far back as guarded words can reach, blanks in a row as one.
        last: the last two characters.
        number: a number came last, or a first word behind it is under way.
        run: the characters since the last blank are a path, an address, a key and its value.
        row: the line has cells.
        quote: what can close the quoted string; empty outside.
        brackets: what is open, outermost first; "#" is a "(" with a digit in it.
        since: characters since something opened or closed, while something is open.
        pending: bytes of a character that is not complete.
    """

    tail: str = " "
    last: str = ""
    number: bool = False
    run: bool = False
    row: bool = False
    quote: str = ""
    brackets: str = ""
    since: int = 0
    pending: bytes = b""

    @property
    def word(self) -> str:
        """The letters at the end."""
        start = len(self.tail)
        while start and is_letter(self.tail[start - 1]):
            start -= 1
        return self.tail[start:]


def behind(state: GuardState, char: str, keep: int) -> GuardState:
    """The state behind one more character.

    Args:
        char: one character.
        keep: length of ``tail``.
    """
    tail, number = _words(state, char, keep)
    quote, brackets, since = _open(state, char)
    return GuardState(
        tail=tail,
        last=(state.last + char)[-2:],
        number=number,
        run=not char.isspace() and (state.run or char in GLUE),
        row=char != "\n" and (state.row or char == "|"),
        quote=quote,
        brackets=brackets,
        since=since,
    )


def word_starts(text: str) -> Iterator[int]:
    """Where a word may begin in it, its own beginning aside."""
    inside = False  # behind a letter, or an apostrophe behind one
    for at, char in enumerate(text):
        letter = is_letter(char)
        if at and (not (inside and letter) or is_unspaced(text[at - 1]) or is_unspaced(char)):
            yield at
        inside = letter or (inside and char in "'’")


def _words(state: GuardState, char: str, keep: int) -> tuple[str, bool]:
    """The new ``tail`` and ``number``."""
    blank = char.isspace()
    tail = state.tail
    if not (blank and tail[-1:] == " "):
        tail = (tail + (" " if blank else char))[-keep:]
    if is_letter(char):
        return tail, state.number
    if is_digit(char):
        return tail, True
    # A number reaches over blanks and hyphens to the word behind it.
    word = state.word
    number = (state.number and not word) or fold(word) in CARDINALS
    return tail, number and ((blank and char != "\n") or char in "-\u2010\u2011")


def _open(state: GuardState, char: str) -> tuple[str, str, int]:
    """The new ``quote``, ``brackets`` and ``since``."""
    quote, brackets, last = state.quote, state.brackets, state.last
    since = state.since + 1 if quote or brackets else 0
    if char == "`" and last == "``":
        return "", "" if FENCE in brackets else brackets + FENCE, 0
    if FENCE in brackets:
        return quote, brackets, 0
    if char == "\n":
        kept = "" if last[-1:] == "\n" else _blocks(brackets)
        return "", kept, since if kept else 0
    single = quote in APOSTROPHES.values()
    if single and last[-1:] == quote and state.since > 0 and not is_letter(char):
        quote, since = "", 0  # the last character was no apostrophe, but the end
    if quote:
        if char in quote and not single and (last[-1:] != "\\" or last == "\\\\"):
            return "", brackets, 0
    elif char in QUOTES and not (char == '"' and is_digit(last[-1:])):
        return QUOTES[char], brackets, 0
    elif char in APOSTROPHES and (not last or last[-1].isspace() or last[-1] in '([{<=:,-–—/"“'):
        return APOSTROPHES[char], brackets, 0
    elif char in "{[(" or (last[-1:] == "<" and (is_letter(char) or char in "/!|?")):
        opened = char if char in "{[(" else "<"
        return quote, (brackets + opened)[:DEEPEST], 0
    elif char in BRACKETS:
        at = max(brackets.rfind(opener) for opener in BRACKETS[char])
        if at >= 0:
            return quote, brackets[:at], 0
    elif is_digit(char) and brackets[-1:] == "(":
        return quote, brackets[:-1] + "#", 0
    if since > LINE and (since > BLOCK or not _blocks(brackets)):
        return "", "", 0
    return quote, brackets, since


def _blocks(brackets: str) -> str:
    """Those of them that may reach over lines."""
    return "".join(opener for opener in brackets if opener in "{[")


def fold(text: str) -> str:
    """Without differences of case, and with one kind of apostrophe."""
    return text.casefold().replace("’", "'")


def is_letter(char: str) -> bool:
    """A letter, or a mark on one."""
    return char.isalpha() or unicodedata.category(char)[0] == "M"


def is_digit(char: str) -> bool:
    """A digit, a fraction or a number sign of any script; not a word, as Chinese numerals are."""
    return char != "" and unicodedata.category(char)[0] == "N"


def is_unspaced(char: str) -> bool:
    """Of a script that sets no blanks between words: each character may be one."""
    return (
        "\u0e00" <= char <= "\u0eff"  # Thai, Lao
        or "\u1000" <= char <= "\u109f"  # Burmese
        or "\u1780" <= char <= "\u17ff"  # Khmer
        or "\u3040" <= char <= "\u30ff"  # Kana
        or "\u3400" <= char <= "\u9fff"  # Han
        or "\uf900" <= char <= "\ufaff"
        or "\U00020000" <= char <= "\U0003ffff"
    )
