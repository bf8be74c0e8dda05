"""Data sets, of the hub or on disk, opened through `datasets`, and the images in their cells.

Knows nothing of what their columns mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HUB = "hub:"
_HUB_FORM = "owner/name[:split] or owner/name:configuration:split"


class Found(NamedTuple):
    """A data set, what to call it, and what paths in it are relative to."""

    dataset: Any  # datasets is no dependency of the package, but of its train extra
    name: str
    folder: Path | None


def open_dataset(data: str, split: str = "train") -> Found:
    """The data set that a name or a path means; reads no row.

    Args:
        data: ``hub:owner/name``, ``hub:owner/name:split`` or ``hub:owner/name:configuration:split``
            of the hub; else a folder written by ``save_to_disk``, one with ``*.arrow`` or
            ``*.parquet`` files, or such a file.
        split: the one to take where several are there and ``data`` names none.

    Raises:
        ValueError: it cannot be read; the message says what is there and what was expected.
    """
    try:
        import datasets  # type: ignore[import-untyped]  # it ships no type information
    except ImportError:
        raise ValueError(
            f"reading {data} takes the package datasets, which is not installed; "
            "in specdec's checkout, pip install -e '.[train]'"
        ) from None
    if data.startswith(HUB):
        return _from_hub(datasets, data, split)
    return _from_path(datasets, Path(data), split)


def hub_name(data: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of ``hub:…``, ``None`` where it has none.

    Raises:
        ValueError: it has more parts.
    """
    name, *rest = data.removeprefix(HUB).split(":")
    if not name or len(rest) > 2:
        raise ValueError(f"{data} could not be read as {_HUB_FORM}")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def _from_hub(datasets: Any, data: str, split: str) -> Found:  # Any: an untyped module
    name, config, wanted = hub_name(data)
    configs = [] if config is None else [config]
    try:
        return Found(datasets.load_dataset(name, *configs, split=wanted or split), data, None)
    except Exception as error:  # of the network, of the hub, of the format, of the split
        raise ValueError(f"{data} could not be read as {_HUB_FORM}: {error}") from error


def _from_path(datasets: Any, path: Path, split: str) -> Found:  # Any: an untyped module
    folder = path if path.is_dir() else path.parent
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        found = datasets.load_from_disk(str(path))
        if isinstance(found, datasets.DatasetDict):
            found = found[_split(found, split, path)]
        return Found(found, path.name, folder)
    files = [path] if path.is_file() else sorted(path.glob("*.arrow"))
    if files and all(file.suffix == ".arrow" for file in files):
        parts = [datasets.Dataset.from_file(str(file)) for file in files]
        return Found(datasets.concatenate_datasets(parts), path.name, folder)
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if files and all(file.suffix == ".parquet" for file in files):
        splits: dict[str, list[str]] = {}  # named as the hub names them, split-00000-of-00001
        for file in files:
            splits.setdefault(file.stem.partition("-")[0], []).append(str(file))
        chosen = splits[_split(splits, split, path)]
        return Found(datasets.Dataset.from_parquet(chosen), path.name, folder)
    there = ", ".join(sorted(file.name for file in path.glob("*"))[:8])
    what = f"holds {there or 'nothing'}" if path.is_dir() else "is no folder"
    raise ValueError(
        f"{path} {what}; expected *.jsonl lines, a data set written by "
        "save_to_disk, or *.arrow or *.parquet files"
    )


def _split(there: Collection[str], wanted: str, path: Path) -> str:
    if wanted in there:
        return wanted
    if len(there) != 1:
        raise ValueError(f"{path} has the splits {', '.join(there)}; give one's own folder or file")
    return next(iter(there))


def image_sources(cell: object, column: str, folder: Path) -> list[str | bytes]:
    """Where the images of a cell can be read: of one, encoded or a path, or of a list of them.

    Raises:
        ValueError: it holds something else.
    """
    sources: list[str | bytes] = []
    for image in cell if isinstance(cell, list) else [cell]:
        found = image["bytes"] or image["path"] if isinstance(image, Mapping) else image
        if not isinstance(found, str | bytes):
            raise ValueError(f"column {column!r} holds no image: {found!r}")
        sources.append(found if isinstance(found, bytes) else str((folder / found).resolve()))
    return sources
