"""What the columns mean where a row is more than a question behind its image: options, and turns.

Knows nothing of how rows are stored, drawn or answered.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from specdec.eval.adapters import (
    IMAGE,
    Adapter,
    Read,
    Row,
    first,
    images_in,
    text_in,
    user_turn,
)
from specdec.training.prompts import text_part

CHOOSE = 'Explain which option is right. End with a line "Answer: " and the letter of that option.'
IMAGE_MARK = re.compile(r"<image (\d+)>")
OPTIONS = "ABCDEFGHIJ"


class Choices(Adapter):
    """MMMU-Pro: a question whose text names its images, ``<image 1>``, and its options; or one
    image that shows them.
    """

    def needed(self) -> list[tuple[str, ...]]:
        return [self.image, ("options",), self.answers]

    def optional(self) -> list[str]:
        more = [f"image_{i}" for i in range(2, 8)]
        return [*self.label_columns(), *self.question, *more]

    def read(self, row: Row, number: int, short: bool) -> Read:
        how = self.short if short else CHOOSE
        if "image" in row:
            images = images_in(row, ("image",))
            return Read(user_turn(how, images), images, self.references(row))
        lines = [text_in(row, self.question)]
        lines += [f"{OPTIONS[i]}. {option}" for i, option in enumerate(_options(row["options"]))]
        content: list[dict[str, str]] = []
        images = []
        pieces = IMAGE_MARK.split("\n".join([*lines, how]))
        for text, mark in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            if text.strip():
                content.append(text_part(text.strip()))
            cells = [] if mark is None else images_in(row, (f"image_{mark}",))
            if cells and cells[0] in images:
                content.append(text_part(f"image {mark}"))
            elif cells:
                content.append(IMAGE)
                images += cells
        if not images:  # the text names none
            images = images_in(row, self.image)
            content[:0] = [IMAGE] * len(images)
        return Read([{"role": "user", "content": content}], images, self.references(row))


def _options(cell: object) -> list[str]:
    """Of a list, or of one written as Python has it."""
    try:
        found = ast.literal_eval(cell) if isinstance(cell, str) else cell
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not 0 < len(found) <= len(OPTIONS):
        raise ValueError(f"column 'options' holds no list of 1 to {len(OPTIONS)}: {cell!r}")
    return [str(option) for option in found]


ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant"}
FIRST, LATER = "first turn", "later turn"


class Chat(Adapter):
    """Conversations: each turn of the user's is a question, behind the turns before it as they are
    given. Turns are ``{"role", "content"}`` or ``{"from", "value"}``; their content is a text with
    ``<image>`` where an image stands, or a list of parts.
    """

    def label_columns(self) -> list[str]:
        return list(self.question)

    def labels(self, row: Row) -> list[str]:
        try:
            asked = sum(turn["role"] == "user" for turn in self._turns(row))
        except ValueError:
            asked = 1  # reading it says what is wrong
        return [FIRST, *[LATER] * (asked - 1)]

    def read(self, row: Row, number: int, short: bool) -> Read:
        turns = self._turns(row)
        asked = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        if not asked:
            raise ValueError("the user has no turn")
        column = first(row, self.image)
        cells = [] if row[column] is None else images_in(row, self.image)
        if cells and not any(IMAGE in turn["content"] for turn in turns):
            turns[asked[0]]["content"][:0] = [IMAGE] * len(cells)
        messages = turns[: asked[number] + 1]
        if not any(part["type"] == "image" or part["text"] for part in messages[-1]["content"]):
            raise ValueError(f"turn {asked[number] + 1} is empty")
        if short:
            messages[-1]["content"].append(text_part(self.short))
        wanted = sum(turn["content"].count(IMAGE) for turn in messages)
        if wanted > len(cells):
            raise ValueError(f"its turns show {wanted} images, column {column!r} has {len(cells)}")
        return Read(messages, cells[:wanted])

    def _turns(self, row: Row) -> list[dict[str, Any]]:
        column = first(row, self.question)
        turns = []
        for given in row[column] or []:
            if not isinstance(given, Mapping):
                raise ValueError(f"column {column!r} has a turn of no role: {given!r}")
            name = str(given.get("role") or given.get("from"))
            role = ROLES.get(name, name)
            if role not in ("system", *ROLES):
                raise ValueError(f"column {column!r} has a turn of {name!r}")
            content = given.get("content") or given.get("value") or ""
            turns.append({"role": role, "content": _parts(content)})
        return turns


def _parts(content: str | Sequence[Row]) -> list[dict[str, str]]:
    if isinstance(content, str):
        texts = content.split("<image>")
        between = [part for text in texts for part in (text_part(text.strip()), IMAGE)][:-1]
        return [part for part in between if part == IMAGE or part["text"]]
    texts_and_images = [
        IMAGE if part.get("type") == "image" else text_part((part.get("text") or "").strip())
        for part in content
    ]
    return [part for part in texts_and_images if part == IMAGE or part["text"]]
