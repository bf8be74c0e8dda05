"""What a fidelity measurement found: figures, goals, a table, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from specdec.eval.goals import GAIN, LOSS, goals
from specdec.eval.points import LOSSLESS, RANDOM, Point
from specdec.eval.retention import COUNTS, Counts, Curve, Resamples, curve, figures, interval

Json = Mapping[str, Any]  # Any: JSON values
METRICS = {"fields": "right", "answers": "exact"}


def summarise(
    points: Sequence[Point], answers: Sequence[Json], times: Sequence[Json], named: str
) -> dict[str, Any]:
    """Figures of every policy at one temperature, and the goals.

    Args:
        points: the policies.
        answers: lines of a run.
        times: likewise.
        named: the family that was named beforehand.
    """
    table = _table(points, answers)
    resamples = Resamples(len(table[LOSSLESS].total))
    speedups = _speedups(times)
    rows = []
    for point in points:
        row = {"policy": point.name, "family": point.family, "strength": point.strength}
        row |= figures(table[point.name], table[LOSSLESS], resamples)
        rows.append(row | {"speedup": speedups.get(point.name)})
    families: dict[str, list[str]] = {}
    for point in points:
        if point.family != LOSSLESS:
            families.setdefault(point.family, []).append(point.name)
    weighted = list(dict.fromkeys(point.family for point in points if point.weighted))
    halves = [_half(table, half) for half in (0, 1)]
    reached: dict[str, Any] = {}
    for name, metric in METRICS.items():
        reached[name] = goals(
            _curves(families, table, resamples, metric),
            (
                _curves(families, halves[0], Resamples(len(halves[0][LOSSLESS].total)), metric),
                _curves(families, halves[1], Resamples(len(halves[1][LOSSLESS].total)), metric),
            ),
            random=RANDOM,
            weighted=weighted,
            named=named if named in families else None,
        )
    return {
        "answers": int(table[LOSSLESS].answers.sum()),
        "fields": int(table[LOSSLESS].total.sum()),
        "timed": len(times),
        "policies": rows,
        "goals": reached,
    }


def _table(points: Sequence[Point], answers: Sequence[Json]) -> dict[str, Counts]:
    """Counts per policy and question; a question's samples are added up."""
    sums: dict[str, dict[str, dict[str, float]]] = {point.name: {} for point in points}
    # In an order that does not depend on who answered first.
    for line in sorted(answers, key=lambda line: (line["question"], line["sample"])):
        for point in points:
            said = line["policies"][point.name]
            row = sums[point.name].setdefault(line["question"], dict.fromkeys(COUNTS, 0.0))
            for name in COUNTS:
                row[name] += said[name]
    return {name: Counts.gather(list(rows.values())) for name, rows in sums.items()}


def _half(table: Mapping[str, Counts], half: int) -> dict[str, Counts]:
    """Every second question."""
    return {
        name: Counts(**{each: getattr(counts, each)[half::2] for each in COUNTS})
        for name, counts in table.items()
    }


def _curves(
    families: Mapping[str, Sequence[str]],
    table: Mapping[str, Counts],
    resamples: Resamples,
    metric: str,
) -> dict[str, Curve]:
    return {
        name: curve(members, table, resamples, metric=metric) for name, members in families.items()
    }


def _speedups(times: Sequence[Json]) -> dict[str, Any]:
    """Per policy the median over questions of the plain time a token over its own."""
    if not times:
        return {}
    resamples = Resamples(len(times))
    lines = [line["ms_per_token"] for line in times]
    plain = np.array([line["plain"] for line in lines])
    return {
        name: interval(resamples.median(plain / np.array([line[name] for line in lines])))._asdict()
        for name in lines[0]
        if name != "plain"
    }


