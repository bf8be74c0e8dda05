"""Files that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LARGEST = 2**26  # bytes; the index of the largest checkpoints has a few million
# No model has more of what a name ending so counts.
_MOST = {
    **dict.fromkeys(("layers", "layer", "depth", "experts", "blocks"), 4096),
    "size": 2**24,
}


def write_json(path: Path, record: Mapping[str, Any]) -> None:  # Any: JSON values
    """Write ``record``; the file appears, or is replaced, in one move."""
    write_text(path, json.dumps(record, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text``; the file appears, or is replaced, in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read_json(file: Path) -> dict[str, Any]:  # Any: JSON values
    """The object in a file that may be anybody's.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds none, or far more than any such file.
    """
    size = file.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{file} has {size} bytes, too many for a JSON file of a checkpoint")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    # Lists in lists in lists …
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} holds no JSON object")
    return record


def refuse_endless(file: Path, config: Mapping[str, Any]) -> None:  # Any: JSON values
    """Refuse the configuration of a model that would take for ever to build, or all memory: layers
    are made one by one, before a single weight is looked at.

    Raises:
        ValueError: it has far more layers, or the like, than any model.
    """
    for name, value in config.items():
        if isinstance(value, dict):
            refuse_endless(file, value)
        most = _MOST.get(name.rpartition("_")[2])
        if most is not None and isinstance(value, int) and value > most:
            raise ValueError(f"{file} says {name} = {str(value)[:20]}; no model has over {most}")
