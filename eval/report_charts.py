"""The report's bars: speeds, where the time goes, tokens that depend on the image.

Every function returns a section's content, empty if the record has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specdec.eval.bench_record import (
    Json,
    Setting,
    dig,
    interval,
    label,
    measured,
    number,
    setting,
)
from specdec.eval.report_html import (
    WIDTH,
    Html,
    box,
    drawing,
    folded,
    join,
    row,
    shorten,
    stroke,
    table,
    tag,
    text,
    ticks,
)
from specdec.eval.timing import Interval

PHASES = ("vision", "prefill", "draft", "verify", "accept", "commit", "other")
SPEEDUPS = {"speedup_end_to_end": "End to end", "speedup_decode": "Decoding alone"}
NONE = "–"

_ROW = 36.0  # height of a name and the bar beneath it


def groups(methods: Iterable[Json]) -> dict[Setting, list[Json]]:
    """Methods that can be compared with each other, by batch size and temperature."""
    found: dict[Setting, list[Json]] = {}
    for method in methods:
        found.setdefault(setting(method), []).append(method)
    return found


def titled(title: str, at: Setting, all_groups: Iterable[Setting]) -> str:
    """``title``, with the setting if there are several or an unusual one."""
    usual = list(all_groups) == [Setting(1, 0.0)]
    return ", ".join(each for each in (title, "" if usual else str(at)) if each)


def bounded(value: Interval) -> str:
    """A median and its bounds."""
    return f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"


def kind(method: Json) -> str:
    """How a method's bars and points are drawn."""
    if not method.get("ours"):
        return "theirs"
    return "lossless" if method["lossless"] else "relaxed"


_KINDS = {
    "lossless": "specdec, lossless",
    "relaxed": "specdec, relaxed",
    "theirs": "not specdec",
}


def kinds_legend(methods: Iterable[Json]) -> Html:
    """What the drawings of :func:`kind` mean, of those that are there."""
    there = {kind(method) for method in methods}
    keys = [
        tag("li", tag("span", class_=f"key {name}"), says)
        for name, says in _KINDS.items()
        if name in there
    ]
    return tag("ul", *keys, class_="legend")


def speeds(record: Json) -> Html:
    """Speedup over the reference, with intervals: a drawing per setting and kind of speedup."""
    found = groups(m for m in measured(record) if m["name"] != record["reference"])
    drawings, shown = [], []
    for at, methods in found.items():
        methods = sorted(methods, key=lambda m: -(_speed(m) or 0.0))
        for name, title in SPEEDUPS.items():
            pairs = [(m, value) for m in methods if (value := interval(m, "overall", name))]
            if pairs:
                drawings.append(_bars(titled(title, at, found), pairs))
                shown += [method for method, _ in pairs]
    return _panels(drawings, kinds_legend(shown))


def _speed(method: Json) -> float | None:
    return number(method, "overall", "speedup_end_to_end", "median")


def _bars(title: str, methods: Sequence[tuple[Json, Interval]]) -> Html:
    most = max(1.25, *(value.high for _, value in methods)) * 1.03

    def x(value: float) -> float:
        return value / most * WIDTH

    bottom = 4 + _ROW * len(methods)
    parts = []
    for index, (method, value) in enumerate(methods):
        top, low, high = _ROW * index, x(value.low), x(value.high)
        # Only behind the bars: names would be hard to read with lines through them.
        parts += [stroke(x(at), top + 18, x(at), top + 32, "grid") for at in ticks(0, most)]
        parts += [
            text(0, top + 14, shorten(label(method), 250)),
            text(WIDTH, top + 14, bounded(value), "end", "figure"),
            box(0, top + 19, x(value.median), 12, f"bar {kind(method)}"),
            stroke(x(1), top + 17, x(1), top + 33, "one"),
            stroke(low, top + 25, high, top + 25, "whisker"),
            stroke(low, top + 21, low, top + 29, "whisker"),
            stroke(high, top + 21, high, top + 29, "whisker"),
        ]
    parts += [
        text(x(tick), bottom + 14, f"{tick:g}×", "start" if tick == 0 else "middle", "axis")
        for tick in ticks(0, most)
        if x(tick) < WIDTH - 8
    ]
    says = "; ".join(f"{label(method)} {bounded(value)}" for method, value in methods)
    return drawing(title, f"{title}, speedup: {says}", bottom + 20, *parts)


def shares(record: Json) -> Html:
    """Where the time goes: a stacked bar per method."""
    found = groups(m for m in measured(record) if dig(m, "overall", "shares") is not None)
    if not found:
        return Html("")
    drawings = [_stacks(titled("", at, found), methods) for at, methods in found.items()]
    keys = [tag("li", tag("span", class_=f"key {phase}"), phase) for phase in PHASES]
    rows = [
        row(label(m), (_percent(number(m, "overall", "shares", phase)) for phase in PHASES))
        for methods in found.values()
        for m in methods
    ]
    figures = table("Share of the whole time", ["method", *PHASES], rows)
    return join(
        [_panels(drawings, tag("ul", *keys, class_="legend")), folded("As figures", figures)]
    )


def _stacks(title: str, methods: Sequence[Json]) -> Html:
    parts = []
    for index, method in enumerate(methods):
        top, at = _ROW * index, 0.0
        parts.append(text(0, top + 14, shorten(label(method), WIDTH)))
        for phase in PHASES:
            share = number(method, "overall", "shares", phase) or 0.0
            width = share * WIDTH
            parts.append(box(at, top + 19, width, 14, f"part {phase}"))
            if width > 24:
                parts.append(text(at + width / 2, top + 30, f"{share:.0%}", "middle", "inside"))
            at += width
    says = "; ".join(f"{label(m)}: {_phases(m)}" for m in methods)
    return drawing(title, f"Share of the whole time. {says}", _ROW * len(methods) + 4, *parts)


def _phases(method: Json) -> str:
    found = {phase: number(method, "overall", "shares", phase) for phase in PHASES}
    return ", ".join(f"{name} {share:.0%}" for name, share in found.items() if share is not None)


_MODALITIES = {"image": "the image decides", "words": "words decide"}


def modalities(record: Json) -> Html:
    """Acceptance of drafted tokens that depend on the image, and of the others."""
    drawings = [_pair(method) for method in measured(record) if method.get("modalities")]
    return _panels(drawings, Html(""))


def _pair(method: Json) -> Html:
    left, right = 112.0, WIDTH - 100.0
    parts, said = [], []
    for index, (name, counts) in enumerate(method["modalities"].items()):
        top, drafted, accepted = 18.0 * index, counts["drafted"], counts["accepted"]
        rate = accepted / drafted if drafted else 0.0
        counted = f"{rate:.0%}, {accepted} of {drafted}" if drafted else "none drafted"
        shown = _MODALITIES.get(name, name)
        parts += [
            text(0, top + 11, shorten(shown, left), kind="axis"),
            box(left, top + 2, right - left, 11, "rail"),
            box(left, top + 2, rate * (right - left), 11, f"bar pair{index % 2}"),
            text(WIDTH, top + 11, counted, "end", "figure"),
        ]
        said.append(f"{shown}: {counted}")
    says = f"{label(method)}, drafted tokens accepted. {'; '.join(said)}"
    return drawing(label(method), says, 18.0 * len(said), *parts)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _panels(drawings: Sequence[Html], below: Html) -> Html:
    """Drawings side by side, as far as there is room."""
    if not drawings:
        return Html("")
    return join([tag("div", *drawings, class_="panels"), below])
