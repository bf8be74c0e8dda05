"""Which of a text-only drafter's mistakes does the image explain?

`python -m specdec.eval.mismatches`. On held-out questions the verifier's own answers, greedy ones
unless a temperature is given, are read once with the right image, once with that of another
question of the same task, once with a blank one. A *mismatch* is a place where the drafter's argmax
differs from the verifier's. It is *image-dependent* if the verifier's argmax there changes with the
swapped or the blank image, and else *image-independent*: language alone decides, and relaxed
acceptance could give way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from specdec.eval import suite
from specdec.eval.record import machine, write
from specdec.training.counterfactual import Judged, answer, judge
from specdec.verifiers import TransformersVerifier


@dataclass
class Counts:
    """Answer tokens compared; those at which the image decides; the drafter's mismatches; those of
    them that do not depend on the image.
    """

    tokens: int = 0
    dependent_tokens: int = 0
    mismatches: int = 0
    independent_mismatches: int = 0

    def add(self, judged: Judged) -> None:
        """Count an answer's tokens."""
        wrong = judged.mismatched
        self.tokens += len(wrong)
        self.dependent_tokens += int(judged.dependent.sum())
        self.mismatches += int(wrong.sum())
        self.independent_mismatches += int((wrong & ~judged.dependent).sum())

    def merge(self, other: Counts) -> None:
        """Add the counts of ``other``."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Counts and shares."""
        return {
            **asdict(self),
            "mismatch_share": self.mismatches / max(self.tokens, 1),
            "independent_share": self.independent_mismatches / max(self.mismatches, 1),
        }


def compare(
    model: PreTrainedModel,
    processor: Any,
    drafter: PreTrainedModel,
    questions: Sequence[suite.Asked],
    *,
    max_new_tokens: int = 160,
    batch: int = 32,
    temperature: float = 0.0,
) -> dict[str, Counts]:
    """Counts per task."""
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    answered = answer(model, processor, questions, batch=batch, **limits)
    verifier = TransformersVerifier(model)
    verifier.shares = False
    judged = judge(verifier, processor, drafter, answered, batch=batch)
    table: dict[str, Counts] = defaultdict(Counts)
    for question, each in zip(questions, judged, strict=True):
        table[question.task].add(each)
    return dict(table)


def report(table: Mapping[str, Counts]) -> dict[str, Any]:
    """The counts per task and in all."""
    total = Counts()
    for counts in table.values():
        total.merge(counts)
    return {
        "total": total.to_dict(),
        "tasks": {task: counts.to_dict() for task, counts in table.items()},
    }


def _print(result: Mapping[str, Any]) -> None:
    table = Table(title="Mismatches of a text-only drafter on the verifier's own answers")
    for column in ("task", "tokens", "image decides", "mismatches", "image-independent"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, row in [*result["tasks"].items(), ("all", result["total"])]:
        table.add_row(
            task,
            str(row["tokens"]),
            f"{row['dependent_tokens'] / max(row['tokens'], 1):.1%}",
            f"{row['mismatches']} ({row['mismatch_share']:.1%})",
            f"{row['independent_mismatches']} ({row['independent_share']:.1%})",
        )
    Console().print(table)


def mismatches(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[Path, typer.Option(help="Folder of the drafter.")] = suite.DRAFTER,
    questions: Annotated[int | None, typer.Option(min=2, help="How many; default all.")] = None,
    folder: Annotated[Path, typer.Option("--suite", help="Of questions.")] = suite.QUESTIONS,
    batch: Annotated[int, typer.Option(min=1, help="Answers read together.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the answers, if they are sampled.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the verifier.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """How many of a text-only drafter's mismatches does the image not explain?"""
    from specdec.drafters import TextOnlyDrafter, load_drafter

    try:
        asked = suite.load_questions(folder, questions)
        verifier, processor = suite.load_verifier(model, dtype)
        loaded = load_drafter(drafter, verifier)
        if not isinstance(loaded, TextOnlyDrafter):
            raise ValueError(f"{drafter}: mismatches are measured for text-only drafters")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    torch.manual_seed(seed)
    table = compare(
        verifier,
        processor,
        loaded.model,
        asked,
        max_new_tokens=max_new_tokens,
        batch=batch,
        temperature=temperature,
    )
    how = {"machine": machine(), "questions": len(asked), "temperature": temperature, "seed": seed}
    result = {**how, **report(table)}
    _print(result)
    if out is not None:
        write(out, result)


if __name__ == "__main__":
    typer.run(mismatches)
