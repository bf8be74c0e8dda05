"""Text that is handed on only when no stop string can begin in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.demo import Demo
from specdec.engine import Emission
from specdec.serving.text import AnswerText, StopTexts


class Letters:
    """A tokenizer whose tokens are two letters of `ab`, or a byte of a character of two."""

    all_special_ids = (99,)
    bytes_of = (b"a", b"b", b"ab", b"ba", "é".encode()[:1], "é".encode()[1:])

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        said = b"".join(self.bytes_of[token] for token in tokens if token != 99)
        return said.decode("utf-8", "replace")


def told(tokens: Sequence[int], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """What is handed on for each token, and at the end."""
    text = AnswerText(Letters(), stops)  # type: ignore[arg-type]  # all that is needed of one
    pieces = [text.take(Emission(0, token, False)) for token in tokens]
    handed_on = ["".join(piece.text for piece in each) for each in [*pieces, text.end()]]
    return handed_on, text.stopped


@given(
    st.lists(st.integers(0, 3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_it_ends_before_the_first_stop_string(tokens: list[int], stops: list[str]) -> None:
    """Would catch a stop string that is missed across tokens, a later one that wins, text beyond
    it, and text that is held back though no stop string can begin in it.
    """
    whole = "".join(Letters.bytes_of[token].decode() for token in tokens)
    ends = sorted(at for stop in stops if (at := whole.find(stop)) >= 0)
    handed_on, stopped = told(tokens, stops)
    # A stop string that is complete earlier counts, even if another one began before it.
    said = "".join(handed_on)
    assert whole.startswith(said)
    assert (stopped is None) == (not ends)
    if stopped is None:
        assert said == whole
    else:
        assert whole[len(said) :].startswith(stopped)
        assert not any(stop in said for stop in stops)


@given(st.lists(st.integers(0, 5), max_size=12))
def test_without_stop_strings_it_is_all_of_the_text(tokens: list[int]) -> None:
    """Would catch text that is lost or doubled around characters of several tokens."""
    handed_on, _ = told(tokens, ())
    assert "".join(handed_on) == Letters().decode(tokens, skip_special_tokens=True)


def test_what_may_begin_a_stop_string_waits() -> None:
    """Would catch the beginning of a stop string being sent: "b" waits for what follows it."""
    assert told([0, 1, 0, 1, 1], ["bb"]) == (["a", "", "ba", "", "", ""], "bb")


def test_tokens_of_one_character_come_together() -> None:
    """Would catch logprobs of a token being lost that adds no text by itself."""
    text = AnswerText(Letters())  # type: ignore[arg-type]  # all that is needed of one
    assert text.take(Emission(0, 4, False)) == []
    assert [piece.text for piece in text.take(Emission(0, 5, False))] == ["", "é"]
    assert text.take(Emission(0, 99, False)) == []
    text.take(Emission(0, 4, False))
    assert [piece.text for piece in text.end()] == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize("stop", ["photo", "oto sh", "nowhere"])
def test_an_answer_ends_with_the_token_that_completes_it(demo: Demo, stop: str) -> None:
    """Would catch tokens that are computed after a stop string, or a criterion that sees another
    text than what is sent.
    """
    tokenizer = demo.processor.tokenizer
    ids = tokenizer("all that this photo shows is", add_special_tokens=False).input_ids
    criterion, text = StopTexts(tokenizer, [stop]), AnswerText(tokenizer, [stop])
    for length in range(1, len(ids) + 1):
        text.take(Emission(0, ids[length - 1], False))
        assert bool(criterion(torch.tensor([ids[:length]]), None)) == (text.stopped is not None)
    assert text.stopped == (stop if stop != "nowhere" else None)
