"""Questions to calibrate on, and how good an answer to one of them is.

A folder of images and ``*.jsonl`` lines, or the embedded model's generator. Knows nothing of
decoding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import SequenceMatcher
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from specdec.eval import graded
from specdec.eval.scoring import contains
from specdec.training.grading import score
from specdec.training.prompts import Asked, open_row, read_row


class Metric(StrEnum):
    """What the quality of an answer is, in [0, 1].

    ``fields``: the share of the facts on the image that it states rightly. ``answer``: whether it
    contains the expected one. ``similarity``: to the lossless answer, word by word.
    """

    FIELDS = "fields"
    ANSWER = "answer"
    SIMILARITY = "similarity"


class DevQuestion(NamedTuple):
    """``fields``: the facts on the image, where they are known; ``answer``: what is expected."""

    asked: Asked
    fields: Mapping[str, str] | None = None
    answer: str | None = None


def generated(count: int) -> list[DevQuestion]:
    """Held-out questions for the embedded model, others than are trained, shipped or measured on.
    Needs the ``train`` extra.
    """
    made = graded.generated(count, graded.CALIBRATING)
    return [DevQuestion(question.asked, fields=question.fields) for question in made]


def from_folder(folder: Path, count: int | None = None) -> list[DevQuestion]:
    """The first ``count`` questions of a folder: lines of ``{"image": file, "prompt": text}``, or
    ``"images": [file, …]``, with ``"answer": text`` if one is expected.

    Raises:
        ValueError: there are none, or a line is none; the message names file and line.
    """
    found: list[DevQuestion] = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip() and (count is None or len(found) < count):
                where = f"{file} line {number}"
                asked = open_row(read_row(line, folder, where))
                answer = json.loads(line).get("answer")
                if answer is not None and (not isinstance(answer, str) or not answer.strip()):
                    raise ValueError(f'{where}: "answer" is no text: {answer!r}')
                found.append(DevQuestion(asked, answer=answer))
    if not found:
        raise ValueError(f"{folder} has no questions in *.jsonl files")
    return found


def natural(questions: list[DevQuestion]) -> Metric:
    """The best metric that the questions allow."""
    if all(question.fields is not None for question in questions):
        return Metric.FIELDS
    if all(question.answer is not None for question in questions):
        return Metric.ANSWER
    return Metric.SIMILARITY


def check(metric: Metric, questions: list[DevQuestion], *, sampled: bool) -> None:
    """Raise ``ValueError`` if the metric cannot be taken on these questions."""
    if metric is Metric.FIELDS and any(question.fields is None for question in questions):
        raise ValueError(
            "--metric fields: only the demonstration model's own questions say what is on the image"
        )
    lacking = sum(question.answer is None for question in questions)
    if metric is Metric.ANSWER and lacking:
        raise ValueError(f'--metric answer: {lacking} questions have no "answer" in their line')
    if metric is Metric.SIMILARITY and sampled:
        raise ValueError(
            "--metric similarity compares with the one lossless answer, and sampled answers differ "
            "losslessly, too; use --temperature 0, or questions with answers"
        )


def quality(
    metric: Metric, question: DevQuestion, text: str, lossless: str, *, ended: bool
) -> float:
    """How good an answer is, in [0, 1]. One that was cut off states no facts."""
    if metric is Metric.FIELDS:
        assert question.fields is not None
        got = score(question.asked.task, dict(question.fields), text)
        return got.right / got.total if ended else 0.0
    if metric is Metric.ANSWER:
        assert question.answer is not None
        return contains([question.answer], text)
    return similarity(text, lossless)


def similarity(text: str, other: str) -> float:
    """Of two texts, word by word, in [0, 1]."""
    return SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()
