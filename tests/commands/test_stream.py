"""Text that arrives token by token is the text of all tokens together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specdec.commands.stream import Piece, Pieces
from specdec.engine import Emission
from support import processors


def bytes_tokenizer() -> PreTrainedTokenizerBase:
    """A token per byte: a character outside of ASCII takes several."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


BYTES = bytes_tokenizer()
WORDS = processors.build().tokenizer


def streamed(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[Piece]:
    shown: list[Piece] = []
    pieces = Pieces(tokenizer, shown.append)
    for index, token in enumerate(tokens):
        pieces(Emission(0, token, index % 3 > 0))
    pieces.end()
    assert pieces.tokens == list(tokens)
    assert pieces.num_drafted == sum(index % 3 > 0 for index in range(len(tokens)))
    return shown


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=40))
def test_characters_of_several_tokens(text: str) -> None:
    """Decoding each token alone would show replacement characters."""
    pieces = streamed(BYTES, BYTES(text)["input_ids"])
    assert joined(pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_answer_that_ends_inside_a_character() -> None:
    tokens = BYTES("né")["input_ids"][:-1]
    assert joined(streamed(BYTES, tokens)) == BYTES.decode(tokens)


def test_spaces_between_words() -> None:
    """A word's leading space exists only next to the word before it."""
    tokens = [5, 6, 7, 8]
    assert joined(streamed(WORDS, tokens)) == WORDS.decode(tokens) == "w5 w6 w7 w8"


def test_origin_goes_with_the_text() -> None:
    assert streamed(WORDS, [5, 6]) == [Piece("w5", False), Piece(" w6", True)]


@pytest.mark.parametrize("tokens", [[], [WORDS.eos_token_id]])
def test_special_tokens_say_nothing(tokens: list[int]) -> None:
    assert streamed(WORDS, tokens) == []
