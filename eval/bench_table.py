"""A benchmark on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any  # JSON values

from rich.console import Console
from rich.table import Table

_SAID = 15.0  # seconds between two lines of progress


def progress(console: Console) -> Callable[[int, int], None]:
    """Says how far a run is, and how long it will take, every now and then."""
    began = last = time.monotonic()
    first: int | None = None

    def told(done: int, total: int) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = done - 1 if first is None else first  # what was there before
        if now - last < _SAID and done < total:
            return
        last = now
        left = (now - began) / max(done - first, 1) * (total - done)
        console.print(f"{done} of {total} batches, {left / 60:.1f} min left")

    return told


def show(console: Console, record: Mapping[str, Any]) -> None:
    """A table of all methods."""
    model, machine = record["model"], record["machine"]
    table = Table(
        title=f"{model['name']} in {model['dtype']} on {machine['cpu']}, {machine['threads']} "
        f"threads; {record['questions']['count']} questions; medians, 95 % bootstrap intervals"
    )
    table.add_column("method")
    columns = ("batch", "T", "τ", "accepted", "× decode", "× end to end", "ms/token", "TTFT ms")
    for column in (*columns, "η", "fidelity", "ties"):
        table.add_column(column, justify="right")
    for each in record["methods"]:
        if each["refused"]:
            table.add_row(each["name"], str(each["batch"]), f"{each['temperature']:g}", "refused")
            continue
        figures, gate = each["overall"], each["gate"]
        acceptance, fidelity = figures["acceptance"], figures["fidelity"]
        table.add_row(
            each["name"],
            str(each["batch"]),
            f"{each['temperature']:g}",
            f"{acceptance['mean_acceptance_length']:.2f}" if acceptance else "–",
            f"{acceptance['draft_acceptance_rate']:.0%}" if acceptance else "–",
            _interval(figures["speedup_decode"]),
            _interval(figures["speedup_end_to_end"]),
            f"{figures['ms_per_token']:.2f}",
            f"{figures['ttft_ms']['p50']:.1f}" if figures["ttft_ms"] else "–",
            f"{each['efficiency']:.2f}" if each["efficiency"] else "–",
            f"{fidelity['score']:.1%}" if fidelity else "–",
            f"{gate['ties']}/{gate['answers']}" if gate else "–",
        )
    console.print(table)
    for each in record["methods"]:
        if each["refused"]:
            console.print(f"{each['name']}, batch of {each['batch']}: {each['refused']}")


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"
