"""Records of `specdec bench`: read, checked, and how one speaks of what is in them.

Knows nothing of how they were measured or how they are shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specdec.eval.timing import Interval

Json = Mapping[str, Any]  # Any: JSON values

SCHEMA = "specdec.bench/1"

_RECORD: Mapping[str, type] = {
    "command": str,
    "machine": Mapping,
    "model": Mapping,
    "questions": Mapping,
    "settings": Mapping,
    "reference": str,
    "methods": Sequence,
}
_METHOD: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "batch": int,
    "temperature": (int, float),
    "lossless": bool,
}


class Setting(NamedTuple):
    """What two methods have to share so that their speeds can be compared."""

    batch: int
    temperature: float

    def __str__(self) -> str:
        return f"batch {self.batch}, temperature {self.temperature:g}"


def read_record(path: str | Path) -> dict[str, Any]:  # Any: JSON values
    """The record in a file.

    Raises:
        ValueError: there is no such file, or no record of this schema in it.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds a {type(record).__name__}, not a record of a benchmark")
    check(record, str(path))
    return record


def check(record: Json, where: str) -> None:
    """Is this a record that can be shown and compared?

    Args:
        record: all of it.
        where: what errors call it, such as its file.

    Raises:
        ValueError: another schema, something needed is missing, or two methods cannot be told
            apart.
    """
    schema = record.get("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"{where} has schema {schema!r}, this release reads {SCHEMA!r}; measure again, or "
            "read it with the release that wrote it"
        )
    _need(record, _RECORD, where)
    seen = set()
    for number, method in enumerate(record["methods"]):
        at = f"{where}, method {number}"
        if not isinstance(method, Mapping):
            raise ValueError(f"{at} is {method!r:.60}, not an object")
        _need(method, _METHOD, at)
        if method.get("refused") is None:
            _need(method, {"overall": Mapping}, at)
        if (which := key(method)) in seen:
            raise ValueError(f"{at} is a second {label(method)!r}; names have to differ")
        seen.add(which)


def _need(part: Json, kinds: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    if missing := [name for name in kinds if name not in part]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    for name, kind in kinds.items():
        value = part[name]
        textual = isinstance(value, str) and kind is not str
        if textual or not isinstance(value, kind):
            raise ValueError(f"{where}: {name} is {value!r:.60}, which has the wrong type")


def setting(method: Json) -> Setting:
    """Batch size and temperature of a method."""
    return Setting(method["batch"], method["temperature"])


def key(method: Json) -> tuple[str, Setting]:
    """What tells a method from all others of its record."""
    return method["name"], setting(method)


def label(method: Json) -> str:
    """Its name; batch sizes other than 1 and temperatures other than 0 are told."""
    batch, temperature = setting(method)
    parts = [method["name"]]
    if batch != 1:
        parts.append(f"batch {batch}")
    if temperature:
        parts.append(f"temperature {temperature:g}")
    return ", ".join(parts)


def measured(record: Json) -> list[Json]:
    """The methods that ran."""
    return [method for method in record["methods"] if method.get("refused") is None]


def dig(part: Any, *path: str) -> Any:  # Any: JSON values
    """What lies at ``path``; ``None`` where any part of it is missing or null."""
    for name in path:
        if not isinstance(part, Mapping):
            return None
        part = part.get(name)
    return part


def number(part: Json, *path: str) -> float | None:
    """The number at ``path``; ``None`` where it is missing, null, or not finite."""
    value = dig(part, *path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def interval(part: Json, *path: str) -> Interval | None:
    """The interval at ``path``; ``None`` where any of its numbers is not there."""
    median, low, high = (number(part, *path, name) for name in Interval._fields)
    if median is None or low is None or high is None:
        return None
    return Interval(median, low, high)
