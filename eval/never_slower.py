"""Is speculation ever slower than plain decoding? `python -m specdec.eval.never_slower`.

Tasks × drafters × batch sizes: an :class:`Adaptive` tree against plain decoding on the same engine,
in turns (A, B, A, B, …), a good drafter and useless ones among them. The gate comes first: in fp32
every answer must be that of plain decoding; if one is not, no time is printed. Times are end to end
and of whole batches, prefill included; a cell's ratio is the median over its pairs, above 1 where
speculation is faster.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from specdec.drafters import EnsembleDrafter, NgramDrafter, TextOnlyDrafter, load_drafter
from specdec.drafters.eagle import EagleDrafter
from specdec.engine import Adaptive
from specdec.eval import suite
from specdec.eval.comparison import GateError
from specdec.eval.drafter_bench import label
from specdec.eval.record import machine, write
from specdec.eval.timing import Interval, ratio
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats

GOAL = 0.98


class Cell(NamedTuple):
    """One task with one drafter, in batches of one size.

    Attributes:
        speed: seconds of plain decoding over those of speculation, per pair of runs.
        plain: median seconds of a plain run.
        stats: of all timed runs that speculated.
    """

    task: str
    drafter: str
    batch: int
    speed: Interval
    pairs: int
    plain: float
    stats: AcceptanceStats

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """For the record."""
        values = self._asdict() | {"speed": self.speed._asdict(), "stats": self.stats.to_dict()}
        return {**values, "reaches_goal": self.speed.median >= GOAL}


def all_drafters(
    drafter: PreTrainedModel,
    eagles: Sequence[EagleDrafter] = (),
    embeddings: nn.Module | None = None,
    seed: int = 0,
) -> dict[str, Drafter]:
    """A trained one that sees nothing, look-up, both together, EAGLE heads, and drafters of both
    kinds that know nothing; ``embeddings`` are the verifier's.
    """
    found: dict[str, Drafter] = {
        "text_only": TextOnlyDrafter(drafter),
        "ngram": NgramDrafter(),
        "random": TextOnlyDrafter(randomised(drafter, seed)),
        "ngram+text_only": EnsembleDrafter([NgramDrafter(), TextOnlyDrafter(drafter)]),
    }
    found |= {label(eagle): eagle for eagle in eagles}
    if eagles:
        head = randomised(eagles[-1].head, seed)
        found[f"random {label(eagles[-1])}"] = EagleDrafter(head, embeddings)
    return found


_Network = TypeVar("_Network", bound=nn.Module)


def randomised(model: _Network, seed: int) -> _Network:
    """The same network with weights that nobody has trained."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1.0 if parameter.dim() < 2 else 0.02
            parameter.copy_(torch.ones_like(noise) if parameter.dim() < 2 else scale * noise)
    return other


def measure(
    model: PreTrainedModel,
    processor: Any,  # processors share no useful base
    asked: Sequence[suite.Asked],
    drafters: Mapping[str, Drafter],
    *,
    batches: Sequence[int] = (1, 4),
    rounds: int = 3,
    max_new_tokens: int = 160,
) -> Iterator[Cell]:
    """Gate and time cell by cell. What is measured of a drafter lasts from task to task, as in a
    server.

    Raises:
        GateError: tokens differ; nothing of that cell is handed out.
    """
    limits = {"do_sample": False, "max_new_tokens": max_new_tokens}
    tasks = sorted({each.task for each in asked})
    for batch in batches:
        for name, drafter in drafters.items():
            adaptive = Adaptive()
            for task in tasks:
                questions = [each for each in asked if each.task == task]
                # The last batch is filled up with the first questions.
                ring = [*questions, *questions * batch]
                inputs = [
                    suite.model_inputs(model, processor, ring[start : start + batch])
                    for start in range(0, len(questions), batch)
                ]
                sides = ({"drafter": None}, {"drafter": drafter, "tree": adaptive})
                yield _cell(model, (task, name, batch), inputs, sides, limits, rounds)


