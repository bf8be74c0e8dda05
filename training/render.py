"""Pixels of a scene, and for every patch of the image the facts that a reader must find there.

Knows nothing of questions or answers. Needs the `train` extra (scikit-learn's scans, matplotlib's
fonts).
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from specdec.training import scenes
from specdec.training.scenes import PATCH, SIDE, SIZE, Scene

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
RGB = tuple[int, int, int]

PALETTE: dict[str, RGB] = {
    "red": (214, 38, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 210, 30),
    "purple": (135, 45, 165),
    "orange": (245, 135, 20),
    "black": (25, 25, 25),
    "pink": (245, 140, 190),
}
NAMES = (*scenes.SHAPES, *scenes.LETTERS, *scenes.ITEMS, *scenes.PEOPLE)
CHARS = "0123456789" + "".join(
    sorted(set("".join((*scenes.LETTERS, *scenes.ITEMS, *scenes.PEOPLE, *scenes.COLUMNS))))
)

# One classification per patch and head; class 0 is "nothing here".
HEADS: dict[str, int] = {
    "kind": len(scenes.KINDS) + 1,
    "count": 10,
    "rows": 5,
    "cols": 6,
    "name": len(NAMES) + 1,
    "color": len(PALETTE) + 1,
    "tens": 11,
    "ones": 11,
    "row": 6,
    "col": 6,
    "head": len(scenes.COLUMNS) + 1,
    "extreme": 3,
    "char": len(CHARS) + 1,
}


class Glyph(NamedTuple):
    """One printed character: the patch it fills and the entities that it speaks of."""

    char: str
    x: int
    y: int
    number: bool
    about: tuple[scenes.Entity, ...]


@cache
def _scans() -> tuple[list[Image.Image], list[int]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = [Image.fromarray((scan * (255 / 16)).astype(np.uint8)) for scan in data.images]
    return images, [int(label) for label in data.target]


def scan_labels() -> list[int]:
    """The digit that each handwritten scan shows."""
    return _scans()[1]


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


@cache
def _glyph(name: str, char: str, width: int, height: int) -> Image.Image:
    """An ink mask (height, width); the size fits an average letter, wider ones are condensed."""
    size = height
    while True:
        font = _font(name, size)
        ascent = -font.getbbox("Hb", anchor="ls")[1]
        if font.getlength("0n") <= 2 * width and ascent <= height - 5:
            break
        size -= 1
    left, _, right, _ = font.getbbox(char, anchor="ls")
    wide = max(width, int(right - left))
    mask = Image.new("L", (wide, height), 0)
    x = round((wide - (right - left)) / 2 - left)
    ImageDraw.Draw(mask).text((x, height - 4), char, fill=255, font=font, anchor="ls")
    return mask.resize((width, height), Image.Resampling.BILINEAR) if wide > width else mask


def glyphs(scene: Scene) -> list[Glyph]:
    """Every printed character of the scene."""
    found: list[Glyph] = []

    def word(text: str, x: int, y: int, *about: scenes.Entity, number: bool = False) -> None:
        found.extend(Glyph(c, x + i, y, number, about) for i, c in enumerate(text))

    for e in scene.entities:
        x0, y0, x1, _ = (edge // PATCH for edge in e.box)
        if scene.kind == "bars":
            word(e.name, x0, y0, e)
            word(str(e.value), x1 - 1, y0, e, number=True)
        elif scene.kind == "receipt":
            price = str(e.value)
            word(e.name, x0, y0, e)
            word(price, x1 - len(price), y0, e, number=True)
        elif scene.kind == "table":
            word(str(e.value), x0, y0, e, number=True)
            if e.row == 1:
                word(e.head, x0, scene.layout[2], *(o for o in scene.entities if o.head == e.head))
            if e.col == 1:
                word(e.name, scene.layout[3], y0, *(o for o in scene.entities if o.name == e.name))
    return found


def render(scene: Scene) -> Pixels:
    """The image (192, 192, 3) of a scene; deterministic."""
    style, rng = scene.style, random.Random(scene.style.jitter)
    image = Image.new("RGB", (SIZE, SIZE), style.paper)
    draw = ImageDraw.Draw(image)
    if scene.kind == "grid":
        _draw_grid(image, draw, scene, rng)
    elif scene.kind == "shapes":
        for e in scene.entities:
            _draw_shape(draw, e, rng)
    elif scene.kind == "bars":
        _draw_bars(draw, scene, rng)
    elif scene.kind == "table" and style.ruled:
        for e in scene.entities:
            draw.rectangle(
                (e.box[0] - 4, e.box[1] - 3, e.box[2] + 3, e.box[3] + 2), outline=_fade(style, 0.25)
            )
    elif scene.kind == "receipt" and style.ruled:
        for e in scene.entities:
            draw.line((e.box[0], e.box[3] + 3, e.box[2], e.box[3] + 3), fill=_fade(style, 0.25))
    for g in glyphs(scene):
        font = style.number_font if g.number else style.name_font
        image.paste(style.ink, (g.x * PATCH, g.y * PATCH), _glyph(font, g.char, PATCH, PATCH))
    if style.angle:
        image = image.rotate(style.angle, Image.Resampling.BILINEAR, fillcolor=style.paper)
    pixels = np.asarray(image, dtype=np.float32)
    if style.noise > 0.5:
        grain = np.random.default_rng(style.jitter).standard_normal(
            (SIZE, SIZE, 1), dtype=np.float32
        )
        pixels = pixels + style.noise * grain
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _fade(style: scenes.Style, strength: float) -> RGB:
    """Ink thinned to `strength` on this paper."""
    r, g, b = (round(p + (i - p) * strength) for i, p in zip(style.ink, style.paper, strict=True))
    return r, g, b


def _vary(color: str, rng: random.Random) -> RGB:
    r, g, b = (min(255, max(0, c + rng.randint(-14, 14))) for c in PALETTE[color])
    return r, g, b


def _draw_grid(
    image: Image.Image, draw: ImageDraw.ImageDraw, scene: Scene, rng: random.Random
) -> None:
    images, _ = _scans()
    wild = 1.0 if scene.split == "train" else 0.4  # augmentation of the handwriting
    for e in scene.entities:
        x0, y0, x1, y1 = e.box
        if scene.style.ruled:
            draw.rectangle((x0 - 4, y0 - 4, x1 + 3, y1 + 3), outline=_fade(scene.style, 0.3))
        side = x1 - x0
        zoom = side / 8 * (1 + wild * rng.uniform(-0.12, 0.06))
        turn, shear = wild * rng.uniform(-0.22, 0.22), wild * rng.uniform(-0.15, 0.15)
        dx, dy = wild * rng.uniform(-1.0, 1.0), wild * rng.uniform(-1.0, 1.0)
        cos, sin = float(np.cos(turn)), float(np.sin(turn))
        a, b = cos / zoom, (sin + shear * cos) / zoom
        d, f = -sin / zoom, (cos - shear * sin) / zoom
        cx, cy = side / 2 + dx, side / 2 + dy
        matrix = (a, b, 4 - a * cx - b * cy, d, f, 4 - d * cx - f * cy)
        mask = images[e.scan].transform(
            (side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
        )
        gain = rng.uniform(0.85, 1.25)
        mask = mask.point(lambda level, gain=gain: min(255, int(level * gain)))
        image.paste(scene.style.ink, (x0, y0), mask)


def _draw_bars(draw: ImageDraw.ImageDraw, scene: Scene, rng: random.Random) -> None:
    axis = scenes.AXIS * PATCH
    if scene.style.ruled:
        for x in range(axis + PATCH // 2, SIZE, PATCH):
            draw.line((x, 0, x, SIZE), fill=_fade(scene.style, 0.12))
    for e in scene.entities:
        y0, y1 = e.box[1] + rng.randint(4, 5), e.box[3] - 1 - rng.randint(4, 5)
        draw.rectangle((axis, y0, e.box[2] - 1 - PATCH * 3 // 2, y1), fill=_vary(e.color, rng))
    draw.line((axis, 0, axis, SIZE), fill=scene.style.ink)


def _draw_shape(draw: ImageDraw.ImageDraw, e: scenes.Entity, rng: random.Random) -> None:
    radius, slack = rng.uniform(13.5, 16.0), 1.0
    cx, cy = e.box[0] + 16 + rng.uniform(-slack, slack), e.box[1] + 16 + rng.uniform(-slack, slack)
    fill, turn = _vary(e.color, rng), rng.uniform(-0.12, 0.12)

    def around(angles: list[float], radii: list[float]) -> list[tuple[float, float]]:
        return [
            (cx + r * float(np.sin(a + turn)), cy - r * float(np.cos(a + turn)))
            for a, r in zip(angles, radii, strict=True)
        ]

    box = (cx - radius, cy - radius, cx + radius, cy + radius)
    if e.name == "circle":
        draw.ellipse(box, fill=fill)
    elif e.name == "ring":
        draw.ellipse(box, outline=fill, width=max(3, round(radius / 3)))
    elif e.name == "square":
        draw.polygon(
            around([np.pi / 4 + i * np.pi / 2 for i in range(4)], [radius * 1.15] * 4), fill=fill
        )
    elif e.name == "triangle":
        draw.polygon(around([i * 2 * np.pi / 3 for i in range(3)], [radius * 1.1] * 3), fill=fill)
    elif e.name == "star":
        draw.polygon(
            around([i * np.pi / 5 for i in range(10)], [radius * 1.1, radius * 0.45] * 5), fill=fill
        )
    else:
        arm = radius * 0.3
        corners = [
            (-arm, -radius),
            (arm, -radius),
            (arm, -arm),
            (radius, -arm),
            (radius, arm),
            (arm, arm),
        ]
        corners += [(-x, -y) for x, y in corners]
        draw.polygon([(cx + x, cy + y) for x, y in corners], fill=fill)


def dense_labels(scene: Scene) -> Labels:
    """For every head of `HEADS` and every patch the class to be read there, (heads, 144).

    A patch of an entity carries the entity's whole record, so that one look at any letter of a
    receipt's line tells both the item and its price.
    """
    grids = {head: np.zeros((SIDE, SIDE), np.int64) for head in HEADS}
    grids["kind"][:] = scenes.KINDS.index(scene.kind) + 1
    grids["count"][:] = min(len(scene.entities), HEADS["count"] - 1)
    grids["rows"][:], grids["cols"][:] = scene.rows, scene.cols
    values = [e.value for e in scene.entities]

    def mark(cell: tuple[slice, slice], e: scenes.Entity, *heads: str) -> None:
        record = {
            "name": NAMES.index(e.name) + 1 if e.name else 0,
            "color": scenes.COLORS.index(e.color) + 1 if e.color else 0,
            "ones": e.value % 10 + 1,
            "tens": e.value // 10 + 1,
            "row": e.row,
            "col": e.col,
            "head": scenes.COLUMNS.index(e.head) + 1 if e.head else 0,
            "extreme": (e.value == max(values)) + 2 * (e.value == min(values)),
        }
        for head in heads or record:
            grids[head][cell] = record[head]

    facts = {
        "grid": ("ones", "row", "col"),
        "shapes": ("name", "color", "row", "col"),
        "bars": ("name", "color", "ones", "row", "extreme"),
        "receipt": ("name", "tens", "ones", "row", "extreme"),
        "table": ("name", "head", "ones", "row", "col"),
    }[scene.kind]
    for e in scene.entities:
        x0, y0, x1, y1 = (edge // PATCH for edge in e.box)
        if scene.kind != "receipt":
            mark((slice(y0, y1), slice(x0, x1)), e, *facts)
    for g in glyphs(scene):
        cell = slice(g.y, g.y + 1), slice(g.x, g.x + 1)
        grids["char"][cell] = CHARS.index(g.char) + 1
        if len(g.about) == 1:
            mark(cell, g.about[0], *facts)
        elif g.char == g.about[0].head:
            mark(cell, g.about[0], "head", "col")
        else:
            mark(cell, g.about[0], "name", "row")
    return np.stack([grids[head].reshape(-1) for head in HEADS])
