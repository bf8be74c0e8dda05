"""HTML and SVG as text. Whatever was not made here is escaped when it becomes part of it.

Knows nothing of records.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

_VOID = frozenset({"img"})

WIDTH = 360  # of every drawing, in its own units: about the pixels of a phone
LETTER = 6.0  # a letter's width in a drawing, on average


class Html(str):
    """Markup. Joining it by ``+`` or in an f-string makes text of it again, which is escaped."""

    __slots__ = ()


def escaped(text: str) -> Html:
    """Markup as it is, text escaped; halves of surrogate pairs, which no file holds, are ``?``."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(text.encode("utf-8", "replace").decode("utf-8")))


def join(parts: Iterable[str]) -> Html:
    """One piece of markup of several."""
    return Html("".join(escaped(part) for part in parts))


def tag(name: str, *inside: str, **attributes: str | float | bool | None) -> Html:
    """An element. ``class_`` is the attribute class, ``data_x`` is data-x, ``None`` is left out."""
    opened = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        opened.append(attribute if value is True else f'{attribute}="{_attribute(value)}"')
    start = f"<{' '.join(opened)}>"
    return Html(start if name in _VOID else f"{start}{join(inside)}</{name}>")


def _attribute(value: str | float) -> str:
    return escaped(value) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Html], *, wide: bool = False
) -> Html:
    """A table in a box of its own that scrolls; ``rows`` are made by :func:`row`."""
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *rows))
    kind = "scroll wide" if wide else "scroll"
    return tag("div", body, class_=kind, role="region", tabindex="0", aria_label=caption)


def row(name: str, cells: Iterable[str], kind: str | None = None) -> Html:
    """A row and its header."""
    return tag(
        "tr", tag("th", name, scope="row"), *(tag("td", each) for each in cells), class_=kind
    )


def folded(summary: str, *inside: str) -> Html:
    """Something for those who open it."""
    return tag("details", tag("summary", summary), *inside)


def drawing(title: str, says: str, height: float, *inside: str) -> Html:
    """A figure with one SVG image; ``says`` is for those who cannot see it."""
    image = tag("svg", *inside, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=says)
    return tag("figure", tag("figcaption", title) if title else "", image)


def text(x: float, y: float, said: str, anchor: str = "start", kind: str | None = None) -> Html:
    """Text in a drawing, ``y`` its base line."""
    return tag("text", said, x=x, y=y, text_anchor=anchor, class_=kind)


def box(x: float, y: float, width: float, height: float, kind: str) -> Html:
    """A rectangle."""
    return tag("rect", x=x, y=y, width=max(width, 0.0), height=height, class_=kind)


def stroke(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def shorten(said: str, width: float) -> str:
    """``said``, cut so that it is about ``width`` units wide."""
    letters = int(width / LETTER)
    return said if len(said) <= letters else said[: letters - 1] + "…"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most``."""
    span = max(high - low, 1e-9)
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next(size * times for times in (1, 2, 5, 10, 20) if span / (size * times) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [step * index for index in range(first, math.floor(high / step + 1e-9) + 1)]


_SHAPES = (
    "M-3.5,0A3.5,3.5 0 1,1 3.5,0A3.5,3.5 0 1,1 -3.5,0Z",  # circle
    "M-3.2,-3.2H3.2V3.2H-3.2Z",  # square
    "M0,-4.2L4,3H-4Z",  # triangle
    "M0,-4.6L4,0L0,4.6L-4,0Z",  # diamond
    "M0,4.2L4,-3H-4Z",  # triangle, head down
    "M-1.3,-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4V-1.3H-1.3Z",  # plus
)
SERIES = len(_SHAPES)  # that can be told apart, by shape, colour and dashes


def mark(series: int, x: float, y: float) -> Html:
    """The mark of a series, numbered from 0."""
    which = series % SERIES
    moved = f"translate({x:.1f} {y:.1f})"
    return tag("path", d=_SHAPES[which], transform=moved, class_=f"mark s{which}")


def legend(names: Sequence[str], y: float, *, lines: bool) -> tuple[Html, float]:
    """Marks and names of series below ``y``, and where they end."""
    parts = []
    for series, name in enumerate(names):
        at = y + 16 * series
        if lines:
            parts.append(stroke(0, at, 26, at, f"line s{series % SERIES}"))
        parts += [mark(series, 13, at), text(34, at + 4, shorten(name, WIDTH - 34))]
    return join(parts), y + 16 * len(names)
