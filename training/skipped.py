"""What was left out, and why: never in silence. Knows nothing of what it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from specdec.files import write_text


class Skipped(NamedTuple):
    """Something that was left out: ``where`` it is, and ``why``."""

    where: str
    why: str


def first_of(skipped: Sequence[Skipped]) -> str:
    """How many were left out and why the first one was; nothing if there are none."""
    if not skipped:
        return ""
    return f"; {len(skipped)} left out, the first: {skipped[0].where}: {skipped[0].why}"


def write_skipped(file: Path, skipped: Iterable[Skipped]) -> int:
    """List what was left out, each once, ``{"where": …, "why": …}`` a line; returns how many. The
    file appears, or is replaced, in one move.
    """
    lines = [json.dumps(each._asdict()) + "\n" for each in dict.fromkeys(skipped)]
    write_text(file, "".join(lines))
    return len(lines)
