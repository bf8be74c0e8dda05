"""Questions of a data set, read with an adapter.

Knows nothing of what columns mean, or which rows are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specdec.eval.adapters import Adapter
from specdec.eval.catalog import fitting, parse
from specdec.eval.pools import Question
from specdec.eval.scoring import Metric
from specdec.training.prompts import opened
from specdec.training.skipped import Skipped
from specdec.training.tables import HUB, Found, hub_name, image_sources, open_dataset


class TablePool:
    """Rows of a data set, read with an adapter. Images of rows that are not opened are never
    decoded.

    Args:
        found: the data set.
        adapter: it fits.
        metric: how answers are scored.
        short: ask for short answers.
        images: where the images are if the data set has only their keys.
    """

    skipped: Sequence[Skipped] = ()

    def __init__(
        self,
        found: Found,
        adapter: Adapter,
        metric: Metric | None,
        *,
        short: bool = False,
        images: KeyedImages | None = None,
    ) -> None:
        self._adapter, self._metric, self._short, self._images = adapter, metric, short, images
        self._name, self._folder = found.name, (images or found).folder or Path()
        self.metric = metric and metric.name
        there = found.dataset.column_names
        wanted = {name for names in adapter.needed() for name in names} | {*adapter.optional()}
        # As Arrow, images are not decoded.
        self._table = found.dataset.select_columns(
            [name for name in there if name in wanted]
        ).with_format("arrow")
        labels = [name for name in adapter.label_columns() if name in there]
        self._rows: list[tuple[int, int]] = []  # row, and number of the question in it
        self.tasks: list[str] = []
        for row, tasks in enumerate(_labels(found.dataset, adapter, labels)):
            self._rows += [(row, number) for number in range(len(tasks))]
            self.tasks += tasks

    def where(self, number: int) -> str:
        """See :class:`Pool`."""
        return f"{self._name} row {self._rows[number][0]}"

    def open(self, number: int) -> Question:
        """See :class:`Pool`."""
        row, question = self._rows[number]
        [cells] = self._table[row].to_pylist()
        if self._images is not None:
            cells["image"] = self._images[cells[self._adapter.key]]
        messages, images, references = self._adapter.read(cells, question, self._short)
        sources = [
            source
            for column, cell in images
            for source in image_sources(cell, column, self._folder)
        ]
        asked = opened(messages, sources, self.where(number))
        score = self._metric and self._metric.against(references)
        return Question(asked._replace(task=self.tasks[number]), score)


def _labels(
    dataset: Any,  # see Found
    adapter: Adapter,
    columns: list[str],
) -> list[list[str]]:
    """The tasks of each row's questions."""
    if not columns:
        return [adapter.labels({})] * len(dataset)
    names = {name: getattr(dataset.features[name], "names", None) for name in columns}
    found = []
    for batch in dataset.select_columns(columns).with_format("arrow").iter(batch_size=256):
        for row in batch.to_pylist():
            for name, known in names.items():
                if known and row[name] is not None:  # a class by number, -1 if it has none
                    row[name] = known[row[name]] if row[name] >= 0 else None
            found.append(adapter.labels(row))
    return found


class KeyedImages:
    """The images of a table with columns ``id`` and ``image``.

    Raises:
        ValueError: it has no such columns.
    """

    def __init__(self, found: Found) -> None:
        there = found.dataset.column_names
        if not {"id", "image"} <= set(there):
            raise ValueError(
                f"{found.name} has the columns {', '.join(there)}; images were expected in image, "
                "their keys in id"
            )
        self._name, self.folder = found.name, found.folder
        self._images = found.dataset.select_columns(["image"]).with_format("arrow")
        self._rows = {
            key: row for row, key in enumerate(found.dataset.select_columns(["id"])["id"])
        }

    def __getitem__(self, key: str) -> object:
        if key not in self._rows:
            raise ValueError(f"{self._name} has no image {key!r}")
        return self._images[self._rows[key]].to_pylist()[0]["image"]


def dataset_pool(source: str) -> TablePool:
    """The questions of a data set that ``DATA@adapter`` names.

    Raises:
        ValueError: it cannot be read, or its columns do not fit.
    """
    wanted = parse(source)
    data, split = wanted.data, "test"
    if any(Path(data).glob("*.jsonl")):
        raise ValueError(f"{source}: {data} has *.jsonl files, whose lines need no adapter")
    if wanted.adapter is not None:
        data, split = _with_defaults(data, wanted.adapter), wanted.adapter.split
    found = open_dataset(data, split)
    there = found.dataset.column_names
    adapter = fitting(data, wanted.adapter, there)
    images = None
    if adapter.key in there and not set(adapter.image) & set(there):
        before, table, behind = data.rpartition("instructions")
        if not table:
            raise ValueError(
                f"{data} has keys of images in {adapter.key}, but no images; they are looked for "
                'in a data set with "images" in its name, where this one has "instructions"'
            )
        images = KeyedImages(open_dataset(f"{before}images{behind}", split))
    metric = wanted.metric(adapter)
    return TablePool(found, adapter, metric, short=wanted.short, images=images)


def _with_defaults(data: str, adapter: Adapter) -> str:
    """With the adapter's configuration, for a name on the hub that says none."""
    if not data.startswith(HUB) or not adapter.config:
        return data
    name, config, split = hub_name(data)
    return f"{HUB}{name}:{config or adapter.config}:{split or adapter.split}"