def _cell(
    model: PreTrainedModel,
    where: tuple[str, str, int],
    inputs: Sequence[Mapping[str, Any]],
    sides: tuple[dict[str, Any], dict[str, Any]],
    limits: Mapping[str, Any],
    rounds: int,
) -> Cell:
    def run(number: int, side: int) -> tuple[list[list[int]], AcceptanceStats, float]:
        began = time.perf_counter()
        out = generate(model, **inputs[number], **limits, **sides[side])
        seconds = time.perf_counter() - began
        return out.tolist(), out.stats, seconds

    for number in range(len(inputs)):
        plain, drafted = run(number, 0)[0], run(number, 1)[0]
        if plain != drafted:
            raise GateError(
                f"{where[0]}, {where[1]}, batch of {where[2]}: tokens are not those of plain "
                "decoding; no times are reported"
            )
    seconds: tuple[list[float], list[float]] = ([], [])
    stats = AcceptanceStats()
    for turn in range(rounds):
        for number in range(len(inputs)):
            # Which goes first alternates, so that whatever drifts hits both alike.
            for side in (0, 1) if (turn + number) % 2 == 0 else (1, 0):
                _, counts, took = run(number, side)
                seconds[side].append(took)
                if side == 1:
                    stats.merge(counts)
    speed = ratio(*seconds)
    return Cell(*where, speed, len(seconds[0]), statistics.median(seconds[0]), stats)


def _print(console: Console, cells: Sequence[Cell]) -> None:
    table = Table(title="speed over plain decoding, medians of pairs, 95 % bootstrap intervals")
    for column in ("task", "drafter"):
        table.add_column(column)
    for column in ("batch", "× plain", "interval", "τ", "plain steps"):
        table.add_column(column, justify="right")
    for cell in cells:
        style = "" if cell.speed.median >= GOAL else "red"
        stats = cell.stats
        table.add_row(
            cell.task,
            cell.drafter,
            str(cell.batch),
            f"{cell.speed.median:.3f}",
            f"[{cell.speed.low:.3f}, {cell.speed.high:.3f}]",
            f"{stats.mean_acceptance_length:.2f}",
            f"{stats.num_plain_steps / max(stats.num_spec_steps, 1):.0%}",
            style=style,
        )
    console.print(table)
    slow = [cell for cell in cells if cell.speed.median < GOAL]
    console.print(f"{len(cells) - len(slow)} of {len(cells)} cells at {GOAL} or above")


def never_slower(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[Path, typer.Option(help="Folder of the drafter.")] = suite.DRAFTER,
    eagle: Annotated[
        list[Path] | None, typer.Option(help="Folders of EAGLE heads; default: those shipped.")
    ] = None,
    folder: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    questions: Annotated[int, typer.Option(min=1, help="Most per task.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Times each batch is answered.")] = 3,
    batch: Annotated[str, typer.Option(help="Sizes of batches, comma-separated.")] = "1,4",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    task: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare adaptive speculation with plain decoding, cell by cell, in one interleaved run."""
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    ran_on = machine()
    try:
        verifier, processor = suite.load_verifier(model, torch.float32)
        loaded = load_drafter(drafter, verifier)
        if not isinstance(loaded, TextOnlyDrafter):
            raise ValueError(f"{drafter} is no text-only drafter")
        eagles = [load_drafter(each, verifier) for each in eagle or suite.EAGLES]
        heads = [each for each in eagles if isinstance(each, EagleDrafter)]
        if len(heads) < len(eagles):
            raise ValueError(
                f"--eagle: {', '.join(each.name for each in eagles)} are not all heads"
            )
        embeddings: Any = verifier.get_input_embeddings()
        drafters = all_drafters(loaded.model, heads, embeddings)
        asked = _some(suite.load_questions(folder), questions, task)
        sizes = [int(size) for size in batch.split(",")]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    how: dict[str, Any] = {"batches": sizes, "rounds": rounds, "max_new_tokens": max_new_tokens}
    cells = []
    try:
        for cell in measure(verifier, processor, asked, drafters, **how):
            cells.append(cell)
            console.print(f"{cell.task}, {cell.drafter}, {cell.batch}: {cell.speed.median:.3f}")
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error
    _print(console, cells)
    if out is not None:
        record = {
            "machine": ran_on,
            "model": model.name,
            "drafter": drafter.name,
            "dtype": "fp32",
            "questions_per_task": questions,
            **how,
            "goal": GOAL,
            "bootstrap": {"resamples": 2000, "seed": 0},
            "cells": [cell.to_dict() for cell in cells],
        }
        write(out, record)


def _some(
    asked: Sequence[suite.Asked], most: int, tasks: Sequence[str] | None
) -> list[suite.Asked]:
    """Up to so many questions of each of these tasks.

    Raises:
        ValueError: there is no such task.
    """
    known = sorted({each.task for each in asked})
    if unknown := set(tasks or ()) - set(known):
        raise ValueError(f"task {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    each = [[q for q in asked if q.task == task][:most] for task in tasks or known]
    return [question for questions in each for question in questions]


if __name__ == "__main__":
    typer.run(never_slower)
