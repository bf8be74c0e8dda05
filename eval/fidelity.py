"""What relaxed acceptance gains, and what it costs: `python -m specdec.eval.fidelity`.

On held-out questions about images whose facts are known, every acceptance policy answers with the
same drafter and the same draft tree, greedily and sampled. Per policy: mean acceptance length,
speedup, the share of facts that are stated rightly, and how much of the lossless answers' accuracy
that is, with 95 % bootstrap intervals over questions; policies are compared on the same questions,
and sampled answers with the same random numbers.

Answers are given by all policies at once, as rows of one batch, over all questions. Times are taken
afterwards on some of the questions, each policy alone, in turns: milliseconds a token in steps,
prefill excluded, against the verifier without a drafter through the same engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from specdec.eval import fidelity_page, fidelity_report, fidelity_run, suite
from specdec.eval.fidelity_bench import Bench, Plan
from specdec.eval.record import machine, write


def fidelity(
    questions: Annotated[
        int | None, typer.Option(min=2, help="Of those that are shipped; default all.")
    ] = None,
    generated: Annotated[
        int, typer.Option(min=0, help="More held-out questions from the generator.")
    ] = 300,
    tree: Annotated[int, typer.Option(min=1, help="Draft a chain of so many tokens.")] = 8,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Of the answers; may be repeated. Default 0 and 0.7.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each question where they are sampled.")
    ] = 1,
    timed: Annotated[int, typer.Option(min=0, help="Questions to time policies on.")] = 20,
    family: Annotated[
        list[str] | None,
        typer.Option(help="Only families whose names begin so, and those they are compared with."),
    ] = None,
    named: Annotated[
        str, typer.Option(help="The family that the goals are set for, named beforehand.")
    ] = "probe γ=1",
    reliance: Annotated[
        Path | None,
        typer.Option(help="Folder of trained estimators; default: reliance beside the model."),
    ] = None,
    assets: Annotated[
        Path, typer.Option(help="Folder of the embedded model and its questions.")
    ] = suite.QUESTIONS,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    dtype: Annotated[str, typer.Option(help="Of the verifier.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of what is sampled.")] = 0,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that answer, the cores divided among them.")
    ] = os.cpu_count() or 1,
    run: Annotated[
        Path, typer.Option(help="Folder of what was measured so far; goes on from there.")
    ] = Path("runs/fidelity"),
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results/fidelity.json, fidelity.md and fidelity.png."),
    ] = None,
) -> None:
    """Compare acceptance policies by speed and by grounded accuracy."""
    console = Console(highlight=False)
    beside = assets / "lvlm" / "reliance"
    estimators = reliance or (beside if beside.is_dir() else None)
    if estimators is None:
        console.print(f"no trained estimators in {beside}: only the divergence is measured")
    plan = Plan(
        assets=str(assets),
        reliance=None if estimators is None else str(estimators),
        shipped=questions,
        generated=generated,
        tree=tree,
        temperatures=tuple(temperature or (0.0, 0.7)),
        samples=samples,
        timed=timed,
        families=tuple(family or ()),
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        seed=seed,
    )
    started = {"machine": machine(), **plan.public()}
    try:
        fidelity_run.begin(run, plan)
        bench = Bench(plan)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

    def told(number: int, count: int) -> None:
        if number % 10 == 0 or number == count:
            console.print(f"{number} of {count}")

    console.print(f"answering {len(bench.questions)} questions")
    if workers > 1:
        fidelity_run.work_apart(plan, run, workers)
    else:
        fidelity_run.work(bench, run, "answers", 0, 1, told)
    console.print(f"timing on {timed} of them, {torch.get_num_threads()} threads")
    fidelity_run.work(bench, run, "times", 0, 1, told)
    result: dict[str, Any] = {
        **started,
        "questions": len(bench.questions),
        "results": {
            str(at): fidelity_report.summarise(
                bench.points(at),
                [line for line in fidelity_run.lines(run, "answers") if line["temperature"] == at],
                [line for line in fidelity_run.lines(run, "times") if line["temperature"] == at],
                named,
            )
            for at in plan.temperatures
        },
    }
    fidelity_report.show(console, result)
    if out is not None:
        write(out / "results" / "fidelity.json", result)
        (out / "fidelity.md").write_text(fidelity_page.markdown(result), encoding="utf-8")
        fidelity_page.plot(result, out / "fidelity.png")


if __name__ == "__main__":
    typer.run(fidelity)
