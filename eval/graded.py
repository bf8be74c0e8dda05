"""Questions whose answers can be checked against what is on the image.

Those that come with the package, and as many more as are wanted, from the same generator and the
same held-out scenes. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from specdec import demo
from specdec.eval import suite
from specdec.training.prompts import Asked

# The seeds of what was trained, tuned and shipped lie elsewhere; see `training.release`.
MEASURING, CALIBRATING = 303, 404


class Graded(NamedTuple):
    """``name``: unique; ``fields``: the facts that a right answer states."""

    name: str
    asked: Asked
    fields: Mapping[str, str]


def shipped(count: int | None = None, folder: Path = suite.QUESTIONS) -> list[Graded]:
    """The first ``count`` questions of a folder; ``None`` is all.

    Raises:
        ValueError: there are not so many.
    """
    asked = suite.load_questions(folder, count)
    facts = [question.fields for question in demo.questions(folder)]
    return [Graded(f"shipped-{i}", each, facts[i]) for i, each in enumerate(asked)]


def generated(count: int, seed: int) -> list[Graded]:
    """Held-out questions of the tasks that the embedded model answers well. Needs the ``train``
    extra.
    """
    if not count:
        return []
    from specdec.training import target

    return [
        Graded(f"{seed}-{i}", Asked(made.messages, made.images, made.task), made.fields)
        for i, made in enumerate(target.held_out(count, seed, target.SHIPPED))
    ]
