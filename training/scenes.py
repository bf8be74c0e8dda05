"""Seeded scenes: what an image shows, before a pixel is drawn or a word is written.

A `Scene` is a list of entities with their facts, their place on the canvas and a drawing style. It
knows neither how it is drawn (`render`), nor how it is talked about (`wording`), nor how an answer
is scored (`grading`).

Train and held-out scenes never share a layout, a pair of fonts or a handwritten scan: each is
assigned to one of the two splits by a checksum, and a scene draws all three from its own split.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]
Box = tuple[int, int, int, int]

SIZE = 192  # canvas side, pixels
PATCH = 16  # one printed character or one scan fills a patch; everything is aligned to this grid
SIDE = SIZE // PATCH
AXIS = 2  # patches left of where the bars begin
SCANS = 1797  # handwritten 8x8 scans shipped with scikit-learn
HELD_OUT_SHARE = 5  # one layout, font pair or scan in five is held out

KINDS = ("grid", "shapes", "bars", "receipt", "table")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "pink")
LETTERS = tuple("ABCDEFGH")
ITEMS = (
    "tea",
    "milk",
    "rice",
    "soap",
    "bread",
    "apple",
    "salt",
    "honey",
    "eggs",
    "cake",
    "fish",
    "pear",
)
PEOPLE = ("Ann", "Bob", "Eve", "Max", "Zoe", "Ian", "Kim", "Leo")
COLUMNS = tuple("UVWXYZ")
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmss10",
)


@dataclass(frozen=True)
class Entity:
    """One thing that can be named, with the facts that hold of it.

    `box` is half-open in pixels, `[x0, x1) x [y0, y1)`. `row` and `col` count from 1 in reading
    order and are 0 where the notion does not apply. `scan` is the index of the handwritten scan
    that shows `value`, or -1.
    """

    name: str
    box: Box
    color: str = ""
    value: int = 0
    row: int = 0
    col: int = 0
    head: str = ""
    scan: int = -1


@dataclass(frozen=True)
class Style:
    """How a scene is drawn; none of it changes a fact."""

    name_font: str
    number_font: str
    ink: tuple[int, int, int]
    paper: tuple[int, int, int]
    noise: float
    angle: float
    ruled: bool
    jitter: int  # seed of every remaining choice of the renderer


@dataclass(frozen=True)
class Scene:
    """A seeded scene; `rows`, `cols` for grids and tables, `layout` is what is held out or not."""

    kind: str
    split: Split
    seed: int
    entities: tuple[Entity, ...]
    rows: int
    cols: int
    layout: tuple[int, ...]
    style: Style

    def find(self, name: str) -> Entity | None:
        """The entity of that name, or None when the scene has none."""
        return next((e for e in self.entities if e.name == name), None)


_Plan = tuple[tuple[int, ...], int, int, list[Entity]]
_Build = Callable[[random.Random, Split], _Plan]


def held_out_key(*key: object) -> bool:
    """Whether this layout, font pair or scan is held out; the same in every process."""
    return zlib.crc32(repr(key).encode()) % HELD_OUT_SHARE == 0


def make_scene(seed: int, split: Split, kind: str | None = None) -> Scene:
    """The scene of this seed. The same arguments always give the same scene.

    Raises ValueError for an unknown kind.
    """
    rng = random.Random(f"{split}-{seed}-{kind}")
    kind = kind or rng.choice(KINDS)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}; known: {', '.join(KINDS)}")
    build = {"grid": _grid, "shapes": _shapes, "bars": _bars, "receipt": _receipt, "table": _table}
    return _held(rng, seed, split, kind, build[kind])


def make_sheet(seed: int, split: Split) -> Scene:
    """A grid with more handwriting than any that is asked about, for learning to read it."""
    return _held(random.Random(f"{split}-{seed}-sheet"), seed, split, "grid", _sheet)


def _held(rng: random.Random, seed: int, split: Split, kind: str, build: _Build) -> Scene:
    """A scene whose layout belongs to the split."""
    while True:
        layout, rows, cols, entities = build(rng, split)
        if held_out_key(kind, layout) == (split == "held_out"):
            return Scene(
                kind, split, seed, tuple(entities), rows, cols, layout, _style(rng, split, kind)
            )


def _style(rng: random.Random, split: Split, kind: str) -> Style:
    while True:
        fonts = rng.choice(FONTS), rng.choice(FONTS)
        if held_out_key("fonts", fonts) == (split == "held_out"):
            break
    shade = rng.randint(225, 255)
    tint = [min(255, max(215, shade + rng.randint(-12, 12))) for _ in range(3)]
    ink = [rng.randint(0, 70) for _ in range(3)]
    ink[rng.randrange(3)] += rng.randint(0, 60)
    turn = {"shapes": 3.0, "bars": 1.5}.get(kind, 1.0)
    return Style(
        name_font=fonts[0],
        number_font=fonts[1],
        ink=(ink[0], ink[1], ink[2]),
        paper=(tint[0], tint[1], tint[2]),
        noise=rng.uniform(2.0, 7.0) if rng.random() < 0.35 else 0.0,
        angle=rng.uniform(-turn, turn) if rng.random() < 0.5 else 0.0,
        ruled=rng.random() < 0.5,
        jitter=rng.randrange(1 << 30),
    )


def _scan(rng: random.Random, split: Split) -> int:
    while True:
        scan = rng.randrange(SCANS)
        if held_out_key("scan", scan) == (split == "held_out"):
            return scan


def _patches(x: int, y: int, width: int = 1, height: int = 1) -> Box:
    """A box of whole patches, in pixels."""
    return (x * PATCH, y * PATCH, (x + width) * PATCH, (y + height) * PATCH)


def _grid(rng: random.Random, split: Split) -> _Plan:
    """Cells of handwritten digits, read row by row; the value of a cell is its scan's label."""
    rows, cols = rng.choice(((1, 3), (1, 4), (2, 2), (2, 2), (2, 3), (3, 2)))
    return _cells(rng, split, rows, cols)