COLUMNS: tuple[str, ...] = (
    *("τ", "× lossless", "speedup", "fields right", "retained", "answers right", "retained"),
    *("same answer", "similarity", "relaxed", "spent", "ended"),
)
_SHOWN = (
    ("tau", "{:.2f}"),
    ("tau_ratio", "{:.2f}"),
    ("speedup", "{:.2f}"),
    ("fields_right", "{:.1%}"),
    ("fields_retained", "{:.1%}"),
    ("answers_right", "{:.1%}"),
    ("answers_retained", "{:.1%}"),
    ("same_answer", "{:.0%}"),
    ("similarity", "{:.2f}"),
    ("relaxed_share", "{:.1%}"),
    ("spent_per_answer", "{:.2f}"),
    ("ended", "{:.1%}"),
)
_WITH_INTERVAL = ("tau_ratio", "speedup", "fields_retained", "answers_retained")


def cells(row: Json) -> list[str]:
    """A policy's row of the table."""
    found = [row["policy"]]
    for name, form in _SHOWN:
        figure = row[name]
        if figure is None:
            found.append("–")
            continue
        text = form.format(figure["value"])
        if name in _WITH_INTERVAL:
            text += f" [{form.format(figure['low'])}, {form.format(figure['high'])}]"
        found.append(text)
    return found


def verdicts(result: Json) -> list[str]:
    """The goals at one temperature, a sentence each."""
    told = []
    for metric, reached in result["goals"].items():
        speed, quality, named = reached["equal_speed"], reached["equal_quality"], reached["named"]
        tau = speed["tau_where_random_loses"]
        where = f"τ {_said(tau, '{:.2f}')}" if tau["value"] == tau["value"] else "no τ measured"
        told.append(f"{metric}: random relaxation first loses 5 % at {where}.")
        for title, entry in (
            (f"{named}, named beforehand", speed["families"].get(named)),
            _chosen(speed),
        ):
            if entry is None:
                told.append(f"{metric}, equal speed, {title}: not measured.")
            elif not entry["reached"]:
                told.append(f"{metric}, equal speed, {title}: MISSED, it does not reach that τ.")
            else:
                told.append(
                    f"{metric}, equal speed, {title}: {_met(entry)}, it retains "
                    f"{_said(entry['retained'], '{:.1%}')}; wanted {1 - LOSS:.1%}."
                )
        for title, entry in (
            (f"{named}, named beforehand", quality["families"].get(named)),
            _chosen(quality),
        ):
            if entry is None:
                told.append(f"{metric}, equal quality, {title}: not measured.")
                continue
            told.append(
                f"{metric}, equal quality, {title}: {_met(entry)}, {entry['point']} has "
                f"{_said(entry['tau_ratio'], '{:.2f}')} times the lossless τ and retains "
                f"{_said(entry['retained'], '{:.1%}')}; wanted {GAIN} times."
            )
        others = sorted(
            quality["families"].items(), key=lambda item: -item[1]["tau_ratio"]["value"]
        )
        told.append(
            f"{metric}: most τ at no more than {LOSS:.1%} loss, × lossless: "
            + ", ".join(f"{name} {entry['tau_ratio']['value']:.2f}" for name, entry in others)
            + "."
        )
    return told


def _chosen(goal: Json) -> tuple[str, Any]:
    chosen = goal.get("chosen")
    title = "best family, chosen on one half of the questions and measured on the other"
    return (f"{title} ({chosen['family']})" if chosen else title), chosen


def _met(entry: Json) -> str:
    return (
        f"{'met' if entry['met'] else 'MISSED'} (in {entry['met_in_resamples']:.0%} of resamples)"
    )


def _said(figure: Json, form: str) -> str:
    parts = (form.format(figure[part]) for part in ("value", "low", "high"))
    return "{} [{}, {}]".format(*parts)


def title(at: str) -> str:
    """Of the answers at one temperature."""
    return "greedy" if float(at) == 0 else f"T = {at}"


def show(console: Console, result: Json) -> None:
    """Print tables and goals."""
    for at, found in result["results"].items():
        table = Table(title=f"{title(at)}, {found['answers']} answers, 95 % intervals")
        table.add_column("policy")
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for row in found["policies"]:
            table.add_row(*cells(row))
        console.print(table)
        for line in verdicts(found):
            console.print(line)
