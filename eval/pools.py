"""Questions that are there to be asked, not yet opened: of the package, of a folder.

Those of a data set are in `eval.dataset_pool`. Knows nothing of which are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from specdec.eval import graded
from specdec.eval.adapters import Row
from specdec.eval.scoring import CONTAINS, Score
from specdec.training.grading import score
from specdec.training.prompts import Asked
from specdec.training.skipped import Skipped
from specdec.training.sources import Line, read_folder

FACTS = "facts"


class Question(NamedTuple):
    """``score``: of an answer; ``None`` if no right one is known."""

    asked: Asked
    score: Score | None


class Pool(Protocol):
    """Questions by number."""

    @property
    def tasks(self) -> Sequence[str]:
        """The task of each question; empty if it has no name."""

    @property
    def metric(self) -> str | None:
        """The name of the scores."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What cannot be asked, as far as that is known before it is opened."""

    def where(self, number: int) -> str:
        """What to call a question in a message."""

    def open(self, number: int) -> Question:
        """A question with its images.

        Raises:
            ValueError: it cannot be used; the message says why.
        """


class ShippedPool:
    """The questions that come with the package, scored by the share of the facts on the image that
    an answer states rightly.
    """

    metric = FACTS
    skipped: Sequence[Skipped] = ()

    def __init__(self) -> None:
        self._graded = graded.shipped()
        self.tasks = [each.asked.task for each in self._graded]

    def where(self, number: int) -> str:
        """See :class:`Pool`."""
        return self._graded[number].name

    def open(self, number: int) -> Question:
        """See :class:`Pool`."""
        name, asked, fields = self._graded[number]

        def facts(answer: str) -> float:
            got = score(asked.task, dict(fields), answer)
            return got.right / got.total

        return Question(asked._replace(where=name), facts if fields else None)


class FolderPool:
    """Lines of a folder's ``*.jsonl``, ``{"image": file, "prompt": text}``, each with ``"answer"``
    or a list of ``"answers"``, and with a ``"task"``, where these are known.
    """

    metric = CONTAINS.name

    def __init__(self, folder: Path) -> None:
        self.skipped: list[Skipped] = []
        self._lines: list[tuple[Line, list[str]]] = []
        self.tasks: list[str] = []
        for line in read_folder(folder, self.skipped):
            try:
                task, answers = _extras(json.loads(line.text))
            except ValueError as error:
                self.skipped.append(Skipped(line.where, str(error)))
            else:
                self._lines.append((line, answers))
                self.tasks.append(task)

    def where(self, number: int) -> str:
        """See :class:`Pool`."""
        return self._lines[number][0].where

    def open(self, number: int) -> Question:
        """See :class:`Pool`."""
        line, answers = self._lines[number]
        asked = line.open()._replace(task=self.tasks[number])
        return Question(asked, CONTAINS.against(answers))


def _extras(row: Row) -> tuple[str, list[str]]:
    """Task and answers of a line."""
    task = row.get("task", "")
    if not isinstance(task, str):
        raise ValueError(f'"task" is no text: {task!r}')
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    if not isinstance(answers, list) or not all(isinstance(each, str) for each in answers):
        raise ValueError(f'"answer" is no text, or "answers" no list of texts: {answers!r}')
    return task, answers
