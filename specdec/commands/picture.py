"""Draws questions and answers about images into one picture, the answers coloured by origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from specdec.commands.stream import Piece

DRAFTED, OWN, INK, PALE = "#0b7285", "#c2255c", "#212529", "#868e96"
_SIDE, _GAP, _TEXT_WIDTH, _SIZE = 192, 16, 560, 15
_LINE = _SIZE + 7

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Panel(NamedTuple):
    """One question: its images, its text and the answer's pieces."""

    images: tuple[Path, ...]
    prompt: str
    answer: Sequence[Piece]


def draw(panels: Sequence[Panel]) -> Image.Image:
    """The panels below one another: images on the left, question and answer on the right."""
    font = ImageFont.load_default(_SIZE)
    widest = max(len(panel.images) for panel in panels)
    left = _GAP + widest * (_SIDE + _GAP)
    lines = [wrap(panel.answer, font, _TEXT_WIDTH) for panel in panels]
    heights = [max(_SIDE, (len(answer) + 2) * _LINE) + 2 * _GAP for answer in lines]
    legend = _LINE + 2 * _GAP
    picture = Image.new("RGB", (left + _TEXT_WIDTH + _GAP, sum(heights) + legend), "white")
    pen = ImageDraw.Draw(picture)
    top = 0
    for panel, answer, height in zip(panels, lines, heights, strict=True):
        for index, path in enumerate(panel.images):
            _paste(picture, path, _GAP + index * (_SIDE + _GAP), top + _GAP)
        pen.text((left, top + _GAP), panel.prompt, INK, font)
        for row, line in enumerate(answer):
            _write(pen, line, (left, top + _GAP + (row + 2) * _LINE), font)
        top += height
        pen.line((_GAP, top, picture.width - _GAP, top), PALE)
    keys = [Piece("drafted and accepted   ", True), Piece("the model's own", False)]
    _write(pen, keys, (left, top + _GAP), font)
    return picture


def wrap(pieces: Sequence[Piece], font: Font, width: float) -> list[list[Piece]]:
    """The pieces in lines of at most `width` pixels, broken at spaces and at line ends."""
    lines: list[list[Piece]] = [[]]
    used = 0.0
    for word in _words(pieces):
        text = "".join(piece.text for piece in word)
        if text == "\n":
            lines.append([])
            used = 0.0
            continue
        length = font.getlength(text)
        if used and used + length > width:
            lines.append([])
            used = 0.0
            word = [Piece(word[0].text.lstrip(), word[0].drafted), *word[1:]]
            length = font.getlength(text.lstrip())
        lines[-1] += word
        used += length
    return lines


def _words(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces regrouped so that a line may be broken before every group; a line end is one."""
    words: list[list[Piece]] = []
    joined = False
    for text, drafted in pieces:
        for character in text:
            if character.isspace() or not joined:
                words.append([])
            shown = character if character == "\n" or not character.isspace() else " "
            group = words[-1]
            if group and group[-1].drafted == drafted:
                group[-1] = Piece(group[-1].text + shown, drafted)
            else:
                group.append(Piece(shown, drafted))
            joined = character != "\n"
    return words


def _write(
    pen: ImageDraw.ImageDraw, line: Sequence[Piece], at: tuple[float, float], font: Font
) -> None:
    x, y = at
    for text, drafted in line:
        pen.text((x, y), text, DRAFTED if drafted else OWN, font)
        x += font.getlength(text)


def _paste(picture: Image.Image, path: Path, x: int, y: int) -> None:
    with Image.open(path) as image:
        scale = _SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        # Whole pixels stay visible: the images are tiny, and that is what the model sees.
        picture.paste(image.convert("RGB").resize(size, Image.Resampling.NEAREST), (x, y))
    ImageDraw.Draw(picture).rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=PALE)
