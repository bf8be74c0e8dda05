"""`specdec doctor`: what is installed, and whether a model and a drafter can be used."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

import specdec
from specdec.commands.errors import UserError, reason

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedModel

    from specdec.commands.checkpoint import Checkpoint

_DISTRIBUTION = "specdec-lvlm"


class Finding(NamedTuple):
    """One line of the report. `good`: `False` stands in the way, `None` is for information."""

    name: str
    value: str
    good: bool | None = None


def doctor(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Also judge this checkpoint; `demo` is the one shipped."),
    ] = None,
    drafter: Annotated[
        str | None,
        typer.Option(metavar="DIR|ngram", help="Also judge this drafter for the checkpoint."),
    ] = None,
) -> None:
    """Say what is installed and what specdec can run. Exit code 2 if something stands in the way.

    Models are judged by their configuration; their weights are not loaded.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if drafter is not None and model is None:
        raise UserError("--drafter is judged for a model: pass --model as well")
    findings = _section(console, "Versions", versions()) + _section(console, "Devices", devices())
    if model is not None:
        findings += _report_model(console, model, drafter)
    hindrances = [finding for finding in findings if finding.good is False]
    if hindrances:
        console.print(f"\n[bold red]{len(hindrances)} of these stand in the way.[/]")
        raise typer.Exit(2)
    console.print("\n[bold green]Nothing stands in the way.[/]")


def versions() -> list[Finding]:
    """The packages that specdec needs, against the releases that it needs them in."""
    from transformers.utils.versions import require_version

    found = [
        Finding("python", platform.python_version(), True),
        Finding("specdec", specdec.__version__, True),
    ]
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, f"missing; specdec needs {requirement}", False))
            continue
        try:
            require_version(requirement)
        except ImportError:
            found.append(Finding(name, f"{installed}; specdec needs {requirement}", False))
        else:
            found.append(Finding(name, installed, True))
    return [*found, _triton()]


def devices() -> list[Finding]:
    """What there is to compute on."""
    import torch

    threads = torch.get_num_threads()
    capability = torch.backends.cpu.get_cpu_capability()
    found = [Finding("cpu", f"{platform.machine()} {capability}, {threads} threads")]
    if not torch.cuda.is_available():
        why = "torch was built without CUDA" if torch.version.cuda is None else "no device found"
        return [*found, Finding("cuda", f"none: {why}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB"
        found.append(Finding(f"cuda:{index}", f"{device.name}, {memory}"))
    return found


def model_findings(checkpoint: Checkpoint, model: PreTrainedModel) -> list[Finding]:
    """What a model is and whether specdec can run it."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    from specdec.commands.checkpoint import load_processor, problems, weight_problems
    from specdec.verifiers.spec import read_spec

    found = [Finding("class", type(model).__name__)]
    if hindrances := problems(model):
        return [*found, *(Finding("supported", f"no: {why}", False) for why in hindrances)]
    layers = Counter(get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))[0])
    spec = read_spec(model)
    visual = ", ".join(map(str, sorted(spec.visual_token_ids))) or "none: it takes text only"
    found += [
        Finding("supported", "yes", True),
        Finding("text tower", ", ".join(f"{n} × {kind}" for kind, n in sorted(layers.items()))),
        Finding("vocabulary", f"{spec.vocab_size} tokens"),
        Finding("visual tokens", visual),
    ]
    try:
        processor = load_processor(checkpoint)
        found.append(Finding("processor", type(processor).__name__, True))
    except UserError as error:
        found.append(Finding("processor", str(error), False))
    broken = weight_problems(checkpoint.folder)
    return [*found, Finding("weights", "; ".join(broken) or "safetensors", not broken)]


def _report_model(console: Console, name: str, drafter: str | None) -> list[Finding]:
    from specdec.commands import checkpoint as checkpoints

    checkpoints.quieten()
    folder, default = checkpoints.locate(name)
    checkpoint = checkpoints.open_checkpoint(folder)
    model = checkpoints.skeleton(checkpoint)
    findings = _section(console, f"Model {folder}", model_findings(checkpoint, model))
    if drafter is None and name == checkpoints.DEMO:
        drafter = default
    if drafter is None or checkpoints.problems(model):
        return findings
    return findings + _section(console, "Drafter", drafter_findings(drafter, model))


def drafter_findings(name: str, model: PreTrainedModel) -> list[Finding]:
    """What a drafter is and whether it fits."""
    from specdec.commands.drafting import pick_drafter

    try:
        drafter = pick_drafter(name, model)
    except UserError as error:
        return [Finding("fits", f"no: {reason(error)}", False)]
    kind = "none: plain decoding" if drafter is None else drafter.name
    return [Finding("kind", kind), Finding("fits", "yes", True)]


def _requirements() -> list[str]:
    """What specdec requires, extras aside. The bounds are known only where it is installed."""
    try:
        listed = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return ["torch", "transformers", "tokenizers", "safetensors"]
    return [requirement for requirement in listed if "extra ==" not in requirement]


def _triton() -> Finding:
    import torch

    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        if torch.cuda.is_available():
            return Finding(
                "triton", "none: attention over pages runs in plain torch, slower", False
            )
        return Finding("triton", "none: only GPUs have a use for it")
    return Finding("triton", version)


def _section(console: Console, title: str, findings: list[Finding]) -> list[Finding]:
    from rich.table import Table
    from rich.text import Text

    marks = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text(" ")}
    table = Table(box=None, show_header=False, padding=(0, 1), title=title, title_justify="left")
    table.title_style = "bold"
    for name, value, good in findings:
        table.add_row(marks[good], Text(name, "dim"), Text(value, "red" if good is False else ""))
    console.print()
    console.print(table)
    return findings
