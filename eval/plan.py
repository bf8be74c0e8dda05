"""Would speculation pay off here, and what would a drafter have to be like? Answered beforehand:
`python -m specdec.eval.plan`.

Costs of steps are measured on this machine, for a model of any size with random weights; how many
drafts are accepted is assumed, or read from a benchmark's record. All speedups are projected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from specdec.drafters import load_drafter
from specdec.eval import suite
from specdec.eval.known_configs import NAMES
from specdec.eval.projection import Acceptance, Projection, Tree, from_record, projections
from specdec.eval.projection_check import Checked, check
from specdec.eval.random_models import random_eagle, random_model
from specdec.eval.record import machine, write
from specdec.eval.step_costs import measure_costs
from specdec.eval.suite import DTYPES
from specdec.interfaces import Drafter

SCHEMA = "specdec.plan/1"


def trees_of(text: str) -> list[Tree]:
    """``4,8:32``: a chain of 4, and trees of depth 8 with 32 drafted tokens.

    Raises:
        ValueError: something else.
    """
    trees = []
    for part in text.split(","):
        depth, _, drafted = part.partition(":")
        try:
            tree = Tree(int(depth), 1 + int(drafted or depth))
        except ValueError:
            raise ValueError(
                f"depth {part!r}: expected a number, or a depth and a number of drafted tokens as "
                "in 8:32"
            ) from None
        if not 0 < tree.depth < tree.nodes:
            raise ValueError(f"depth {part!r}: a tree as deep as that has more drafted tokens")
        trees.append(tree)
    return trees


def model_of(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The demonstration model with its weights, any other with random ones.

    Raises:
        ValueError: there is none of that name, or it does not fit.
    """
    if name != "demo":
        return random_model(name, dtype, device)
    model, _ = suite.load_verifier(suite.MODEL, dtype)
    model.to(device)  # type: ignore[arg-type]  # transformers types it as unbound
    return model


def drafter_of(name: str, model: PreTrainedModel) -> Drafter | None:
    """A saved drafter, ``eagle``: a head of random weights for this model, or ``none``."""
    if name == "none":
        return None
    if name == "eagle":
        return random_eagle(model)
    return load_drafter(suite.DRAFTER if name == "demo" else name, model)


def acceptance_of(rate: float, profile: Path | None, method: str | None) -> Acceptance:
    """Assumed, or that of a record.

    Raises:
        ValueError: the record cannot be read.
    """
    if profile is None:
        return Acceptance.constant(rate)
    try:
        return from_record(json.loads(profile.read_text()), method)
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{profile}: no record could be read: {error}") from None


def numbers_of(text: str, what: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise ValueError(f"{what} {text!r}: expected numbers from 1 on, by commas")
    return numbers


def _table(found: list[Projection], title: str) -> Table:
    wish = found[0].wish
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    for column in ("batch", "tokens", "draft", "plain\nms", "verify\nms", "draft\nms"):
        table.add_column(column, justify="right")
    for column in ("τ", "speedup", "tokens/s"):
        table.add_column(f"projected\n{column}", justify="right")
    for column in ("α for\n1×", f"α for\n{wish:g}×"):
        table.add_column(column, justify="right")
    for each in found:
        tree, rates = each.tree, (each.break_even, each.wished)
        table.add_row(
            *(str(each.batch), str(each.context)),
            str(tree.depth) if tree.nodes == tree.depth + 1 else f"{tree.depth}:{tree.nodes - 1}",
            *(f"{ms:.2f}" for ms in (each.plain_ms, each.verify_ms, each.draft_ms)),
            *(f"{each.tokens:.2f}", f"{each.speedup:.2f}", f"{each.tokens_per_second:.0f}"),
            *("never" if rate is None else f"{rate:.2f}" for rate in rates),
        )
    return table


def _say(checked: list[Checked], console: Console) -> None:
    for each in checked:
        console.print(
            f"chain of {each.projection.tree.depth}: projected {each.projection.speedup:.2f}×, "
            f"measured {each.speedup:.2f}×; the projection is off by {each.error_percent:+.1f} %"
        )


def plan(
    model: Annotated[
        str, typer.Option(help=f"A folder with a config, demo, or one of {', '.join(NAMES)}.")
    ] = "demo",
    drafter: Annotated[
        str,
        typer.Option(help="A saved drafter, demo, eagle for a head of random weights, or none."),
    ] = "none",
    acceptance: Annotated[
        float,
        typer.Option(min=0, max=1, help="Assumed: accepted drafts, of those whose parents are."),
    ] = 0.8,
    profile: Annotated[
        Path | None, typer.Option(help="Benchmark's record to read acceptance from instead.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method of that record.")] = None,
    batch: Annotated[str, typer.Option(help="Requests that share a step, by commas.")] = "1,4",
    context: Annotated[str, typer.Option(help="Tokens that each has, by commas.")] = "512",
    depth: Annotated[
        str, typer.Option(help="Of chains, by commas; 8:32 is a tree with 32 drafted tokens.")
    ] = "1,2,4,8",
    level: Annotated[
        float, typer.Option(min=0, help="Without a drafter: what a level takes, in plain steps.")
    ] = 0.0,
    wish: Annotated[
        float, typer.Option(min=0.01, help="A speedup to find the acceptance for.")
    ] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, help="Forwards of each kind.")] = 20,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.")] = "bf16",
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    compare: Annotated[
        bool, typer.Option("--check", help="Measure the demonstration model's speedup as well.")
    ] = False,
    questions: Annotated[int, typer.Option(min=1, help="With --check: how many.")] = 12,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure what steps cost here and project what speculation would bring."""
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console()
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    record: dict[str, Any] = {"schema": SCHEMA, "machine": machine()}
    try:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r}: known are {', '.join(DTYPES)}")
        if compare and model != "demo":
            raise ValueError(f"--check measures the demonstration model; --model is {model}")
        trees, accepted = trees_of(depth), acceptance_of(acceptance, profile, method)
        verifier = model_of(model, DTYPES[dtype], on)
        costs = measure_costs(
            verifier,
            contexts=numbers_of(context, "context"),
            nodes=[tree.nodes for tree in trees],
            batches=numbers_of(batch, "batch"),
            rounds=rounds,
            drafter=drafter_of(drafter, verifier),
            depths=[tree.depth for tree in trees],
        )
        found = projections(costs, accepted, trees, wish=wish, level=level)
        checked = _checked(verifier, questions) if compare else []
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    who = costs.drafter or f"no drafter: a level takes {level:g} plain steps"
    title = f"{model}, {who}; acceptance {accepted.source}. Speedups are projected, not measured"
    console.print(_table(found, title))
    _say(checked, console)
    record |= {
        "model": model,
        "dtype": dtype,
        "device": str(on),
        "acceptance": {
            "source": accepted.source,
            "reached": accepted.reached,
            "rate": accepted.rate,
        },
        "costs": costs.to_dict(),
        "projections": [each.to_dict() for each in found],
        "check": [each.to_dict() for each in checked],
    }
    if out is not None:
        write(out, record)


def _checked(model: PreTrainedModel, questions: int) -> list[Checked]:
    _, processor = suite.load_verifier(suite.MODEL)
    every = suite.load_questions()
    asked = every[:: max(1, len(every) // questions)][:questions]
    inputs = [suite.model_inputs(model, processor, [each]) for each in asked]
    return check(model, load_drafter(suite.DRAFTER, model), inputs, [4, 8])


if __name__ == "__main__":
    typer.run(plan)
