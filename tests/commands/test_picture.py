"""The picture of questions and answers."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageColor, ImageFont

from specdec.commands.picture import DRAFTED, OWN, Panel, draw, wrap
from specdec.commands.stream import Piece

FONT = ImageFont.load_default(15)


def test_lines_fit_and_lose_no_word() -> None:
    pieces = [Piece("one two", True), Piece("three", False), Piece(" four\nfive ", True)] * 5
    width = FONT.getlength("one twothree") + 1
    lines = wrap(pieces, FONT, width)
    texts = ["".join(piece.text for piece in line) for line in lines]
    assert all(FONT.getlength(text.rstrip()) <= width for text in texts)
    assert " ".join(" ".join(texts).split()) == " ".join(["one", "twothree", "four", "five"] * 5)
    assert {piece.text.strip() for line in lines for piece in line if not piece.drafted} == {
        "three"
    }


def test_both_colours_and_every_image_are_drawn(picture: Path) -> None:
    answer = [Piece("drafted ", True), Piece("own", False)]
    drawn = draw([Panel((picture,), "question", answer), Panel((picture,) * 2, "another", answer)])
    colours = {colour for _, colour in drawn.getcolors(1 << 24) or ()}
    assert ImageColor.getrgb(DRAFTED) in colours
    assert ImageColor.getrgb(OWN) in colours
    one = draw([Panel((picture,), "question", answer)])
    assert drawn.width > one.width
    assert drawn.height > one.height
