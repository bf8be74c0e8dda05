"""`specdec bench`: how much faster, on these images, with this model, at what loss?

Drafters × trees × policies × batch sizes × temperatures, transformers' own ways and our engine
without drafting, all in one interleaved run. The gate comes first: lossless greedy answers must be
those of ``generate`` token for token (below fp32 up to near ties), else no time is shown. Importing
this imports no model code.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.training.recipes import use_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from specdec.eval.bench_plan import Plan

DTYPES = ("bf16", "fp16", "fp32")


def bench(
    model: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of the verifier; demo is the one shipped.")
    ] = "demo",
    recipe: Annotated[
        str | None,
        typer.Option(
            callback=use_recipe,
            is_eager=True,
            help="Options from a YAML file. What is given besides goes before it.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="Where questions come from: suite, those that come along; a folder of images and "
            "*.jsonl; a saved data set; or hub:owner/name[:split][@adapter]."
        ),
    ] = "suite",
    count: Annotated[int, typer.Option(min=1, help="How many questions.")] = 35,
    task: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    drafter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|ngram|self_pruned",
            help="May be repeated; several joined by + draft together. Default: ngram, for the "
            "demo model also those that come along.",
        ),
    ] = None,
    tree: Annotated[
        list[str] | None,
        typer.Option(help="As for generate: 8, 3,2,1, dynamic:16, auto; may be repeated."),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="lossless, or a file of `specdec calibrate`; may be repeated."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="assisted, prompt lookup, chain loop, or none; may be repeated. Default: all."
        ),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Questions at once; may be repeated.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="0 is greedy; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"Of the verifier: {', '.join(DTYPES)}.")] = "bf16",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    rounds: Annotated[int, typer.Option(min=1, help="Times each question is answered.")] = 1,
    bound: Annotated[
        float, typer.Option(min=0, help="Logits within which tokens count as tied, below fp32.")
    ] = 0.25,
    shown: Annotated[int, typer.Option(min=0, help="Answers for the report's viewer.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, and of which questions.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for bench.json and report.html.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out stopped.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Measure nothing: what has changed between two bench.json."),
    ] = None,
) -> None:
    """Measure acceptance, speed and fidelity against transformers' own decoding."""
    from rich.console import Console

    console = Console(highlight=False)
    if compare is not None:
        _compare(console, *compare)
        return
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if dtype not in DTYPES:
        raise typer.BadParameter(f"dtype {dtype}; known: {', '.join(DTYPES)}")
    if resume and out is None:
        raise typer.BadParameter("--resume goes on in a folder; give it with --out")
    from specdec.eval.bench_plan import RIVALS, Plan
    from specdec.eval.comparison import GateError

    try:
        plan = Plan(
            model=model,
            data=data,
            count=count,
            seed=seed,
            tasks=tuple(task or ()),
            drafters=tuple(drafter or _drafters(model)),
            trees=tuple(tree or ("8",)),
            policies=tuple(policy or ("lossless",)),
            rivals=tuple(each for each in rival or RIVALS if each != "none"),
            batches=tuple(batch or (1,)),
            temperatures=tuple(temperature or (0.0,)),
            dtype=dtype,
            device=device,
            max_new_tokens=max_new_tokens,
            rounds=rounds,
            bound=0.0 if dtype == "fp32" else bound,
            shown=shown,
        )
        _run(console, plan, out, resume=resume)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error


def _drafters(model: str) -> list[str]:
    """What is measured if nothing is said."""
    from specdec.eval import suite

    found = ["ngram"]
    return [*found, *map(str, (suite.DRAFTER, *suite.EAGLES))] if model == "demo" else found


def _run(console: Console, plan: Plan, out: Path | None, *, resume: bool) -> None:
    from specdec.eval import bench_table
    from specdec.eval.bench_record import SCHEMA
    from specdec.eval.bench_session import Session
    from specdec.eval.report import write_report
    from specdec.files import write_json

    began, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = folder / "unfinished"
        session = Session(plan, folder, work, resume=resume)
        for each in session.questions.skipped:
            console.print(f"left out: {each.where}: {each.why}")
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "command": shlex.join(["specdec", *sys.argv[1:]]),
            "started": started,
            **session.measure(bench_table.progress(console)),
        }
        record["wall_seconds"] = round(time.perf_counter() - began, 1)
        bench_table.show(console, record)
        if out is not None:
            write_json(out / "bench.json", record)
            write_report(record, out / "report.html")
            shutil.rmtree(work)
            console.print(f"{out / 'bench.json'} and {out / 'report.html'}")


def _compare(console: Console, before: Path, after: Path) -> None:
    from specdec.eval import regressions
    from specdec.eval.bench_record import read_record

    try:
        old, new = read_record(before), read_record(after)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    changes = regressions.compare(old, new)
    if regressions.show(console, changes, regressions.differences(old, new)):
        raise typer.Exit(1)
