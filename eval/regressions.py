"""Two records of `specdec bench`: what became slower, shorter or less faithful, and what differs.

A figure is worse where the intervals of the two do not overlap; a figure without an interval where
it changed by more than 5 %. Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdec.eval.bench_record import (
    Json,
    Setting,
    check,
    dig,
    interval,
    key,
    label,
    number,
    setting,
)
from specdec.eval.timing import Interval

SLACK = 0.05  # of the figure before, where no interval says what is noise


class Verdict(StrEnum):
    """What became of a figure, or of a method."""

    SAME = "same"
    BETTER = "better"
    WORSE = "worse"
    GONE = "only before"
    NEW = "only after"


class Change(NamedTuple):
    """A figure of a method in two records.

    Attributes:
        method: as it is called.
        figure: which one; empty if the method is in one of the records only.
        before: its value; one without an interval has ``low`` and ``high`` equal to it. ``None``
            where it was not measured.
        after: likewise.
        verdict: what became of it.
        why: more to say, such as why a method was refused.
    """

    method: str
    figure: str
    before: Interval | None
    after: Interval | None
    verdict: Verdict
    why: str = ""


class _Figure(NamedTuple):
    """``read`` takes a method and its reference."""

    name: str
    read: Callable[[Json, Json | None], Interval | None]
    more_is_better: bool = True
    slack: float = SLACK


def compare(before: Json, after: Json) -> list[Change]:
    """What changed from one record to another, method by method.

    Methods are the same if name, batch size and temperature are. One that ran before and is refused
    now has become worse.

    Raises:
        ValueError: the two have different schemas, or one is no record.
    """
    if before.get("schema") != after.get("schema"):
        raise ValueError(
            f"the record before has schema {before.get('schema')!r}, the one after "
            f"{after.get('schema')!r}; measure again with one release"
        )
    check(before, "the record before")
    check(after, "the record after")
    old = {key(method): method for method in before["methods"]}
    new = {key(method): method for method in after["methods"]}
    references = _references(before), _references(after)
    changes: list[Change] = []
    for which in dict.fromkeys([*old, *new]):
        if which in old and which in new:
            at = which[1]
            pair = references[0].get(at), references[1].get(at)
            changes += _method(old[which], new[which], *pair)
        elif which in old:
            changes.append(_alone(old[which], Verdict.GONE))
        else:
            changes.append(_alone(new[which], Verdict.NEW))
    return changes


def differences(before: Json, after: Json) -> list[str]:
    """Why the two may not be comparable: what differs in model, questions, settings, machine."""
    found = []
    for part in ("model", "questions", "settings", "machine", "reference"):
        for name, old, new in _unequal(before.get(part), after.get(part), part):
            # Load is never the same twice, and another version is what one compares.
            if name not in ("machine, load_before", "machine, specdec"):
                found.append(f"{name}: {_said(old)} before, {_said(new)} after")
    return found


def show(console: Console, changes: Sequence[Change], warnings: Sequence[str] = ()) -> bool:
    """Print a table of changes beneath what :func:`differences` warns of.

    Returns:
        whether anything became worse.
    """
    for warning in warnings:
        console.print(Text(f"the records differ in {warning}", style="yellow"))
    table = Table(title="changes, 95 % intervals")
    for column in ("method", "figure", "before", "after", "change", ""):
        numeric = column in ("before", "after", "change")
        table.add_column(column, justify="right" if numeric else "left")
    last = None
    for change in changes:
        table.add_row(
            Text(change.method if change.method != last else ""),
            change.figure,
            _shown(change.before),
            _shown(change.after),
            _relative(change),
            Text(
                ": ".join(filter(None, (change.verdict, change.why))), style=_STYLE[change.verdict]
            ),
        )
        last = change.method
    console.print(table)
    worse = sum(change.verdict is Verdict.WORSE for change in changes)
    console.print(f"{worse} regression{'s' * (worse != 1)}" if worse else "no regression")
    return worse > 0


_STYLE = {
    Verdict.SAME: "dim",
    Verdict.BETTER: "green",
    Verdict.WORSE: "bold red",
    Verdict.GONE: "yellow",
    Verdict.NEW: "cyan",
}


def _method(
    old: Json, new: Json, old_reference: Json | None, new_reference: Json | None
) -> Iterator[Change]:
    was, now = old.get("refused"), new.get("refused")
    if now is not None:
        verdict = Verdict.SAME if was is not None else Verdict.WORSE
        yield Change(label(new), "", None, None, verdict, f"refused: {now}")
        return
    if was is not None:
        yield Change(label(new), "", None, None, Verdict.BETTER, f"was refused: {was}")
        return
    for figure in _FIGURES:
        before, after = figure.read(old, old_reference), figure.read(new, new_reference)
        if before is not None and after is not None:
            verdict = _verdict(figure, before, after)
        elif before is not None:
            verdict = Verdict.GONE
        elif after is not None:
            verdict = Verdict.NEW
        else:
            continue
        yield Change(label(new), figure.name, before, after, verdict)


def _verdict(figure: _Figure, before: Interval, after: Interval) -> Verdict:
    if before.low == before.high or after.low == after.high:
        changed = abs(after.median - before.median) > figure.slack * abs(before.median)
    else:
        changed = after.low > before.high or after.high < before.low
    if not changed:
        return Verdict.SAME
    return (
        Verdict.BETTER if (after.median > before.median) == figure.more_is_better else Verdict.WORSE
    )


def _alone(method: Json, verdict: Verdict) -> Change:
    reason = method.get("refused")
    return Change(label(method), "", None, None, verdict, f"refused: {reason}" if reason else "")


def _references(record: Json) -> dict[Setting, Json]:
    """The method that speedups refer to, per setting."""
    return {
        setting(method): method
        for method in record["methods"]
        if method["name"] == record["reference"] and method.get("refused") is None
    }


def _exactly(value: float | None) -> Interval | None:
    return None if value is None else Interval(value, value, value)


def _bounded(name: str) -> Callable[[Json, Json | None], Interval | None]:
    return lambda method, _: interval(method, "overall", name)


def _plain(*path: str) -> Callable[[Json, Json | None], Interval | None]:
    return lambda method, _: _exactly(number(method, *path))


def _relative_time(method: Json, reference: Json | None) -> Interval | None:
    """Its time a token over the reference's."""
    if reference is None or key(reference) == key(method):
        return None
    own, plain = (number(each, "overall", "ms_per_token") for each in (method, reference))
    return _exactly(own / plain) if own is not None and plain else None


_FIGURES = (
    _Figure("speedup, end to end", _bounded("speedup_end_to_end")),
    _Figure("speedup, decoding", _bounded("speedup_decode")),
    _Figure("τ", _plain("overall", "acceptance", "mean_acceptance_length")),
    _Figure("η", _plain("efficiency")),
    _Figure("fidelity", _plain("overall", "fidelity", "score")),
    _Figure("time a token, relative", _relative_time, more_is_better=False),
    # A wrong answer is no matter of noise.
    _Figure("wrong answers", _plain("gate", "wrong"), more_is_better=False, slack=0.0),
)


def _unequal(old: object, new: object, name: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for part in dict.fromkeys([*old, *new]):
            yield from _unequal(dig(old, part), dig(new, part), f"{name}, {part}")
    elif old != new:
        yield name, old, new


def _said(value: object) -> str:
    return "nothing" if value is None else str(value)


def _shown(value: Interval | None) -> str:
    if value is None:
        return "–"
    exact = value.low == value.high
    return (
        f"{value.median:.3g}"
        if exact
        else f"{value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"
    )


def _relative(change: Change) -> str:
    if change.before is None or change.after is None or not change.before.median:
        return "–"
    return f"{change.after.median / change.before.median - 1:+.1%}"
