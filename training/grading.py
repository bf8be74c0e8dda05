"""Grounded accuracy: finds the facts in an answer, whatever its wording, and compares them with
the fields.

Knows the vocabulary of facts (colours, names, places, numbers) and the order in which each task's
facts come, and nothing of the sentences around them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from specdec.training import scenes


def _any(words: tuple[str, ...]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_FACT = re.compile(
    r"\b(?:"
    r"row (?P<row>\d+)|column (?P<col>\d+)"
    rf"|(?P<color>{_any(scenes.COLORS)})|(?P<shape>{_any(scenes.SHAPES)})|(?P<item>{_any(scenes.ITEMS)})"
    r"|(?P<place>(?:top|upper|middle|bottom|lower) (?:left|middle|right)|cent(?:er|re))"
    rf"|(?P<letter>[A-H])|(?P<person>{_any(scenes.PEOPLE)})|(?P<head>[U-Z])|(?P<number>\d+)"
    r"|(?P<no>no|not|nowhere|missing|absent|lacks|without)"
    r")\b"
)
_SAME_PLACE = {"upper": "top", "lower": "bottom", "centre": "center"}


class Fact(NamedTuple):
    """One fact word of an answer: what sort it is and its canonical spelling."""

    sort: str
    value: str


def facts(text: str) -> list[Fact]:
    """Every fact word of the text, in order."""
    found = []
    for match in _FACT.finditer(text):
        sort = match.lastgroup or ""
        value = " ".join(_SAME_PLACE.get(word, word) for word in match.group(sort).split())
        found.append(Fact(sort, value))
    return found


def spans(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of the words that only the image can tell."""
    found = (match for match in _FACT.finditer(text) if match.lastgroup not in ("row", "col", "no"))
    return [match.span(match.lastgroup or 0) for match in found]


def place(row: int, col: int) -> str:
    """Canonical name of a cell of the 3x3 field, counted from 1."""
    if (row, col) == (2, 2):
        return "center"
    return f"{('top', 'middle', 'bottom')[row - 1]} {('left', 'middle', 'right')[col - 1]}"


def _records(found: list[Fact], sorts: set[str], key: str) -> dict[str, str]:
    """Consecutive groups with one fact of every sort, as `name.sort`; a broken group ends them."""
    relevant = [f for f in found if f.sort in sorts]
    fields: dict[str, str] = {}
    names = []
    for i in range(0, len(relevant), len(sorts)):
        group = dict(relevant[i : i + len(sorts)])
        if set(group) != sorts:
            break
        name = group.pop(key)
        names.append(name)
        fields |= {f"{name}.{sort}": value for sort, value in group.items()}
    return {"names": ",".join(names), **fields}


def parse(task: str, text: str) -> dict[str, str]:
    """The fields that an answer to this task states; a fact that is missing or said in two ways is
    left out.

    Raises ValueError for an unknown task.
    """
    found = facts(text)

    def the(sort: str) -> dict[str, str]:
        values = {f.value for f in found if f.sort == sort}
        return {sort: values.pop()} if len(values) == 1 else {}

    def every(sort: str) -> list[str]:
        return [f.value for f in found if f.sort == sort]

    def numbered(*names: str) -> dict[str, str]:
        numbers = every("number")
        return dict(zip(names, numbers, strict=True)) if len(numbers) == len(names) else {}

    present = {"present": "no" if any(f.sort == "no" for f in found) else "yes"}
    match task:
        case "grid_cell" | "table_cell":
            return the("number")
        case "grid_row" | "grid_read":
            return {f"digit{i}": n for i, n in enumerate(every("number"))}
        case "grid_sum":
            return numbered("first", "last", "sum")
        case "shapes_describe":
            return _records(found, {"color", "shape", "place"}, "shape")
        case "shapes_color" | "shapes_absent":
            last = {"shape": every("shape")[-1]} if every("shape") else {}
            return {**present, **the("color"), **the("place"), **last}
        case "shapes_at":
            return {**the("color"), **the("shape")}
        case "bar_value" | "bar_absent":
            first = {"first": every("letter")[-1]} if every("letter") else {}
            return {**present, **first, **the("color"), **the("number")}
        case "bar_compare":
            longer = {"longer": every("letter")[-1]} if every("letter") else {}
            return {**numbered("first", "second", "difference"), **longer}
        case "bar_extreme":
            letters = every("letter")
            named = (
                dict(zip(("longest", "shortest"), letters, strict=True))
                if len(letters) == 2
                else {}
            )
            return {**named, **numbered("high", "low")}
        case "bar_table":
            return _records(found, {"letter", "color", "number"}, "letter")
        case "receipt_price" | "receipt_absent":
            first = {"first": every("item")[-1]} if every("item") else {}
            return {**present, **first, **the("number")}
        case "receipt_json":
            return _records(found, {"item", "number"}, "item")
        case "receipt_dearest":
            return {**the("item"), **the("number")}
        case "table_row":
            return _records(found, {"head", "number"}, "head")
        case "pair_first":
            colors, shapes = every("color"), every("shape")
            if len(colors) != 2 or len(shapes) != 2:
                return {}
            return {f"color{i}": c for i, c in enumerate(colors)} | {
                f"shape{i}": n for i, n in enumerate(shapes)
            }
    raise ValueError(f"unknown task {task!r}")


class Score(NamedTuple):
    """How many of an answer's fields are right."""

    right: int
    total: int

    @property
    def exact(self) -> bool:
        """Whether every field is right."""
        return self.right == self.total


def score(task: str, fields: dict[str, str], text: str) -> Score:
    """Compare an answer with the fields of its dialogue."""
    said = parse(task, text)
    return Score(sum(said.get(name) == value for name, value in fields.items()), len(fields))
