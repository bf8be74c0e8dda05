"""The report's plane of speed and fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdec.eval.bench_record import Json, Setting, dig, label, measured, number
from specdec.eval.report_charts import groups, kind, kinds_legend, titled
from specdec.eval.report_html import (
    WIDTH,
    Html,
    drawing,
    join,
    shorten,
    stroke,
    tag,
    text,
    ticks,
)

_SPEEDUP = ("overall", "speedup_end_to_end", "median")
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, WIDTH - 16.0, 12.0, 208.0


class Point(NamedTuple):
    """A method's speed and fidelity."""

    method: Json
    speedup: float
    score: float


def pareto(record: Json) -> Html:
    """Speed against fidelity, a drawing per setting and metric."""
    found: dict[tuple[Setting, str], list[Point]] = {}
    by_setting = groups(measured(record))
    for at, methods in by_setting.items():
        for method in methods:
            reference = method["name"] == record["reference"]
            speedup = 1.0 if reference else number(method, *_SPEEDUP)
            score = number(method, "overall", "fidelity", "score")
            if speedup is not None and score is not None:
                metric = str(dig(method, "overall", "fidelity", "metric"))
                found.setdefault((at, metric), []).append(Point(method, speedup, score))
    if not found:
        return Html("")
    drawings = [
        _draw(titled(f"Fidelity ({metric})", at, by_setting), points)
        for (at, metric), points in found.items()
    ]
    shown = [point.method for points in found.values() for point in points]
    return join([tag("div", *drawings, class_="panels"), kinds_legend(shown)])


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in one way and equals in the other, from slow to fast."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best[::-1]


class _Plane(NamedTuple):
    """The part of the plane that is drawn, and where."""

    slowest: float
    fastest: float
    low: float
    high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Plane:
        """With some room on all sides; the reference's speed is always in it."""
        speedups = [1.0, *(point.speedup for point in points)]
        scores = [point.score for point in points]
        room = max(0.15 * (max(scores) - min(scores)), 0.01)
        fastest = max(1.2, *speedups) * 1.05
        return cls(min(speedups) * 0.9, fastest, min(scores) - room, max(scores) + room)

    def x(self, speedup: float) -> float:
        """In the drawing."""
        return _LEFT + (_RIGHT - _LEFT) * (speedup - self.slowest) / (self.fastest - self.slowest)

    def y(self, score: float) -> float:
        """In the drawing."""
        return _BOTTOM - (_BOTTOM - _TOP) * (score - self.low) / (self.high - self.low)

    def grid(self) -> list[Html]:
        """Lines and their figures."""
        parts = []
        for tick in ticks(self.slowest, self.fastest):
            at = self.x(tick)
            parts.append(stroke(at, _TOP, at, _BOTTOM, "grid"))
            parts.append(text(at, _BOTTOM + 16, f"{tick:g}×", "middle", "axis"))
        levels = ticks(self.low, self.high)
        digits = max(len(f"{tick:.6g}".partition(".")[2]) for tick in levels)
        for tick in levels:
            at = self.y(tick)
            parts.append(stroke(_LEFT, at, _RIGHT, at, "grid"))
            parts.append(text(_LEFT - 5, at + 4, f"{tick:.{digits}f}", "end", "axis"))
        middle = (_LEFT + _RIGHT) / 2
        parts.append(text(middle, _BOTTOM + 32, "speedup, end to end", "middle", "axis"))
        return parts


def _draw(title: str, points: Sequence[Point]) -> Html:
    plane = _Plane.around(points)
    joined = ((plane.x(point.speedup), plane.y(point.score)) for point in front(points))
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up in joined)
    parts = [*plane.grid(), tag("polyline", points=path, class_="front")]
    taken: list[tuple[float, float]] = []
    for index, point in enumerate(points):
        across, up, below = plane.x(point.speedup), plane.y(point.score), _BOTTOM + 54 + 16 * index
        spot, both = _free(across, up, taken), f"{point.speedup:.2f}×, {point.score:.3f}"
        parts += [
            tag("circle", cx=across, cy=up, r=5, class_=f"bar {kind(point.method)}"),
            text(*spot, str(index + 1), "middle", "number"),
            text(0, below, f"{index + 1}  {shorten(label(point.method), 240)}"),
            text(WIDTH, below, both, "end", "figure"),
        ]
    says = "; ".join(f"{label(p.method)} {p.speedup:.2f}×, {p.score:.3f}" for p in points)
    height = _BOTTOM + 46 + 16 * len(points)
    return drawing(title, f"{title} against speedup. {says}", height, *parts)


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> tuple[float, float]:
    """A place near a point for its number, away from others; notes it in ``taken``."""
    places = [(x, y - 9), (x, y + 17), (x + 13, y + 4), (x - 13, y + 4), (x + 12, y - 9)]
    free = [(a, b) for a, b in places if all(abs(a - c) > 12 or abs(b - d) > 11 for c, d in taken)]
    taken.append(free[0] if free else places[0])
    return taken[-1]
