"""What the columns of the usual data sets mean: from a row to questions, references and tasks.

Column names are those of the copies on the hub that each adapter names, in 2024 and later. A row
arrives as plain values, its images encoded; nothing here decodes one. Knows nothing of how rows are
stored, drawn or answered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from specdec.eval.scoring import Metric
from specdec.training.prompts import text_part

Row = Mapping[str, Any]  # Any: what the data set has in its cells

SHORT = "Answer the question using a single word or phrase."
CAPTION = "Describe this image."  # where the data set has no words for it
IMAGE = {"type": "image"}


class Read(NamedTuple):
    """``messages``: in the form that ``processor.apply_chat_template`` takes; ``images``: column
    and value of the cell of each image in them, in order; ``references``: right answers.
    """

    messages: list[dict[str, Any]]  # Any: transformers' chat form
    images: list[tuple[str, object]]
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Adapter:
    """Questions from rows with a question, its image and its answers.

    Attributes:
        name: what users call it.
        metric: how answers are scored.
        config, split: what of the data set on the hub is asked if nothing is said.
        image, question, answers: columns; of several the first that is there.
        task: columns of task labels; of a struct, ``column.field``. Of several the first that is
            there, and none is no mistake.
        key: column with the key of an image in a table of images, if a table has no ``image``.
        short: what asks for the short answers that the metric was made for.
    """

    name: str
    metric: Metric | None = None
    config: str | None = None
    split: str = "test"
    image: tuple[str, ...] = ("image",)
    question: tuple[str, ...] = ("question",)
    answers: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    key: str = ""
    short: str = SHORT

    def needed(self) -> list[tuple[str, ...]]:
        """Columns without which it does not fit; one of each tuple."""
        return [(*self.image, *filter(None, [self.key])), self.question, self.answers]

    def optional(self) -> list[str]:
        """Columns that are read, too, where they are there."""
        return self.label_columns()

    def lacking(self, there: Collection[str]) -> list[str]:
        """What of the needed columns is not there, in words."""
        return [
            " or ".join(names) for names in self.needed() if names and not set(names) & set(there)
        ]

    def labels(self, row: Row) -> list[str]:
        """The tasks of a row's questions, one each; empty if they have no names. Takes only the
        columns of :meth:`label_columns`.
        """
        for name in self.task:
            column, _, field = name.partition(".")
            value = row.get(column)
            if field:
                value = value.get(field) if isinstance(value, Mapping) else None
            if isinstance(value, list):  # the first of a question's kinds
                value = value[0] if value else None
            if value is not None:
                return [str(value)]
        return [""]

    def label_columns(self) -> list[str]:
        """The columns that :meth:`labels` looks at."""
        return [name.partition(".")[0] for name in self.task]

    def read(self, row: Row, number: int, short: bool) -> Read:
        """The question of this number in a row; ``short``: with a request for a short answer.

        Raises:
            ValueError: it cannot be used; the message says why.
        """
        question = text_in(row, self.question)
        images = images_in(row, self.image)
        asked = f"{question}\n{self.short}" if short else question
        return Read(user_turn(asked, images), images, self.references(row))

    def references(self, row: Row) -> list[str]:
        """The right answers of a row, as often as they were given."""
        value = row[first(row, self.answers)]
        values = value if isinstance(value, list) else [value]
        return [str(each) for each in values if each is not None]


class Plain(Adapter):
    """A data set without a name here: its usual columns, with references if there are some."""

    def needed(self) -> list[tuple[str, ...]]:
        return [self.image, self.question]

    def optional(self) -> list[str]:
        return [*self.label_columns(), *self.answers]

    def references(self, row: Row) -> list[str]:
        return super().references(row) if set(row) & set(self.answers) else []


class Captions(Adapter):
    """Images to describe, with captions that say which data set it is, and are not compared."""

    def needed(self) -> list[tuple[str, ...]]:
        return [self.image, self.answers]

    def optional(self) -> list[str]:
        return [*self.label_columns(), *self.question]

    def read(self, row: Row, number: int, short: bool) -> Read:
        said = [text for name in self.question if (text := row.get(name))]
        asked, images = (said or [CAPTION])[0], images_in(row, self.image)
        return Read(user_turn(f"{asked}\n{self.short}" if short else asked, images), images)


def first(row: Collection[str], names: Sequence[str]) -> str:
    """The first of these columns that is there, or would be."""
    return next((name for name in names if name in row), names[0])


def text_in(row: Row, names: Sequence[str]) -> str:
    """The text of the first of these columns that is there.

    Raises:
        ValueError: it is empty or none.
    """
    column = first(row, names)
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"column {column!r} is empty or no text: {text!r}")
    return text.strip()


def images_in(row: Row, names: Sequence[str]) -> list[tuple[str, object]]:
    """Column and value of each image in the first of these columns that is there.

    Raises:
        ValueError: there is none.
    """
    column = first(row, names)
    cell = row.get(column)
    if cell is None:
        raise ValueError(f"column {column!r} holds no image")
    return [(column, image) for image in (cell if isinstance(cell, list) else [cell])]


def user_turn(text: str, images: Sequence[object]) -> list[dict[str, Any]]:
    """One question behind its images."""
    return [{"role": "user", "content": [*[IMAGE] * len(images), text_part(text)]}]
