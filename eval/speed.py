"""Speed against transformers' ``generate``: `python -m specdec.eval.speed`.

The gate comes first: in fp32 every token must be that of ``model.generate``; in lower precision an
answer may part from it where the verifier's best logits are closer than a bound, since there the
shape of a forward decides. If one answer fails, no speed is printed.

Times are end to end and per generated token, prefill included, tokens counted from ids on both
sides; every question is answered by all methods in turn, and ratios are taken per question.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from specdec.drafters import TextOnlyDrafter, load_drafter
from specdec.eval import suite
from specdec.eval.comparison import GateError, compare
from specdec.eval.methods import REFERENCE, all_methods
from specdec.eval.record import machine, write

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _print(console: Console, dtype: str, result: Mapping[str, Any]) -> None:
    table = Table(title=f"verifier in {dtype}, medians over questions, 95 % bootstrap intervals")
    table.add_column("method")
    columns = ("ms/token", "× generate", "× plain loop", "τ", "accepted", "outside models", "ties")
    for column in columns:
        table.add_column(column, justify="right")
    for name, entry in result["methods"].items():
        acceptance, shares = entry.get("acceptance"), entry.get("step_shares")
        checked = entry["check"]
        table.add_row(
            name,
            f"{entry['ms_per_token_median']:.2f}",
            _interval(entry["ratio_to_generate"]),
            _interval(entry.get("ratio_to_yardstick")),
            f"{acceptance['mean_acceptance_length']:.2f}"
            if acceptance
            else f"{entry['tokens_per_verifier_forward_in_warm_up']:.2f}",
            f"{acceptance['draft_acceptance_rate']:.0%}" if acceptance else "–",
            f"{shares['outside_models']:.0%}" if shares else "–",
            f"{checked['ties'] + checked['wrong']}/{checked['answers']}",
        )
    for name, error in result["refused"].items():
        table.add_row(name, "refused", error)
    console.print(table)
    costs = result["forward_ms"]
    console.print(
        f"bare forwards: verifier {costs['prefill']:.1f} ms for a prompt, "
        f"{costs['verifier_one']:.2f} ms for one token, "
        f"{costs['verifier_nodes']:.2f} ms for {costs['nodes']}; "
        f"drafter {costs['drafter_one']:.2f} ms for one"
    )
    for name, entry in result["methods"].items():
        if shares := entry.get("step_shares"):
            parts = ", ".join(f"{phase} {shares[phase]:.0%}" for phase in list(shares)[:4])
            console.print(f"{name}: {parts}; outside the models {shares['outside_models']:.1%}")


def _interval(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def speed(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[Path, typer.Option(help="Folder of the drafter.")] = suite.DRAFTER,
    questions: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    folder: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    dtype: Annotated[str, typer.Option(help="Of the verifier, comma-separated.")] = "bf16,fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Times each question is answered.")] = 1,
    bound: Annotated[float, typer.Option(min=0, help="Tie bound in logits below fp32.")] = 0.25,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only methods whose names contain this; may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare decoding speeds on held-out questions, in one interleaved run."""
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    unknown = set(dtype.split(",")) - set(DTYPES)
    if unknown:
        raise typer.BadParameter(f"dtype {', '.join(sorted(unknown))}; known: {', '.join(DTYPES)}")
    record: dict[str, Any] = {
        "machine": machine(),
        "model": model.name,
        "drafter": drafter.name,
        "questions": questions,
        "rounds": rounds,
        "max_new_tokens": max_new_tokens,
        "bootstrap": {"resamples": 2000, "seed": 0},
        "results": {},
    }
    try:
        asked = suite.load_questions(folder, questions)
        for name in dtype.split(","):
            verifier, processor = suite.load_verifier(model, DTYPES[name])
            loaded = load_drafter(drafter, verifier)
            if not isinstance(loaded, TextOnlyDrafter):
                raise ValueError(f"{drafter} is no text-only drafter")
            chosen = all_methods(verifier, loaded.model, max_new_tokens)
            if method:
                parts = (REFERENCE, *method)
                chosen = [m for m in chosen if any(part in m.name for part in parts)]
            inputs = [suite.model_inputs(verifier, processor, [each]) for each in asked]
            result = compare(
                verifier,
                loaded.model,
                chosen,
                inputs,
                bound=0.0 if name == "fp32" else bound,
                rounds=rounds,
            )
            record["results"][name] = result
            _print(console, name, result)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except GateError as error:
        console.print(f"[bold red]{error}")
        raise typer.Exit(1) from error
    if out is not None:
        write(out, record)


if __name__ == "__main__":
    typer.run(speed)
