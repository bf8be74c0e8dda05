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
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from specdec.eval import suite
from specdec.eval.record import machine, write
from specdec.eval.suite import Question
from specdec.verifiers.spec import read_spec


@dataclass
class Counts:
    """Answer tokens compared; those at which the image decides; the drafter's mismatches; those of
    them that do not depend on the image.
    """

    tokens: int = 0
    dependent_tokens: int = 0
    mismatches: int = 0
    independent_mismatches: int = 0

    def add(self, verifier: Tensor, other_images: Sequence[Tensor], drafter: Tensor) -> None:
        """Count places: argmaxes ``(A,)`` of the verifier with the right image, with each of the
        other images, and of the drafter.
        """
        dependent = torch.zeros_like(verifier, dtype=torch.bool)
        for other in other_images:
            dependent |= other != verifier
        wrong = drafter != verifier
        self.tokens += len(verifier)
        self.dependent_tokens += int(dependent.sum())
        self.mismatches += int(wrong.sum())
        self.independent_mismatches += int((wrong & ~dependent).sum())

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


class Answered(NamedTuple):
    """A question and its answer. ``prompt``: int64 ``(P,)``, visual placeholders included;
    ``answer``: int64 ``(A,)``.
    """

    question: Question
    prompt: Tensor
    answer: Tensor


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    processor: Any,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 160,
    batch: int = 32,
    temperature: float = 0.0,
) -> list[Answered]:
    """The verifier's answers, in order: greedy, or sampled with torch's global generator."""
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    eos = torch.tensor(sorted(read_spec(model).eos_token_ids))
    done: dict[int, Answered] = {}
    for chunk in _chunks(questions, batch):
        inputs = suite.model_inputs(model, processor, [questions[i] for i in chunk])
        # Any: generate comes from a mixin that PreTrainedModel does not declare.
        generator: Any = model
        rows = generator.generate(**inputs, **how, max_new_tokens=max_new_tokens)
        padded = inputs["input_ids"].shape[1]
        for i, row, mask in zip(chunk, rows, inputs["attention_mask"], strict=True):
            said = row[padded:]
            ends = torch.isin(said, eos).nonzero()
            length = int(ends[0]) + 1 if len(ends) else len(said)
            done[i] = Answered(questions[i], row[:padded][mask.bool()], said[:length])
    return [done[i] for i in range(len(questions))]


@torch.no_grad()
def verifier_argmax(
    model: PreTrainedModel,
    processor: Any,
    answered: Sequence[Answered],
    images: Sequence[Question],
    *,
    batch: int = 32,
) -> list[Tensor]:
    """Per answer the verifier's argmax ``(A,)`` at each of its tokens, when the images are those of
    ``images`` instead.
    """
    said: dict[int, Tensor] = {}
    for chunk in _chunks([each.question for each in answered], batch):
        shown = [answered[i].question._replace(images=images[i].images) for i in chunk]
        inputs = dict(suite.model_inputs(model, processor, shown))
        rows = [torch.cat([answered[i].prompt, answered[i].answer]) for i in chunk]
        logits = model(**_right_padded(inputs, rows), use_cache=False).logits
        for place, i in enumerate(chunk):
            first, stop = len(answered[i].prompt) - 1, len(rows[place]) - 1
            said[i] = logits[place, first:stop].argmax(-1)
    return [said[i] for i in range(len(answered))]


@torch.no_grad()
def drafter_argmax(
    drafter: PreTrainedModel,
    answered: Sequence[Answered],
    visual: frozenset[int],
    *,
    batch: int = 32,
) -> list[Tensor]:
    """Per answer the drafter's argmax ``(A,)``; it reads the prompt without visual tokens."""
    hidden = torch.tensor(sorted(visual))
    said = []
    for start in range(0, len(answered), batch):
        rows, firsts = [], []
        for each in answered[start : start + batch]:
            prompt = each.prompt[~torch.isin(each.prompt, hidden)]
            rows.append(torch.cat([prompt, each.answer]))
            firsts.append(len(prompt) - 1)
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        # Causal attention never looks at the padding on the right, so no mask is needed.
        logits = drafter(input_ids=ids, use_cache=False).logits
        for row, first, tokens in zip(logits, firsts, rows, strict=True):
            said.append(row[first : len(tokens) - 1].argmax(-1))
    return said


def compare(
    model: PreTrainedModel,
    processor: Any,
    drafter: PreTrainedModel,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 160,
    batch: int = 32,
    temperature: float = 0.0,
) -> dict[str, Counts]:
    """Counts per task."""
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    answered = answer(model, processor, questions, batch=batch, **limits)
    views = [questions, swapped(questions), blanked(questions)]
    right, *others = [
        verifier_argmax(model, processor, answered, view, batch=batch) for view in views
    ]
    drafted = drafter_argmax(drafter, answered, read_spec(model).visual_token_ids, batch=batch)
    table: dict[str, Counts] = defaultdict(Counts)
    for i, question in enumerate(questions):
        table[question.task].add(right[i], [other[i] for other in others], drafted[i])
    return dict(table)


def swapped(questions: Sequence[Question]) -> list[Question]:
    """Each question with the images of the next one of its task.

    Raises:
        ValueError: a task has one question only, or other images are not of the same number.
    """
    of_task: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        of_task[question.task].append(i)
    result = list(questions)
    for task, members in of_task.items():
        if len(members) < 2:
            raise ValueError(f"task {task} has one question; swapping images takes two")
        for i, other in zip(members, [*members[1:], members[0]], strict=True):
            if len(questions[i].images) != len(questions[other].images):
                raise ValueError(f"the questions of task {task} differ in their number of images")
            result[i] = questions[i]._replace(images=questions[other].images)
    return result


def blanked(questions: Sequence[Question]) -> list[Question]:
    """Each question with white images of the same size."""
    from PIL import Image

    return [
        q._replace(images=[Image.new("RGB", image.size, "white") for image in q.images])
        for q in questions
    ]


def _chunks(questions: Sequence[Question], batch: int) -> list[list[int]]:
    """Indices in batches of one task each: like lengths, equally many images."""
    keys = [(len(question.images), question.task) for question in questions]
    order = sorted(range(len(questions)), key=keys.__getitem__)
    chunks: list[list[int]] = []
    for i in order:
        if (
            chunks
            and len(chunks[-1]) < batch
            and len(questions[chunks[-1][0]].images) == len(questions[i].images)
        ):
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks


def _right_padded(inputs: Mapping[str, Any], rows: Sequence[Tensor]) -> dict[str, Any]:
    """The inputs with other, longer texts, padded on the right, where causal attention never looks.

    Raises:
        ValueError: the model takes something per token that cannot be extended.
    """
    old = inputs["input_ids"].shape
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    extra = [
        name
        for name, value in inputs.items()
        if name not in ("input_ids", "attention_mask") and getattr(value, "shape", None) == old
    ]
    if extra:
        raise ValueError(f"cannot read answers of a model that takes {', '.join(extra)} per token")
    return {**inputs, "input_ids": ids, "attention_mask": mask}


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
