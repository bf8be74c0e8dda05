"""Train estimators of visual reliance: `specdec train-probe`.

Three parts: the verifier answers prompts and its answers are judged counterfactually (`readings`),
estimators learn from the drafter's mismatches among them (`estimators`), and figures are taken on
held-out images. What has been read lies in ``OUT/unfinished`` until the end, so an interrupted run
goes on where it stopped.

Importing this imports no model code, so that a command line can register :func:`train_probe` for
free.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.files import write_json

if TYPE_CHECKING:
    from specdec.demo import Demo
    from specdec.training.prompts import Asking, Prompts
    from specdec.training.readings import Reader

DEMO = "demo"
TEMPERATURES = (0.0, 1.0)  # held-out prompts are answered at each


@dataclass(frozen=True)
class Plan:
    """What one training does.

    Attributes:
        model: folder or hub id of the verifier, or ``demo``.
        drafter: folder of its text-only drafter; ``None`` is the demonstration model's own.
        prompts: folder of prompts; ``None`` is the demonstration model's generator.
        questions: most prompts to learn from.
        held_out: most prompts to measure on, each answered once greedily and once sampled.
        minutes: of answering and reading what is learned from.
        batch: prompts answered together.
        max_new_tokens: longest answer.
        dtype: of the verifier.
        device: where both models run.
        attention: also train what reads visual mass.
        seed: of everything that is drawn.
    """

    model: str
    drafter: str | None
    prompts: str | None
    questions: int
    held_out: int
    minutes: float
    batch: int
    max_new_tokens: int
    dtype: str
    device: str
    attention: bool
    seed: int


def run(plan: Plan, out: Path) -> dict[str, Any]:  # Any: JSON values
    """Train estimators into ``out``.

    Returns:
        what was recorded in its ``reliance.json``.

    Raises:
        ValueError: something the plan names cannot be used, or the folder holds readings of another
            plan; before any work is done. Or there turned out to be too little to learn from.
    """
    from specdec.saved_reliance import read_facts, save_reliance
    from specdec.training import estimators
    from specdec.training.readings import collect, join
    from specdec.verifiers.fingerprint import fingerprint

    loaded, prompts = _load(plan), _prompts(plan)
    reader, mark = _reader(plan, loaded), fingerprint(loaded.model)
    work = out / "unfinished"
    _claim(work, asdict(plan) | {"fingerprints": [mark, fingerprint(loaded.drafter.model)]})

    def read(name: str, batches: Iterator[Asking], minutes: float, seed: int) -> Any:
        parts = []
        for part in collect(reader, batches, work / name, minutes=minutes, seed=seed):
            parts.append(part)
            count = sum(len(each.dependent) for each in parts)
            print(f"{name}: {len(parts)} batches, {count} tokens", flush=True)
        if not parts:
            raise ValueError(f"no {name} prompt has an image that could be swapped with another")
        return join(parts)

    held_out = read("held-out", _held_out(prompts, plan), float("inf"), plan.seed + 1_000_000)
    for each in prompts.skipped:
        print(f"left out: {each.where}: {each.why}", flush=True)
    every = read("training", _training(prompts, plan), plan.minutes, plan.seed)
    trained = estimators.train(every, plan.seed)
    facts = {
        "figures": estimators.figures(trained.kinds, held_out),
        "training": {
            "tokens": len(every.dependent),
            "mismatches": int(every.mismatched.sum()),
            "dependent_mismatches": int((every.mismatched & every.dependent).sum()),
            "images": len(every.images.unique()),
            "penalties": trained.penalties,
            "prompts": "generator" if plan.prompts is None else "folder",
            "temperatures": "greedy and sampled",
            "dtype": plan.dtype,
            "batch": plan.batch,
            "max_new_tokens": plan.max_new_tokens,
            "seed": plan.seed,
            "questions": plan.questions,
        },
    }
    spec = reader.verifier.spec
    save_reliance(
        out,
        trained.probe,
        trained.combined,
        fingerprint=mark,
        verifier=_name(plan.model),
        drafter=_name(plan.drafter or DEMO),
        layers=spec.num_layers,
        heads=every.visual_mass.shape[1],
        facts=facts,
    )
    shutil.rmtree(work)
    return read_facts(out)


def _load(plan: Plan) -> Demo:
    """The models of the plan.

    Raises:
        ValueError: they cannot be loaded, or do not go together.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from specdec import demo
    from specdec.drafters import TextOnlyDrafter, load_drafter

    if plan.model == DEMO:
        model, processor, drafter = demo.load(dtype=getattr(torch, plan.dtype))
    elif plan.drafter is None:
        raise ValueError(f"{plan.model} needs a text-only drafter: --drafter DIR")
    else:
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                plan.model, dtype=plan.dtype, use_safetensors=True
            ).eval()
            processor = AutoProcessor.from_pretrained(plan.model)
        except (OSError, ValueError) as error:
            raise ValueError(f"no verifier could be loaded from {plan.model}: {error}") from error
    mover: Any = model  # transformers wraps `to` without its signature
    mover.to(plan.device)
    if plan.drafter is not None:
        found = load_drafter(plan.drafter, model)
        if not isinstance(found, TextOnlyDrafter):
            raise ValueError(f"{plan.drafter} is a {found.name} drafter; text_only is needed")
        drafter = found
    mover = drafter.model
    mover.to(plan.device)
    return demo.Demo(model, processor, drafter)


