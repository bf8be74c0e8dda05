"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

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
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to be at `path`, a file or a folder; it goes there in one move.

    If that fails, as where the disk is full, what was there stays, and nothing half written does.

    Raises:
        OSError: naming `path`, which neither a full disk's nor that of safetensors does.
    """
    unfinished = path.with_suffix(".tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        if isinstance(error, SafetensorError):
            raise OSError(errno.EIO, str(error), str(path)) from error
        raise


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
