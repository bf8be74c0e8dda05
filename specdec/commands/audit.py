"""`specdec audit`: an answer, and where the model gave way to the drafter in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from specdec.commands.asking import Question, answer, ask, sampling
from specdec.commands.errors import UserError
from specdec.commands.options import (
    AcceptanceOption,
    DrafterOption,
    ImageOption,
    LengthOption,
    ModelOption,
    PixelsOption,
    Precision,
    PrecisionOption,
    PromptOption,
    SeedOption,
    TemperatureOption,
    TopPOption,
    TreeOption,
    check_acceptance,
    parse_tree,
)
from specdec.commands.stream import Piece, Pieces

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from specdec.ledger import Entry
    from specdec.policies import Relaxed
    from specdec.stats import AcceptanceStats

RELAXED = "bold yellow"
_WORDS = ("said", "the model's own")  # columns of the table


class _Span(NamedTuple):
    """Some text of an answer: that of its tokens ``[start, stop)``."""

    text: str
    start: int
    stop: int


def audit(
    model: ModelOption,
    prompt: PromptOption,
    image: ImageOption = None,
    drafter: DrafterOption = None,
    tree: TreeOption = "8",
    acceptance: AcceptanceOption = "lossless",
    epsilon: Annotated[
        float | None,
        typer.Option(help="Instead of a policy file: most that the model gives way at a token."),
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="With --epsilon: how sharply visual reliance counts.")
    ] = None,
    reliance: Annotated[
        str | None,
        typer.Option(help="With --epsilon: estimator of visual reliance; default: probe."),
    ] = None,
    max_new_tokens: LengthOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    dtype: PrecisionOption = Precision.AUTO,
    max_pixels: PixelsOption = 50_000_000,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the ledger to a file.")
    ] = None,
) -> None:
    """Answer a prompt and show every token at which the model gave way to the drafter.

    Such tokens are coloured on a terminal and in [brackets] elsewhere; beneath the answer stand
    what the model would have said there, how much the token depends on the image, and the bound.
    """
    from rich.console import Console

    shape, how = parse_tree(tree), sampling(temperature, top_p, seed)
    policy = _policy(acceptance, epsilon, gamma, reliance)
    question = ask(
        "audit",
        model=model,
        prompt=prompt,
        image=image,
        drafter=drafter,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        max_pixels=max_pixels,
    )
    spans = list[_Span]()

    def note_span(piece: Piece) -> None:
        spans.append(_Span(piece.text, spans[-1].stop if spans else 0, len(pieces.tokens)))

    pieces = Pieces(question.loaded.tokenizer, note_span)
    out = answer(question, pieces, tree=shape, acceptance=policy, **how)
    ledger: list[Entry] = out.ledger[0]
    console = Console(highlight=False, soft_wrap=True)
    console.print(_marked(spans, ledger, in_colour=_has_colour(console)))
    _print_relaxed(console, question, ledger)
    unit = "nats of regret" if temperature == 0 else "total variation"
    console.print(_sums(ledger, out.stats, unit))
    if json is not None:
        _write(json, question, spans, ledger, out.stats)


def _policy(
    acceptance: str, epsilon: float | None, gamma: float | None, reliance: str | None
) -> Relaxed | str:
    from specdec.policies import Relaxed
    from specdec.reliance import Constant

    if epsilon is None:
        if gamma is not None or reliance is not None:
            raise UserError("--gamma and --reliance go with --epsilon")
        if check_acceptance(acceptance) == "lossless":
            # The same answer as losslessly, bit for bit, and a ledger of it.
            return Relaxed(0.0, Constant(1.0), guards=())
        return acceptance
    if acceptance != "lossless":
        raise UserError("--acceptance and --epsilon both say how drafts are accepted; give one")
    try:
        return Relaxed(epsilon, reliance or "probe", 1.0 if gamma is None else gamma)
    except ValueError as error:
        raise UserError(str(error)) from error


def _marked(spans: list[_Span], ledger: list[Entry], *, in_colour: bool) -> Text:
    """The answer; a piece with a relaxed token in it stands out, the space before it does not."""
    from rich.text import Text

    text = Text()
    for piece, start, stop in spans:
        if not any(entry.rule == "relaxed" for entry in ledger[start:stop]):
            text.append(piece)
            continue
        word = piece.lstrip()
        text.append(piece[: len(piece) - len(word)])
        text.append(word if in_colour else f"[{word}]", RELAXED)
    return text


def _has_colour(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _print_relaxed(console: Console, question: Question, ledger: list[Entry]) -> None:
    from rich.table import Table

    relaxed = [(place, entry) for place, entry in enumerate(ledger) if entry.rule == "relaxed"]
    if not relaxed:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("token", "said", "the model's own", "v", "ε_v", "spent"):
        table.add_column(column, justify="left" if column in _WORDS else "right")
    for place, entry in relaxed:
        table.add_row(
            *(str(place), repr(_text(question, entry.token)), repr(_text(question, entry.own))),
            "–" if entry.reliance is None else f"{entry.reliance:.3f}",
            *(f"{entry.epsilon:.3f}", f"{entry.spent:.4f}"),
        )
    console.print()
    console.print(table)


def _sums(ledger: list[Entry], stats: AcceptanceStats, unit: str) -> str:
    """How many tokens came from where, and what was spent."""
    count = {
        rule: sum(e.rule == rule for e in ledger) for rule in ("matched", "relaxed", "verifier")
    }
    return (
        f"\n{len(ledger)} tokens: {count['matched']} drafted and the model's own, "
        f"{count['relaxed']} drafted where it gave way, {count['verifier']} its own; "
        f"τ {stats.mean_acceptance_length:.2f}\n"
        f"spent {stats.bound_spent:.4f} {unit}; the sum of ε_v is {stats.epsilon_allowed:.2f}"
    )


def _write(
    path: Path,
    question: Question,
    spans: list[_Span],
    ledger: list[Entry],
    stats: AcceptanceStats,
) -> None:
    from specdec.files import write_json

    rows: list[dict[str, Any]] = [  # Any: JSON values
        {"text": _text(question, entry.token), "own_text": _text(question, entry.own)}
        | entry._asdict()
        for entry in ledger
    ]
    answer = "".join(span.text for span in spans)
    try:
        write_json(path, {"answer": answer, "tokens": rows, "stats": stats.to_dict()})
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from error


def _text(question: Question, token: int) -> str:
    text = question.loaded.tokenizer.decode([token])
    assert isinstance(text, str)
    return text
