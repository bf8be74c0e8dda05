"""What each token of a vocabulary reads like behind another word.

Knows tokenizers by what they decode to, not by their kind; what the texts are for is somebody
else's business.
"""

from __future__ import annotations

import re
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_TEXT: Final = "\ufffc"  # stands for a special token
REPLACEMENT: Final = "\ufffd"  # what bytes that are no character decode to

# By the tokenizer's id, as tokenizers need not be hashable; an entry goes with its tokenizer.
_READ: dict[int, tuple[int, dict[int, str | bytes]]] = {}

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF: Final = _byte_of()


def token_texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, str | bytes]:
    """The text of every token, by its id; read once per tokenizer, and shared: not to be changed.

    A text begins with a blank if the token begins a word. Special tokens are ``NOT_TEXT``; a token
    that ends or begins within a character is its bytes.
    """
    size = len(tokenizer)
    key = id(tokenizer)
    if key not in _READ:
        weakref.finalize(tokenizer, _READ.pop, key, None)
    if _READ.get(key, (-1, {}))[0] != size:
        _READ[key] = size, _read(tokenizer)
    return _READ[key][1]


def _read(tokenizer: PreTrainedTokenizerBase) -> dict[int, str | bytes]:
    pieces = {token: piece for piece, token in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    ids = [token for token in pieces if token not in special]
    # Any token that reads as text stands in for the word before.
    before = tokenizer.encode("a", add_special_tokens=False)[-1:]
    anchor = _decode(tokenizer, [before])[0]
    texts: dict[int, str | bytes] = dict.fromkeys(special, NOT_TEXT)
    for token, text in zip(ids, _decode(tokenizer, [[*before, i] for i in ids]), strict=True):
        texts[token] = _text(pieces[token], text.removeprefix(anchor))
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(
        rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return texts


def _text(piece: str, text: str) -> str | bytes:
    if REPLACEMENT in text:
        if match := _BYTE_PIECE.fullmatch(piece):
            return bytes.fromhex(match[1])
        if all(letter in _BYTE_OF for letter in piece):
            return bytes(_BYTE_OF[letter] for letter in piece)
    # WordPiece sets a blank before whatever does not continue a word, signs among it.
    if text[:1] == " " and text[1:] == piece and not any(map(str.isalnum, piece)):
        return piece
    return text
