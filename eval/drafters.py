"""What each drafter is worth, task by task: `python -m specdec.eval.drafters --out FILE`.

See :mod:`specdec.eval.drafter_bench` for what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from specdec.eval import suite
from specdec.eval.comparison import GateError
from specdec.eval.drafter_bench import contenders, measure
from specdec.eval.drafter_goals import ALL, goals
from specdec.eval.record import machine, write

NODES = 16  # most drafted nodes of a tree


def shipped() -> list[str]:
    """The drafters that come along, those that need no training, and two at once."""
    eagles = [str(folder) for folder in suite.EAGLES]
    blind = str(suite.DRAFTER)
    return ["ngram", blind, *eagles, f"ngram+{eagles[-1]}", "self_pruned"]


def show(console: Console, result: dict[str, Any], task: str) -> None:
    """A table of one task."""
    table = Table(title=f"{task}; medians over questions, 95 % bootstrap intervals")
    table.add_column("drafter, tree")
    for column in ("τ", "per position", "draft ms", "KV bytes", "× decode", "× end to end"):
        table.add_column(column, justify="right")
    for name, entry in result["drafters"].items():
        row = entry["tasks"][task]
        table.add_row(
            name,
            f"{row['mean_acceptance_length']:.2f}",
            " ".join(f"{share:.2f}" for share in row["acceptance_per_position"][:4]),
            f"{row['draft_ms_per_step']:.2f}",
            f"{entry['kv_bytes']:,}",
            *(
                f"{row[key]['median']:.2f} [{row[key]['low']:.2f}, {row[key]['high']:.2f}]"
                for key in ("speedup_decode", "speedup_end_to_end")
            ),
        )
    console.print(table)


def drafters(
    drafter: Annotated[
        list[str] | None, typer.Option(help="Folders, ngram, or several joined by +.")
    ] = None,
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    dtype: Annotated[str, typer.Option(help="Of the verifier.")] = "bf16",
    bound: Annotated[float, typer.Option(min=0, help="Tie bound in logits below fp32.")] = 0.25,
    nodes: Annotated[int, typer.Option(min=2, help="Most drafted nodes of a tree.")] = NODES,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare drafters on held-out questions, task by task, in one interleaved run."""
    if threads is not None:
        torch.set_num_threads(threads)
    if dtype not in suite.DTYPES:
        raise typer.BadParameter(f"dtype {dtype}; known: {', '.join(suite.DTYPES)}")
    console = Console()
    names = drafter or shipped()
    try:
        asked = suite.load_questions(count=questions)
        verifier, processor = suite.load_verifier(model, suite.DTYPES[dtype])
        each = contenders(verifier, names, nodes)
        inputs = [suite.model_inputs(verifier, processor, [one]) for one in asked]
        result = measure(
            verifier,
            each,
            inputs,
            [one.task for one in asked],
            bound=0.0 if dtype == "fp32" else bound,
            max_new_tokens=max_new_tokens,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error
    for task in [ALL, *dict.fromkeys(one.task for one in asked)]:
        show(console, result, task)
    reached = goals(result["drafters"])
    for name, goal in reached.items():
        met = "met" if goal["met"] else "missed"
        console.print(f"{name}: {goal['value']}, goal {goal['goal']}, {met} ({goal['by']})")
    if out is not None:
        settings = {
            "machine": machine(),
            "model": model.name,
            "dtype": dtype,
            "questions": questions,
            "nodes": nodes,
            "max_new_tokens": max_new_tokens,
        }
        write(out, settings | result | {"goals": reached})


if __name__ == "__main__":
    typer.run(drafters)