def _reader(plan: Plan, loaded: Demo) -> Reader:
    from specdec.training.readings import Reader
    from specdec.verifiers import TransformersVerifier

    try:
        verifier = TransformersVerifier(loaded.model, hidden=True, visual_mass=plan.attention)
    except ValueError as error:
        raise ValueError(f"{error}; without visual mass: --no-attention") from error
    verifier.shares = False  # no prompt comes twice with the same image
    loaded.drafter.check(verifier.spec)
    return Reader(verifier, loaded.processor, loaded.drafter.model, plan.max_new_tokens, plan.batch)


def _prompts(plan: Plan) -> Prompts:
    from specdec.training.prompts import EmbeddedPrompts
    from specdec.training.sources import FolderPrompts

    if plan.prompts is not None:
        return FolderPrompts(Path(plan.prompts))
    if plan.model != DEMO:
        raise ValueError(f"{plan.model} needs prompts: --prompts FOLDER")
    return EmbeddedPrompts()


def _training(prompts: Prompts, plan: Plan) -> Iterator[Asking]:
    asked, index = 0, 0
    while asked < plan.questions:
        asking = prompts.batch(index, plan.batch)
        if asking is None:
            return
        for each in asking.skipped:
            print(f"left out: {each.where}: {each.why}", flush=True)
        yield asking
        asked, index = asked + len(asking.asked), index + 1


def _held_out(prompts: Prompts, plan: Plan) -> Iterator[Asking]:
    from specdec.training.prompts import Asking

    asked = prompts.held_out(plan.held_out)
    # One batch for each: a swap needs as many other images as it can get.
    yield from (Asking(asked, temperature) for temperature in TEMPERATURES)


def _claim(work: Path, plan: dict[str, Any]) -> None:
    """Take the folder, or go on in it.

    Raises:
        ValueError: it holds readings of another plan.
    """
    file = work / "plan.json"
    if file.is_file():
        before = json.loads(file.read_text())
        if changed := sorted(name for name in plan if before.get(name) != plan[name]):
            raise ValueError(
                f"{work} holds readings with {changed[0]}={before.get(changed[0])!r}, now it is "
                f"{plan[changed[0]]!r}; give the same options, or remove that folder"
            )
    work.mkdir(parents=True, exist_ok=True)
    write_json(file, plan)


def _name(model: str) -> str:
    """A name to record: a hub id as it is, of a folder its own name only."""
    return Path(model).resolve().name if Path(model).exists() else model


def train_probe(
    model: Annotated[
        str, typer.Option(help="Folder or hub id of the verifier; demo is the embedded model.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; default: reliance in the model's folder."),
    ] = None,
    drafter: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Its text-only drafter.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help='Folder of images and *.jsonl lines {"image": file, "prompt": text}. Without it, '
            "the embedded model's own generator.",
        ),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Most prompts to learn from.")] = 1344,
    held_out: Annotated[int, typer.Option(min=1, help="Most prompts to measure on.")] = 280,
    minutes: Annotated[float, typer.Option(min=0, help="Of reading what to learn from.")] = 15.0,
    batch: Annotated[int, typer.Option(min=2, help="Prompts answered together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    dtype: Annotated[str, typer.Option(help="Of the verifier: float32, bfloat16, …")] = "float32",
    device: Annotated[str, typer.Option(help="Where the models run.")] = "cpu",
    attention: Annotated[
        bool, typer.Option(help="Also train what reads attention to visual tokens.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
) -> None:
    """Train estimators of how likely a token is to depend on the image."""
    if out is None and not Path(model).is_dir():
        raise typer.BadParameter(f"--model {model} is no folder to write into; say --out FOLDER")
    folder = Path(model) / "reliance" if out is None else out
    plan = Plan(
        model=model,
        drafter=None if drafter is None else str(drafter),
        prompts=None if prompts is None else str(prompts),
        questions=questions,
        held_out=held_out,
        minutes=minutes,
        batch=batch,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        attention=attention,
        seed=seed,
    )
    try:
        facts = run(plan, folder)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    show(facts["figures"])
    typer.echo(f"the estimators are in {folder}")


def show(figures: dict[str, Any]) -> None:
    """Print a table of what :func:`specdec.training.estimators.figures` found."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"AUROC on {figures['images']} images: {figures['tokens']} tokens, "
        f"{figures['mismatches']} mismatches"
    )
    for column in ("estimator", "all tokens", "mismatches"):
        table.add_column(column, justify="left" if column == "estimator" else "right")
    for name, row in figures["auroc"].items():
        cells = [
            "{auroc:.3f} [{low:.3f}, {high:.3f}]".format(**row[where])
            for where in ("all", "mismatches")
        ]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(train_probe)
