"""How many tokens a second come out of an engine that serves many?
`python -m specdec.eval.serve_throughput`.

So many requests are in flight at any time: as one ends, the next comes. Without drafting, with a
fixed tree, and with one that adapts to the load, for each drafter; all of it in turns, so that
whatever drifts hits all alike. An engine lives through all rounds and loads, as a server's does,
prompts included in its times; its prompts share nothing. The gate comes first and last: in fp32
every answer of every round must be that of transformers' `generate`, up to ties of the verifier's
own, or no speed is told. What a step of a full batch costs is told by `specdec.eval.batches`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from specdec import ThreadedEngine
from specdec.drafters import load_drafter
from specdec.engine import Limits
from specdec.eval import suite
from specdec.eval.comparison import GateError
from specdec.eval.drafter_bench import label
from specdec.eval.plan import numbers_of
from specdec.eval.record import machine, write
from specdec.eval.timing import Inputs, Interval, Said, check, plainly, ratio
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats

TIE = 1e-3  # logits
TREES = (4, "auto")
SHIPPED = suite.DRAFTER, suite.EAGLES[0]
BATCHED, DRAFTED = 3.0, 0.98  # goals: over one at a time, and over no drafts at the largest load
OFF = "off"


@dataclass(slots=True)
class Cell:
    """One way at one load.

    Attributes:
        way: ``off``, or the drafter and its tree.
        in_flight: requests at any time.
        rates: tokens a second of every round.
        stats: of all rounds.
    """

    way: str
    in_flight: int
    rates: list[float] = field(default_factory=list)
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """For the record."""
        return {
            "way": self.way,
            "in_flight": self.in_flight,
            "tokens_per_second": statistics.median(self.rates),
            "rounds": self.rates,
            "mean_acceptance_length": self.stats.mean_acceptance_length,
            "drafted_per_step": self.stats.num_draft_tokens / max(self.stats.num_spec_steps, 1),
        }


def measure(
    model: PreTrainedModel,
    asked: Sequence[Inputs],
    drafters: Mapping[str, Drafter],
    *,
    in_flight: Sequence[int],
    rounds: int,
    max_new_tokens: int,
) -> list[Cell]:
    """Every way at every load.

    Raises:
        GateError: an answer is wrong; nothing is handed out.
    """
    limits = {"do_sample": False, "max_new_tokens": max_new_tokens}
    right = plainly(model, asked, max_new_tokens=max_new_tokens)
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                ThreadedEngine(model, drafter, tree=tree, limits=Limits(max_batch=max(in_flight)))
            )
            for name, drafter, tree in _ways(drafters)
        }
        for engine in engines.values():
            engine.verifier.shares = False

        def run(way: str, many: int) -> tuple[float, AcceptanceStats]:
            said, stats, seconds = _answers(engines[way], asked, many, limits)
            found = check(model, asked, right, said, TIE)
            if found.wrong:
                raise GateError(
                    f"{way}, {many} in flight: {found.wrong} of {found.answers} answers are not "
                    "those of model.generate; no speeds are reported"
                )
            return sum(len(each.tokens) for each in said) / seconds, stats

        for way in engines:  # the gate, and what an engine learns about its costs
            run(way, max(in_flight))
        cells = [Cell(way, many) for many in in_flight for way in engines]
        for turn in range(rounds):
            for cell in cells if turn % 2 == 0 else reversed(cells):
                rate, stats = run(cell.way, cell.in_flight)
                cell.rates.append(rate)
                cell.stats.merge(stats)
    return cells


def by_label(drafters: Iterable[Drafter]) -> dict[str, Drafter]:
    """What each is called in a table.

    Raises:
        ValueError: two of them alike.
    """
    found: dict[str, Drafter] = {}
    for each in drafters:
        if (name := label(each)) in found:
            raise ValueError(f"two of the drafters are {name}: measure them one at a time")
        found[name] = each
    return found


def _ways(drafters: Mapping[str, Drafter]) -> list[tuple[str, Drafter | None, int | str]]:
    drafted = [(f"{name}, {tree}", each, tree) for name, each in drafters.items() for tree in TREES]
    return [(OFF, None, 1), *drafted]


def _answers(
    engine: ThreadedEngine, asked: Sequence[Inputs], in_flight: int, limits: Mapping[str, Any]
) -> tuple[list[Said], AcceptanceStats, float]:
    """Tokens in order, acceptance, and seconds."""
    stats = AcceptanceStats()

    def ask(inputs: Inputs) -> Said:
        stream = engine.submit(**inputs, **limits)
        return Said(stream.result(), stream.stats)

    with ThreadPoolExecutor(in_flight) as callers:
        began = time.perf_counter()
        said = list(callers.map(ask, asked))
        seconds = time.perf_counter() - began
    for each in said:
        assert each.stats is not None, "a stream has them"
        stats.merge(each.stats)
    return said, stats, seconds


def ratios(cells: Sequence[Cell]) -> dict[str, dict[str, Interval]]:
    """``batched``: over the same way one at a time. ``drafted``: over no drafts at the same load.
    Medians of pairs of rounds.
    """
    rates = {(cell.way, cell.in_flight): cell.rates for cell in cells}
    least = min(many for _, many in rates)
    return {
        "batched": {
            f"{way} @ {many}": ratio(found, rates[way, least])
            for (way, many), found in rates.items()
            if many > least
        },
        "drafted": {
            f"{way} @ {many}": ratio(found, rates[OFF, many])
            for (way, many), found in rates.items()
            if way != OFF
        },
    }


def goals(cells: Sequence[Cell]) -> dict[str, bool]:
    """Whether drafting pays as it should at the largest load, and batching if there is another."""
    found, most = ratios(cells), max(cell.in_flight for cell in cells)
    adapted = [each for each in found["drafted"] if each.endswith(f"auto @ {most}")]
    batched = {name: each for name, each in found["batched"].items() if name == f"{OFF} @ {most}"}
    return {f"batched: {name}": each.median >= BATCHED for name, each in batched.items()} | {
        f"drafted: {each}": found["drafted"][each].median >= DRAFTED for each in adapted
    }


def _print(console: Console, cells: Sequence[Cell]) -> None:
    found = ratios(cells)
    table = Table(title="Tokens a second, prompts included")
    for column in ("way", "in flight", "tokens/s", "× one at a time", "× off", "τ"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for cell in cells:
        key = f"{cell.way} @ {cell.in_flight}"
        pair = [found[kind].get(key) for kind in ("batched", "drafted")]
        shown = ["" if each is None else f"{each.median:.2f}" for each in pair]
        rate, tau = statistics.median(cell.rates), cell.stats.mean_acceptance_length
        table.add_row(cell.way, str(cell.in_flight), f"{rate:.0f}", *shown, f"{tau:.2f}")
    console.print(table)
    for name, reached in goals(cells).items():
        console.print(f"{'reached' if reached else 'missed '} {name}", markup=False)


def serve_throughput(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[
        list[Path] | None, typer.Option(help="Folders of drafters; default: two that are shipped.")
    ] = None,
    folder: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    requests: Annotated[int, typer.Option(min=1, help="Of every run.")] = 64,
    in_flight: Annotated[str, typer.Option(help="Loads, comma-separated.")] = "1,4,16,32",
    rounds: Annotated[int, typer.Option(min=1, help="Runs of every way at every load.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure throughput by load, with and without drafts."""
    if threads is not None:
        torch.set_num_threads(threads)
    console, ran_on = Console(), machine()
    try:
        loads = sorted(set(numbers_of(in_flight, "in flight")))
        verifier, processor = suite.load_verifier(model, torch.float32)
        loaded = by_label(load_drafter(d, verifier) for d in drafter or SHIPPED)
        asked = suite.load_questions(folder, requests)
        inputs = [suite.model_inputs(verifier, processor, [each]) for each in asked]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    how: dict[str, Any] = {"rounds": rounds, "max_new_tokens": max_new_tokens, "in_flight": loads}
    try:
        cells = measure(verifier, inputs, loaded, **how)
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error
    _print(console, cells)
    if out is not None:
        found = {kind: {k: v._asdict() for k, v in r.items()} for kind, r in ratios(cells).items()}
        record = {"machine": ran_on, "requests": requests, **how, "goals": goals(cells)}
        write(out, {**record, "ratios": found, "cells": [cell.to_dict() for cell in cells]})


if __name__ == "__main__":
    typer.run(serve_throughput)
