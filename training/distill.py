"""`specdec distill`: train a drafter on a verifier's own answers.

Importing this imports no model code, so that a command line can register :func:`distill` for free.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from specdec.training.distillation import Plan, run
from specdec.training.recipes import use_recipe

KINDS = ("text_only", "eagle", "vision_pruned")
VISIONS = ("hidden", "compressed", "shared")
RATES = {"text_only": 4e-3, "eagle": 2e-3, "vision_pruned": 4e-3}  # peak learning rates


def distill(
    verifier: Annotated[
        str, typer.Option(help="Folder or hub id of the verifier; demo is the embedded model.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the drafter.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            callback=use_recipe,
            is_eager=True,
            help="Options from a YAML file, or from one that comes along: text-only, eagle-hidden, "
            "eagle-compressed, eagle-shared. What is given besides goes before it.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help='Folder of images and *.jsonl lines {"image": file, "prompt": text}, a saved data '
            "set, or hub:owner/name[:split]. Without it, the embedded model's own generator.",
        ),
    ] = None,
    answers_in: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of answers that runs share, one after another; default: OUT's own.",
        ),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Of the embedded model's generator, by commas.")] = "",
    minutes: Annotated[float, typer.Option(min=0.01, help="Wall time in all.")] = 12.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out stopped.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="Most answers to learn from.")] = 4096,
    asking: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    held_out: Annotated[int, typer.Option(min=1, help="Prompts to measure on.")] = 34,
    dtype: Annotated[str, typer.Option(help="Of the verifier: auto, float32, …")] = "float32",
    kind: Annotated[str, typer.Option(help=f"Of the drafter: {', '.join(KINDS)}.")] = KINDS[0],
    vision: Annotated[
        str, typer.Option(help="How an eagle drafter sees the image: hidden, compressed, shared.")
    ] = "hidden",
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of a text_only one.")] = None,
    hidden: Annotated[int | None, typer.Option(min=8, help="The drafter's width.")] = None,
    intermediate: Annotated[int | None, typer.Option(min=8, help="Width of its MLP.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Its query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Its key and value heads.")] = None,
    taps: Annotated[
        str, typer.Option(help="Layers whose inputs an eagle drafter reads, by commas.")
    ] = "",
    shared_layer: Annotated[
        int | None, typer.Option(min=0, help="Layer whose keys a shared one reads.")
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0, max=1, help="Share of visual tokens a vision_pruned one reads.")
    ] = 0.25,
    draft_vocabulary: Annotated[
        int | None, typer.Option(min=1, help="Tokens that an eagle drafter can propose.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="Weights of tv, kl and ce: tv=1,ce=0.1. Default: by kind.")
    ] = "",
    test_steps: Annotated[int, typer.Option(min=1, help="Of training-time test (eagle).")] = 4,
    noise: Annotated[float, typer.Option(min=0, help="On the verifier's states (eagle).")] = 0.0,
    visual_weight: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Of tokens that depend on the image, by the verifier's probe (eagle); others: 1.",
        ),
    ] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Answers per training step.")] = 32,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train this many steps, whatever the time.")
    ] = None,
    measure_every: Annotated[
        int, typer.Option(min=0, help="Steps between measurements while it trains; 0: none.")
    ] = 0,
    patience: Annotated[
        int, typer.Option(min=0, help="Of these without a better one, then stop; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[
        str,
        typer.Option(help="Where it all runs: cpu, cuda, or auto, which is cuda if it is there."),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train a drafter on a verifier's own answers."""
    import torch

    from specdec.training.kinds import Geometry
    from specdec.training.options import Training

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        device = _device(device)
        plan = Plan(
            verifier=verifier,
            data=data,
            answers_in=None if answers_in is None else str(answers_in),
            tasks=tuple(filter(None, tasks.split(","))),
            minutes=minutes,
            answers=answers,
            asking=asking,
            max_new_tokens=max_new_tokens,
            held_out=held_out,
            dtype=dtype,
            kind=_kind(kind),
            geometry=Geometry(
                layers,
                hidden,
                intermediate,
                heads,
                kv_heads,
                _one_of("--vision", vision, VISIONS),
                tuple(int(layer) for layer in filter(None, taps.split(","))),
                shared_layer,
                draft_vocabulary=draft_vocabulary,
                keep=keep,
            ),
            loss=_weights(loss),
            test_steps=test_steps,
            noise=noise,
            visual_weight=visual_weight,
            device=device,
            training=Training(
                steps=steps, batch=batch, rate=rate or RATES[kind], seed=seed, cpu=device == "cpu"
            ),
            measure_every=measure_every,
            patience=patience,
        )
        run(plan, out, resume=resume)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    shutil.rmtree(out / "unfinished" / "drafter", ignore_errors=True)


def _device(device: str) -> str:
    import torch

    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    return there[-1] if device == "auto" else _one_of("--device", device, there)


def _kind(kind: str) -> Any:  # one of several literals
    if kind == "probe":
        raise ValueError("a probe drafts nothing; `specdec train-probe` trains it")
    return _one_of("--kind", kind, KINDS)


def _one_of(option: str, value: str, known: Sequence[str]) -> Any:  # one of several literals
    if value not in known:
        raise ValueError(f"{option} {value}: there are {', '.join(known)}")
    return value


def _weights(text: str) -> dict[str, float]:
    """``tv=1,ce=0.1`` as weights."""
    from specdec.training.losses import check_mixture

    try:
        parts = dict(part.split("=") for part in filter(None, text.split(",")))
        found = {name: float(weight) for name, weight in parts.items()}
    except ValueError as error:
        raise ValueError(f"--loss {text}: expected weights such as tv=1,ce=0.1") from error
    if found:
        check_mixture(found)
    return found


if __name__ == "__main__":
    typer.run(distill)
