"""The report's plots: acceptance by position, τ by task.

Every function returns a section's content, empty if the record has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdec.eval.bench_record import Json, dig, label, measured, number
from specdec.eval.report_charts import NONE, groups, titled
from specdec.eval.report_html import (
    SERIES,
    WIDTH,
    Html,
    box,
    drawing,
    folded,
    join,
    legend,
    mark,
    row,
    shorten,
    stroke,
    table,
    tag,
    text,
    ticks,
)

_TAU = ("acceptance", "mean_acceptance_length")


class Panel(NamedTuple):
    """Methods that are drawn together."""

    title: str
    methods: list[Json]


def _panels(methods: Sequence[Json]) -> list[Panel]:
    """One per setting; several, by drafter, where there are too many to tell apart."""
    found = groups(methods)
    panels = []
    for at, members in found.items():
        if len(members) <= SERIES:
            panels.append(Panel(titled("", at, found), members))
            continue
        parts = _packed(members)
        for place, part in enumerate(parts):
            which = f"Part {place + 1} of {len(parts)}"
            panels.append(Panel(titled(which, at, found), part))
    return panels


def _packed(methods: Sequence[Json]) -> list[list[Json]]:
    """Parts of at most SERIES methods; those of a drafter stay together as far as they fit."""
    drafters: dict[str | None, list[Json]] = {}
    for method in methods:
        drafters.setdefault(method.get("drafter"), []).append(method)
    parts: list[list[Json]] = []
    for members in drafters.values():
        for start in range(0, len(members), SERIES):
            some = members[start : start + SERIES]
            if parts and len(parts[-1]) + len(some) <= SERIES:
                parts[-1] += some
            else:
                parts.append(some)
    return parts


def by_position(method: Json) -> list[float]:
    """Of the steps that drafted, the share that accepted a token at each depth, the first being 1.

    Empty where nothing was drafted or it is not known.
    """
    acceptance = dig(method, "overall", "acceptance")
    counts = dig(acceptance, "num_accepted_tokens_per_pos")
    if not counts:
        return []
    steps = acceptance["num_spec_steps"] - (acceptance.get("num_plain_steps") or 0)
    return [count / steps for count in counts] if steps > 0 else []


def positions(record: Json) -> Html:
    """Acceptance by position in the draft: a line per method."""
    methods = [method for method in measured(record) if by_position(method)]
    if not methods:
        return Html("")
    panels = _panels(methods)
    deepest = max(len(by_position(method)) for method in methods)
    rows = [row(label(m), [f"{rate:.1%}" for rate in by_position(m)]) for m in methods]
    figures = table(
        "Share of drafting steps that accept a token at a position",
        ["method", *(str(place + 1) for place in range(deepest))],
        rows,
    )
    return _section([_lines(panel, deepest) for panel in panels], figures)


def _lines(panel: Panel, deepest: int) -> Html:
    left, right, top, bottom = 38.0, WIDTH - 10.0, 8.0, 178.0

    def x(place: int) -> float:
        return left + (right - left) * (place + 0.5) / deepest

    def y(rate: float) -> float:
        return bottom - rate * (bottom - top)

    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [
            stroke(left, y(tick), right, y(tick), "grid"),
            text(left - 5, y(tick) + 4, f"{tick:.0%}", "end", "axis"),
        ]
    every = -(-deepest // 16)
    parts += [
        text(x(place), bottom + 16, str(place + 1), "middle", "axis")
        for place in range(0, deepest, every)
    ]
    parts.append(text((left + right) / 2, bottom + 32, "position in the draft", "middle", "axis"))
    for series, method in enumerate(panel.methods):
        at = [(x(place), y(rate)) for place, rate in enumerate(by_position(method))]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in at)
        parts.append(tag("polyline", points=path, class_=f"line s{series}"))
        parts += [mark(series, *point) for point in at]
    names, end = legend([label(m) for m in panel.methods], bottom + 54, lines=True)
    says = "; ".join(
        f"{label(m)}: {', '.join(f'{rate:.0%}' for rate in by_position(m))}" for m in panel.methods
    )
    return drawing(panel.title, f"Acceptance by position. {says}", end, *parts, names)


def tasks(record: Json) -> Html:
    """τ by task: a row per task, a mark per method."""
    found: dict[str, None] = {}
    methods = []
    for method in measured(record):
        of_tasks = method.get("tasks") or {}
        known = [task for task in of_tasks if number(of_tasks, task, *_TAU) is not None]
        found |= dict.fromkeys(known)
        if known:
            methods.append(method)
    if not methods:
        return Html("")
    names = list(found)
    rows = [
        row(label(m), [_plain(_tau(m, task)) for task in names] + [_plain(_overall_tau(m))])
        for m in methods
    ]
    figures = table("τ by task", ["method", *names, "all"], rows)
    most = max(value for m in methods for t in names if (value := _tau(m, t)) is not None)
    panels = _panels(methods)
    return _section([_dots(panel, names, most * 1.03) for panel in panels], figures)


def _tau(method: Json, task: str) -> float | None:
    return number(method["tasks"], task, *_TAU)


def _overall_tau(method: Json) -> float | None:
    return number(method, "overall", *_TAU)


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _dots(panel: Panel, names: Sequence[str], most: float) -> Html:
    left, right = 104.0, WIDTH - 10.0
    found = {(s, t): _tau(m, t) for s, m in enumerate(panel.methods) for t in names}
    most = max(most, 2.0)
    step = 8.0 * len(panel.methods) + 8
    bottom = step * len(names)

    def x(value: float) -> float:
        return left + (right - left) * (value - 1.0) / (most - 1.0)

    parts = [box(0, step * index, WIDTH, step, "stripe") for index in range(0, len(names), 2)]
    for tick in ticks(1.0, most):
        parts += [
            stroke(x(tick), 0, x(tick), bottom, "grid"),
            text(x(tick), bottom + 15, f"{tick:g}", "middle", "axis"),
        ]
    parts.append(text((left + right) / 2, bottom + 31, "τ, tokens a step", "middle", "axis"))
    for index, task in enumerate(names):
        parts.append(text(4, step * (index + 0.5) + 4, shorten(task, left - 8)))
        for series in range(len(panel.methods)):
            if (value := found[series, task]) is not None:
                parts.append(mark(series, x(value), step * index + 8 + 8 * series))
    legend_of, end = legend([label(m) for m in panel.methods], bottom + 52, lines=False)
    says = "; ".join(
        f"{label(m)}: {', '.join(f'{t} {_plain(found[s, t])}' for t in names)}"
        for s, m in enumerate(panel.methods)
    )
    return drawing(panel.title, f"τ by task. {says}", end, *parts, legend_of)


def _section(drawings: Sequence[Html], figures: Html) -> Html:
    return join([tag("div", *drawings, class_="panels"), folded("As figures", figures)])
