"""`specdec demo`: the shipped model answers about images, and what speculation did for it."""

from __future__ import annotations

import os
import random
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from specdec.commands.errors import UserError
from specdec.commands.options import Precision
from specdec.commands.stream import Piece, Pieces

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from specdec.commands.contest import Contestants
    from specdec.demo import Demo, Question
    from specdec.eval.timing import Said

DRAFTED, OWN = "cyan", "bold magenta"
DEFAULT_PICTURE = "specdec-demo.png"


class _Precision(StrEnum):
    """Those of `Precision` that the demo runs in."""

    FP32 = Precision.FP32.value
    BF16 = Precision.BF16.value


class DemoCommand(TyperCommand):
    """Lets `--show` stand without a value, which typer's options cannot."""

    # Any: whose Context it is depends on typer's release.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        if "--show" in given:
            after = given.index("--show") + 1
            if after == len(given) or given[after].startswith("-"):
                given.insert(after, DEFAULT_PICTURE)
        return super().parse_args(ctx, given)


class _Told(NamedTuple):
    """A question that has been answered on the terminal, and then plainly."""

    question: Question
    inputs: dict[str, Tensor]
    pieces: list[Piece]
    speculative: Said
    plain: Said


def demo(
    questions: Annotated[int, typer.Option(min=1, help="How many questions.")] = 3,
    seed: Annotated[
        int | None, typer.Option(help="Draw the questions with this seed; else the first ones.")
    ] = None,
    dtype: Annotated[
        _Precision, typer.Option(help="Numbers that the model computes with.")
    ] = _Precision.FP32,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Longest answer.")] = 160,
    show: Annotated[
        Path | None,
        typer.Option(
            metavar="[FILE.png]",
            help="Also save images and answers side by side as a picture; "
            f"{DEFAULT_PICTURE} if no name is given.",
        ),
    ] = None,
    assets: Annotated[
        Path | None, typer.Option(hidden=True, help="Folder to take model and questions from.")
    ] = None,
) -> None:
    """Read held-out images with the shipped vision-language model, and measure the speedup.

    Answers are streamed and coloured by origin, compared token by token with plain decoding, and
    timed against it in one interleaved run.
    """
    from rich.console import Console

    from specdec.commands.checkpoint import quieten
    from specdec.commands.contest import ROUNDS, Contestants, NotEqual, report

    if show is not None:
        _check_picture(show)
    quieten()
    console = Console(highlight=False)
    loaded, asked = _load(assets, Precision(dtype))
    chosen = choose(asked, questions, seed)
    _introduce(console, loaded, dtype)
    contestants = Contestants(loaded.model, loaded.drafter, max_new_tokens)
    told = [_tell(console, number, q, loaded, contestants) for number, q in enumerate(chosen, 1)]
    if show is not None:
        _save_picture(show, told)
        console.print(f"saved {show}\n", soft_wrap=True)

    # Correctness first. Both ways have run on every question by now, which was the warm-up, too.
    try:
        contestants.compare([(one.inputs, one.plain, one.speculative) for one in told])
        console.print(f"[dim]timing both in turn, {ROUNDS} × each question …[/]\n")
        times = contestants.time([one.inputs for one in told])
        result = contestants.compare(
            [
                (told[number].inputs, told[number].plain, run.said)
                for number, run in times.speculative
            ]
        )
    except NotEqual as error:
        console.print(f"[bold red]not equal to plain decoding[/]: {error}")
        raise typer.Exit(1) from error
    console.print(report(times, result))


def choose(asked: list[Question], count: int, seed: int | None) -> list[Question]:
    """`count` questions over as many kinds of image as possible: a task is named after its kind,
    as in `bars_compare`.

    Raises:
        UserError: there are not so many.
    """
    if count > len(asked):
        raise UserError(f"--questions {count}: there are {len(asked)}")
    order = asked if seed is None else random.Random(seed).sample(asked, len(asked))
    earlier: Counter[str] = Counter()
    turns = []
    for index, question in enumerate(order):
        kind = question.task.partition("_")[0]
        turns.append((earlier[kind], index))
        earlier[kind] += 1
    return [order[index] for _, index in sorted(turns)[:count]]


def _load(assets: Path | None, precision: Precision) -> tuple[Demo, list[Question]]:
    import torch

    import specdec.demo

    folder = assets or specdec.demo.ASSETS
    dtype = precision.dtype
    assert isinstance(dtype, torch.dtype)
    try:
        return specdec.demo.load(folder, dtype=dtype), specdec.demo.questions(folder)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error


def _introduce(console: Console, loaded: Demo, dtype: str) -> None:
    import torch

    def size(model: torch.nn.Module) -> str:
        return f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters"

    model, drafter = loaded.model, loaded.drafter.model
    threads = torch.get_num_threads()
    console.print(
        f"[bold]{type(model).__name__}[/], {size(model)}, {dtype}, on {threads} CPU "
        f"thread{'s' * (threads != 1)}\n"
        f"drafter: {type(drafter).__name__}, {size(drafter)}, fp32; it never sees an image"
    )
    if console.color_system is not None and not console.no_color:
        console.print(f"[{DRAFTED}]drafted and accepted[/]   [{OWN}]the model's own[/]")
    console.print()


def _tell(
    console: Console, number: int, question: Question, loaded: Demo, contestants: Contestants
) -> _Told:
    """Answer on the terminal, then plainly and in silence."""
    from rich.live import Live
    from rich.padding import Padding
    from rich.text import Text

    for index, path in enumerate(question.images):
        label = f"[bold]{number}[/]  " if index == 0 else "   "
        console.print(f"{label}{_relative(path)}", soft_wrap=True)
    for message in question.messages[:-1]:
        said = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
        console.print(Text(f"   {message['role']}: {said}", "dim"))
    console.print(Text(f"   {question.prompt}", "bold"))
    inputs = question.encode(loaded.processor)
    told: list[Piece] = []
    shown = Text()

    def show(piece: Piece) -> None:
        told.append(piece)
        shown.append(piece.text, DRAFTED if piece.drafted else OWN)

    pieces = Pieces(loaded.processor.tokenizer, show)
    indented = Padding(shown, (0, 0, 0, 3), expand=False)
    # Gone at its end and printed once more, so that a pipe, where nothing is live, gets it too.
    with Live(indented, console=console, refresh_per_second=20, transient=True):
        speculative = contestants.speculative(inputs, pieces)
        pieces.end()
    console.print(indented)
    facts = ", ".join(f"{name} {value}" for name, value in question.fields.items())
    below = f"{pieces.num_drafted} of {len(pieces.tokens)} tokens drafted\non the image: {facts}\n"
    console.print(Padding(Text(below, "dim"), (0, 0, 0, 3), expand=False))
    return _Told(question, inputs, told, speculative, contestants.plain(inputs))


def _check_picture(path: Path) -> None:
    from PIL import Image

    if path.suffix.lower() not in Image.registered_extensions():
        raise UserError(f"--show {path}: the name must end like an image file, such as .png")
    folder = path.parent
    if not folder.is_dir():
        raise UserError(f"--show {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--show {path}: the folder {folder} cannot be written to")


def _save_picture(path: Path, told: list[_Told]) -> None:
    from specdec.commands.picture import Panel, draw

    panels = [Panel(one.question.images, one.question.prompt, one.pieces) for one in told]
    draw(panels).save(path)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