def _sheet(rng: random.Random, split: Split) -> _Plan:
    return _cells(rng, split, 4, rng.choice((3, 4)))


def _cells(rng: random.Random, split: Split, rows: int, cols: int) -> _Plan:
    from specdec.training.render import scan_labels

    ox, oy = rng.randrange(3), rng.randrange(3)
    labels = scan_labels()
    cells = []
    for row in range(rows):
        for col in range(cols):
            scan = _scan(rng, split)
            box = _patches(ox + col * 3, oy + row * 3)
            cells.append(Entity("", box, value=labels[scan], row=row + 1, col=col + 1, scan=scan))
    return (rows, cols, ox, oy), rows, cols, cells


def _shapes(rng: random.Random, split: Split) -> _Plan:
    """Two to four shapes in a field of 3x3; no two share their outline or their colour."""
    count = rng.randint(2, 4)
    cells = sorted(rng.sample(range(9), count))
    names, colors = rng.sample(SHAPES, count), rng.sample(COLORS, count)
    shapes = []
    for cell, name, color in zip(cells, names, colors, strict=True):
        box = _patches(cell % 3 * 4 + 1, cell // 3 * 4 + 1, 2, 2)
        shapes.append(Entity(name, box, color=color, row=cell // 3 + 1, col=cell % 3 + 1))
    return tuple(cells), 0, 0, shapes


def _bars(rng: random.Random, split: Split) -> _Plan:
    """Three or four lettered horizontal bars of different colours, with their values."""
    count, pitch = rng.choice((3, 3, 4)), rng.choice((2, 3))
    top = rng.randint(0, SIDE - 1 - (count - 1) * pitch)
    names, colors = rng.sample(LETTERS, count), rng.sample(COLORS, count)
    values = rng.sample(range(1, 10), count)  # no ties: "the longest" is always one bar
    bars = []
    for i, (name, color, value) in enumerate(zip(names, colors, values, strict=True)):
        box = _patches(AXIS - 1, top + i * pitch, value + 2)  # its letter and its value included
        bars.append(Entity(name, box, color=color, value=value, row=i + 1))
    return (count, pitch, top), 0, 0, bars


def _receipt(rng: random.Random, split: Split) -> _Plan:
    """Three or four lines, an item on the left and a whole price on the right."""
    count = rng.choice((3, 3, 4))
    gap = rng.choice((2, 3)) if count == 3 else 2
    top = rng.randint(0, SIDE - 1 - (count - 1) * gap)
    left, right = rng.randint(0, 2), rng.randint(10, 12)
    names = rng.sample(ITEMS, count)
    prices = rng.sample(range(1, 60), count)
    lines = []
    for i, (name, price) in enumerate(zip(names, prices, strict=True)):
        box = _patches(left, top + i * gap, right - left)
        lines.append(Entity(name, box, value=price, row=i + 1))
    return (count, gap, top, left, right), 0, 0, lines


def _table(rng: random.Random, split: Split) -> _Plan:
    """People in rows, two lettered columns, one digit in each cell; entities in reading order."""
    rows, gap = rng.choice((2, 3)), rng.choice((2, 3))
    top = rng.randint(0, SIDE - 1 - rows * gap)
    left = rng.randint(0, 2)
    first = left + rng.randint(4, 5)
    xs = (first, first + rng.randint(2, 4))
    people, heads = rng.sample(PEOPLE, rows), rng.sample(COLUMNS, 2)
    cells = []
    for row, person in enumerate(people):
        for col, (head, x) in enumerate(zip(heads, xs, strict=True)):
            box = _patches(x, top + (row + 1) * gap)
            value = rng.randint(0, 9)
            cells.append(Entity(person, box, value=value, row=row + 1, col=col + 1, head=head))
    return (rows, gap, top, left, *xs), rows, 2, cells
