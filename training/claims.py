"""Whose a folder is: runs go on only with what they began with. Knows no plans, only what is to be
recorded of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # JSON values

from specdec.files import write_json


def claim_run(plan: Mapping[str, Any], out: Path, work: Path, *, resume: bool) -> None:
    """Take the folder ``out`` for a run of this plan, noted in ``work``, or go on in it.

    Raises:
        ValueError: it is taken, was begun with another plan, or there is nothing to go on with.
    """
    file, current = work / "plan.json", json.loads(json.dumps(plan))
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; go on with --resume or choose another folder")
    elif not file.is_file():
        raise ValueError(f"there is nothing to resume in {out}")
    elif odd := _odd(current, json.loads(file.read_text())):
        name, before = odd
        raise ValueError(
            f"{out} was begun with {name}={before!r}, now it is {current[name]!r}; "
            "give the same options, or choose another folder"
        )
    if not file.is_file():
        write_json(file, current)


def claim_answers(facts: Mapping[str, Any], folder: Path) -> None:
    """Note what the answers in a folder are, or see that those there are the same.

    Raises:
        ValueError: they are others, or nobody knows whose.
    """
    file, current = folder / "answers.json", json.loads(json.dumps(facts))
    if file.is_file():
        if odd := _odd(current, json.loads(file.read_text())):
            name, before = odd
            raise ValueError(
                f"the answers in {folder} are of {name}={before!r}, this run's of "
                f"{current[name]!r}; give the same options, or another folder with --answers-in"
            )
        return
    if any(folder.glob("answers-*.arrow")):
        raise ValueError(f"{folder} holds answers, and no {file.name} says whose they are")
    if folder.exists() and any(folder.iterdir()):
        own = folder / "unfinished" / "answers"
        other = f"{own}, which holds answers" if own.is_dir() else "an empty folder"
        raise ValueError(f"{folder} holds other files and no answers; give {other}")
    write_json(file, current)


def _odd(current: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[str, Any] | None:
    """A name whose value is another than before, and that."""
    odd = [name for name in sorted(current) if before.get(name) != current[name]]
    return (odd[0], before.get(odd[0])) if odd else None
