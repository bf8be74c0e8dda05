"""Text of tokens that arrive one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from specdec.detokenizer import Detokenizer


class Bytes:
    """A tokenizer whose tokens are bytes, and some of two bytes that belong to two characters."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, tokens: list[int], **_: Any) -> str:
        self.decoded += len(tokens)
        return b"".join(t.to_bytes(1 if t < 256 else 2, "big") for t in tokens).decode(
            errors="replace"
        )


@pytest.mark.parametrize("seed", range(4))
def test_together_they_are_the_text_of_all(seed: int) -> None:
    """A piece of a character, or one that is said twice or never, in text that is not valid too."""
    rng = random.Random(seed)
    text = "".join(rng.choices("ab €é😀\N{REPLACEMENT CHARACTER}", k=200)).encode()
    broken = bytes(rng.choices(b"\x80\xe2\xf0a", k=100))
    tokenizer: Any = Bytes()
    detokenizer = Detokenizer(tokenizer)
    tokens = [*text, *broken, ord(".")]
    pairs = [
        int.from_bytes(bytes(pair), "big") for pair in zip(text[::2], text[1::2], strict=False)
    ]
    for each in (tokens, [*(p for p in pairs if p > 255), ord(".")]):
        detokenizer = Detokenizer(tokenizer)
        said = [detokenizer.add(token) for token in each]
        assert "".join(said) + detokenizer.end() == tokenizer.decode(each)


def test_text_that_never_decodes_takes_no_longer_than_other() -> None:
    """Everything decoded again at every token: a client who asks for the same byte ever again
    would hold up everybody else.
    """
    tokenizer: Any = Bytes()
    detokenizer = Detokenizer(tokenizer)
    said = [detokenizer.add(0x80) for _ in range(4096)]
    assert tokenizer.decoded < 40 * 4096
    assert "".join(said) + detokenizer.end() == "\N{REPLACEMENT CHARACTER}" * 4096
