"""What answering many requests at once yields here: `python -m specdec.eval.batches`.

The same questions to the shipped model, so many at a time, plainly and with the shipped drafters;
tokens a second behind the prompts, against one request at a time. The gate: in fp32 every answer of
every round must be that of transformers' `generate`, up to ties of the verifier's own; if one is
not, no speed is printed. Answers are all as long, so that a batch stays full.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from specdec.demo import ASSETS, load
from specdec.demo import questions as demo_questions
from specdec.drafters import load_drafter
from specdec.engine import Engine
from specdec.eval import suite
from specdec.eval.comparison import GateError
from specdec.eval.plan import numbers_of
from specdec.eval.record import machine, write
from specdec.eval.throughput import submit
from specdec.eval.timing import Inputs, Said, check, plainly
from specdec.interfaces import Drafter, reads_of
from specdec.tree import Shape, chain
from specdec.verifiers import TransformersVerifier

TIE = 1e-3  # logits


class Method(NamedTuple):
    """``shape`` is what ``drafter`` drafts for every request and step."""

    name: str
    drafter: Drafter | None
    shape: Shape


class Cell(NamedTuple):
    """One method with so many requests at a time.

    Attributes:
        tokens_per_second: behind the prompts, median over the rounds.
        ms_per_step: likewise.
        over_one: tokens a second over those of one at a time.
        mean_acceptance_length: tokens a step and request.
        others: answers that are not those of ``generate``; in fp32 ties alone.
    """

    method: str
    batch: int
    tokens_per_second: float
    ms_per_step: float
    over_one: float
    mean_acceptance_length: float
    others: int


class _Run(NamedTuple):
    answers: list[Said]
    tokens: int
    steps: int
    seconds: float
    mean_acceptance_length: float


def measure(
    model: PreTrainedModel,
    method: Method,
    asked: Sequence[Inputs],
    right: Sequence[Said],
    *,
    batches: Sequence[int],
    tokens: int,
    rounds: int,
) -> Iterator[Cell]:
    """The cells of one method, all sizes in turns.

    Args:
        model: the verifier.
        method: to measure.
        asked: the questions.
        right: what ``generate`` answers to them.
        batches: requests at a time; one, and others.
        tokens: length of the answers.
        rounds: times all are answered.

    Raises:
        GateError: in fp32 an answer is wrong.
    """
    verifier = TransformersVerifier(model, taps=reads_of(method.drafter).layers)
    runs: dict[int, list[_Run]] = {batch: [] for batch in batches}
    others = dict.fromkeys(batches, 0)
    for turn in range(rounds + 1):  # the first is a warm-up
        for batch in batches:
            run = _run(verifier, method, asked, batch, tokens)
            found = check(model, asked, right, run.answers, TIE)
            if model.dtype == torch.float32 and found.wrong:
                raise GateError(
                    f"{method.name}, {batch} at a time: {found.wrong} of {found.answers} answers "
                    "are not those of model.generate; no speeds are reported"
                )
            others[batch] = max(others[batch], found.ties + found.wrong)
            if turn:
                runs[batch].append(run)
    alone = _rate(runs[1])
    for batch in batches:
        rate = _rate(runs[batch])
        step = statistics.median(1000 * run.seconds / run.steps for run in runs[batch])
        length = runs[batch][0].mean_acceptance_length
        yield Cell(method.name, batch, rate, step, rate / alone, length, others[batch])


def _rate(runs: Sequence[_Run]) -> float:
    return statistics.median(run.tokens / run.seconds for run in runs)


def _run(
    verifier: TransformersVerifier, method: Method, asked: Sequence[Inputs], batch: int, tokens: int
) -> _Run:
    """All questions, ``batch`` at a time."""
    answers, steps, count, seconds, lengths = list[Said](), 0, 0, 0.0, list[float]()
    for start in range(0, len(asked), batch):
        engine = Engine(verifier, method.drafter, method.shape)
        try:
            requests = [
                request
                for inputs in asked[start : start + batch]
                for request in submit(engine, verifier.model, inputs, tokens)
            ]
            while engine.num_running + sum(each.finished for each in requests) < len(requests):
                engine.step()
            began = time.perf_counter()
            while engine.has_work:
                count += len(engine.step())
                steps += 1
            seconds += time.perf_counter() - began
        finally:
            engine.close()
        answers += [Said(request.output) for request in requests]
        lengths.append(engine.stats.mean_acceptance_length)
    return _Run(answers, count, steps, seconds, statistics.mean(lengths))


def methods(drafter: Drafter, eagle: Drafter) -> list[Method]:
    """Plain decoding, a chain of 4 by the drafter and one of 8 by the head."""
    return [
        Method("plain", None, chain(0)),
        Method(drafter.name, drafter, chain(4)),
        Method(eagle.name, eagle, chain(8)),
    ]


def _print(console: Console, cells: Sequence[Cell]) -> None:
    table = Table(title="tokens a second behind the prompts, so many requests at a time")
    table.add_column("method")
    for column in ("requests", "tokens/s", "× one", "ms/step", "τ", "other answers"):
        table.add_column(column, justify="right")
    for cell in cells:
        table.add_row(
            cell.method,
            str(cell.batch),
            f"{cell.tokens_per_second:.0f}",
            f"{cell.over_one:.2f}",
            f"{cell.ms_per_step:.2f}",
            f"{cell.mean_acceptance_length:.2f}",
            str(cell.others),
        )
    console.print(table)


def batches(
    sizes: Annotated[
        str, typer.Option("--batches", help="Requests at a time, by commas; 1 is always one.")
    ] = "1,4,16,32",
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 32,
    tokens: Annotated[int, typer.Option(min=2, help="Length of the answers.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Times all are answered.")] = 3,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(suite.DTYPES)}.")] = "fp32",
    only: Annotated[list[str] | None, typer.Option(help="Only these methods.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare batch sizes with the shipped model on this CPU."""
    if dtype not in suite.DTYPES:
        raise typer.BadParameter(f"dtype {dtype!r}: known are {', '.join(suite.DTYPES)}")
    try:
        each = sorted({1, *numbers_of(sizes, "batches")})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if threads is not None:
        torch.set_num_threads(threads)
    console, ran_on = Console(), machine()
    demo = load(dtype=suite.DTYPES[dtype])
    asked = [question.encode(demo.processor) for question in demo_questions()[:questions]]
    chosen = methods(demo.drafter, load_drafter(ASSETS / "eagle-hidden", demo.model))
    if unknown := set(only or ()) - {method.name for method in chosen}:
        raise typer.BadParameter(
            f"--only {', '.join(unknown)}: expected {', '.join(method.name for method in chosen)}"
        )
    how: dict[str, Any] = {"batches": each, "tokens": tokens, "rounds": rounds}
    right = plainly(demo.model, asked, max_new_tokens=tokens, eos_token_id=None)
    cells = list[Cell]()
    try:
        for method in chosen:
            if not only or method.name in only:
                cells += measure(demo.model, method, asked, right, **how)
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error
    _print(console, cells)
    if out is not None:
        record = {"machine": ran_on, "dtype": dtype, "questions": len(asked), **how}
        write(out, {**record, "cells": [cell._asdict() for cell in cells]})


if __name__ == "__main__":
    typer.run(batches)
