"""`specdec demo`: the shipped model answers about images, and what speculation did for it."""

from __future__ import annotations

import os
import random
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from typer.core import TyperCommand

from specdec.commands.errors import UserError
from specdec.commands.options import Precision
from specdec.commands.stream import Piece, Pieces

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from specdec.commands.timing import Contestants, Pair, Summary
    from specdec.demo import Demo, Question

DRAFTED, OWN = "cyan", "bold magenta"
ROUNDS = 2
DEFAULT_PICTURE = "specdec-demo.png"


class _Precision(StrEnum):
    """Those of `Precision` that the demo runs in."""

    FP32 = Precision.FP32.value
    BF16 = Precision.BF16.value


class DemoCommand(TyperCommand):
    """Lets `--show` stand without a value, which typer's options cannot."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        given = list(args)
        if "--show" in given:
            after = given.index("--show") + 1
            if after == len(given) or given[after].startswith("-"):
                given.insert(after, DEFAULT_PICTURE)
        return super().parse_args(ctx, given)


class _Told(NamedTuple):
    """A question that has been answered on the terminal, plainly afterwards."""

    question: Question
    inputs: dict[str, Tensor]
    answer: list[Piece]
    pair: Pair


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
    from specdec.commands.timing import Contestants, parting, summarise

    if show is not None:
        _check_picture(show)
    quieten()
    console = Console(highlight=False)
    loaded, asked = _load(assets, Precision(dtype))
    contestants = Contestants(loaded.model, loaded.drafter, max_new_tokens)
    _introduce(console, loaded, dtype)
    chosen = choose(asked, questions, seed)
    told = [_tell(console, number, q, loaded, contestants) for number, q in enumerate(chosen, 1)]
    if show is not None:
        _save_picture(show, told)
        console.print(f"saved {show}\n", soft_wrap=True)

    # Both have run on every question by now: that was the warm-up.
    console.print(f"[dim]timing both in turn, {ROUNDS} × each question …[/]\n")
    pairs = contestants.pairs([one.inputs for one in told], ROUNDS)
    compared = [(one, one.pair) for one in told]
    compared += [(told[index // ROUNDS], pair) for index, pair in enumerate(pairs)]
    parted = [(one, pair) for one, pair in compared if parting(pair) is not None]
    wrong = [(one, pair) for one, pair in parted if not contestants.tied(one.inputs, pair)]
    if wrong:
        _report_mismatch(console, wrong, told, len(compared))
        raise typer.Exit(1)
    _report(console, summarise(pairs), told, len(parted), len(compared))


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
        f"drafter: {type(drafter).__name__}, {size(drafter)}, fp32; it never sees an image\n"
        f"[{DRAFTED}]drafted and accepted[/]   [{OWN}]the model's own[/]\n"
    )


def _tell(
    console: Console, number: int, question: Question, loaded: Demo, contestants: Contestants
) -> _Told:
    """Answer on the terminal, then plainly and in silence."""
    from rich.live import Live
    from rich.padding import Padding
    from rich.text import Text

    from specdec.commands.timing import Pair

    for path in question.images:
        console.print(f"[bold]{number}[/]  {_relative(path)}", soft_wrap=True)
    console.print(Text(f"   {question.prompt}", "bold"))
    inputs = question.encode(loaded.processor)
    answer: list[Piece] = []
    shown = Text()

    def show(piece: Piece) -> None:
        answer.append(piece)
        shown.append(piece.text, DRAFTED if piece.drafted else OWN)

    pieces = Pieces(loaded.processor.tokenizer, show)
    indented = Padding(shown, (0, 0, 0, 3))
    # Gone at its end and printed once more, so that a pipe, where nothing is live, gets it too.
    with Live(indented, console=console, refresh_per_second=20, transient=True):
        speculative = contestants.speculative(inputs, pieces)
        pieces.end()
    console.print(indented)
    facts = ", ".join(f"{name} {value}" for name, value in question.fields.items())
    console.print(
        Text(f"   {pieces.num_drafted} of {len(pieces.tokens)} tokens drafted", "dim"),
        Text(f"   on the image: {facts}\n", "dim"),
        sep="\n",
    )
    return _Told(question, inputs, answer, Pair(contestants.plain(inputs), speculative))


def _report(
    console: Console, summary: Summary, told: list[_Told], parted: int, compared: int
) -> None:
    from rich.table import Table

    stats, times = summary.stats, summary.stats.times
    tokens = sum(len(one.pair.plain.tokens) for one in told)
    equal = f"[bold green]yes[/]   {tokens} tokens in {len(told)} answers, {compared} comparisons"
    if parted:
        equal = (
            f"[yellow]up to ties[/]   {parted} of {compared} comparisons part where two tokens are "
            "equally good to bf16; in fp32 none does"
        )
    step = times.step
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for name, value in (
        ("equal to plain decoding", equal),
        (
            "mean acceptance length τ",
            f"[bold]{stats.mean_acceptance_length:.2f}[/] tokens per step of the large model",
        ),
        ("acceptance rate", f"{stats.draft_acceptance_rate:.0%} of the drafted tokens"),
        ("transformers generate", f"{summary.plain_ms:.2f} ms/token"),
        ("specdec", f"{summary.speculative_ms:.2f} ms/token"),
        (
            "speedup",
            f"[bold]{summary.speedup:.2f}×[/]   median of {ROUNDS * len(told)} paired ratios, "
            f"{summary.slowest:.2f}× to {summary.fastest:.2f}×",
        ),
        (
            "a step's time",
            f"draft {times.draft / step:.0%} · verify {times.verify / step:.0%} · "
            f"accept {times.accept / step:.0%} · commit {times.commit / step:.0%}",
        ),
        ("outside the two models", f"{times.overhead:.0%} of a step"),
    ):
        table.add_row(name, value)
    console.print(table)


def _report_mismatch(
    console: Console, wrong: list[tuple[_Told, Pair]], told: list[_Told], compared: int
) -> None:
    from specdec.commands.timing import parting

    one, pair = wrong[0]
    number = told.index(one) + 1
    console.print(
        f"[bold red]not equal to plain decoding[/]: {len(wrong)} of {compared} comparisons, first "
        f"in question {number} at token {parting(pair)}. No speed is shown for a wrong answer; "
        "please report this."
    )


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

    panels = [Panel(one.question.images, one.question.prompt, one.answer) for one in told]
    draw(panels).save(path)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
