"""Users' own prompts: a folder of images and lines, or a data set read through `datasets`.

What cannot be used is left out and listed; only if nothing is left, it is an error. Knows nothing
of who answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specdec.training.prompts import (
    Asked,
    AtLength,
    EmbeddedPrompts,
    Prompts,
    open_row,
    read_row,
    with_images,
)
from specdec.training.rows import Rows
from specdec.training.skipped import Skipped
from specdec.training.tables import image_sources, open_dataset

IMAGE_COLUMNS = ("image", "images")
PROMPT_COLUMNS = ("prompt", "question", "text")


class Line(NamedTuple):
    """A usable line of a folder's ``*.jsonl``: what to call it, prompt and image files, and the
    line itself.
    """

    where: str
    prompt: tuple[str, list[Path]]
    text: str

    def open(self) -> Asked:
        """The prompt with its images.

        Raises:
            ValueError: an image cannot be read.
        """
        return open_row(self.prompt)._replace(where=self.where)


def read_folder(folder: Path, skipped: list[Skipped]) -> list[Line]:
    """The usable lines of a folder's ``*.jsonl``; the others are noted in ``skipped``."""
    lines: list[Line] = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            where = f"{file.name} line {number}"
            try:
                if text := line.decode().strip():
                    lines.append(Line(where, read_row(text, folder, where), text))
            except ValueError as error:  # also what cannot be decoded
                skipped.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
    return lines


class FolderPrompts(Rows):
    """Prompts from a folder: images, and ``*.jsonl`` with ``{"image": file, "prompt": text}`` or
    ``{"images": [file, …], "prompt": text}`` a line.

    Raises:
        ValueError: no usable prompts there; the message says what is wrong with the first line.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._lines = read_folder(folder, self.skipped)
        for row, line in enumerate(self._lines):
            self._add(row, len(line.prompt[1]), line.text.encode())
        self._close(str(folder), '*.jsonl files with lines {"image": file, "prompt": text}')

    def _open(self, row: int) -> Asked:
        return self._lines[row].open()

    def _where(self, row: int) -> str:
        return self._lines[row].where


class DatasetPrompts(Rows):
    """Prompts from a data set with a column of prompts and one of images, or of lists of images.

    Args:
        dataset: a ``datasets.Dataset``. Images are encoded, as its Image feature has them, or
            paths.
        source: what to call it.
        image_column: by default the first of ``IMAGE_COLUMNS`` that is there.
        prompt_column: by default the first of ``PROMPT_COLUMNS`` that is there.
        folder: what paths of images are relative to.

    Raises:
        ValueError: it has no such columns, or no usable prompts.
    """

    def __init__(
        self,
        dataset: Any,  # datasets is no dependency of the package, but of its train extra
        source: str,
        *,
        image_column: str | None = None,
        prompt_column: str | None = None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        there = dataset.column_names
        self._image = _column(there, image_column, IMAGE_COLUMNS, source, "images")
        self._prompt = _column(there, prompt_column, PROMPT_COLUMNS, source, "prompts")
        self._source, self._folder = source, folder or Path()
        # As Arrow, images are not decoded.
        self._dataset = dataset.select_columns([self._prompt, self._image]).with_format("arrow")
        row = 0
        for rows in self._dataset.iter(batch_size=256):
            counts = _image_counts(rows.column(self._image))
            for prompt, images in zip(rows.column(self._prompt).to_pylist(), counts, strict=True):
                self._take(row, prompt, images)
                row += 1
        self._close(source, f"texts in {self._prompt!r} and images in {self._image!r}")

    def _take(self, row: int, prompt: object, images: int | None) -> None:
        if not isinstance(prompt, str) or not prompt.strip():
            why = f"column {self._prompt!r} is empty or no text: {prompt!r}"
            self.skipped.append(Skipped(self._where(row), why))
        elif images is None:
            why = f"column {self._image!r} holds no image"
            self.skipped.append(Skipped(self._where(row), why))
        else:
            self._add(row, images, f"{row} {prompt}".encode())

    def _open(self, row: int) -> Asked:
        [found] = self._dataset[row].to_pylist()
        sources = image_sources(found[self._image], self._image, self._folder)
        return with_images(found[self._prompt], sources, self._where(row))

    def _where(self, row: int) -> str:
        return f"{self._source} row {row}"


def open_prompts(
    data: str | None,
    *,
    tasks: Sequence[str] = (),
    image_column: str | None = None,
    prompt_column: str | None = None,
    long: bool = False,
) -> Prompts:
    """The prompts that ``--data`` names.

    Args:
        data: ``None`` is the embedded LVLM's generator; else a folder with ``*.jsonl``, or what
            :func:`open_dataset` takes.
        tasks: of the generator.
        image_column, prompt_column: of a data set.
        long: ask for long answers.

    Raises:
        ValueError: it cannot be read, or holds nothing of use; the message says what is there and
            what was expected.
    """
    prompts: Prompts
    if data is None:
        prompts = EmbeddedPrompts(tasks)
    elif any(Path(data).glob("*.jsonl")):
        prompts = FolderPrompts(Path(data))
    else:
        found, source, folder = open_dataset(data)
        prompts = DatasetPrompts(
            found, source, image_column=image_column, prompt_column=prompt_column, folder=folder
        )
    return AtLength(prompts) if long else prompts


def _column(
    there: Sequence[str], wanted: str | None, usual: Sequence[str], source: str, what: str
) -> str:
    names = usual if wanted is None else (wanted,)
    found = next((name for name in names if name in there), None)
    if found is None:
        raise ValueError(
            f"{source} has the columns {', '.join(there)}; {what} were expected in "
            f"{' or '.join(names)}"
        )
    return found


def _image_counts(column: Any) -> list[int | None]:
    """Images in each row, ``None`` where there is no value; looks at no bytes."""
    import pyarrow  # type: ignore[import-untyped]  # it ships no type information
    import pyarrow.compute  # type: ignore[import-untyped]  # likewise

    if pyarrow.types.is_list(column.type) or pyarrow.types.is_large_list(column.type):
        counts: list[int | None] = pyarrow.compute.list_value_length(column).to_pylist()
        return counts
    return [1 if valid else None for valid in column.is_valid().to_pylist()]
