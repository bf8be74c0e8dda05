"""Answers as Arrow shards that `datasets` reads: `answers-00000.arrow`, one batch of prompts each.

A shard appears under its name only when it is complete. Its table is data only; what is known of
the batch beside it (the seconds it took, what was left out) is metadata of its schema. Knows
nothing of models.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from specdec.files import replacing
from specdec.training.prompts import Asked, answer_key, open_image
from specdec.training.skipped import Skipped

_META = b"specdec"
_NUMBERS = ("tokens", "prompt_length", "top_ids", "top_p", "task", "temperature")


class Answer(NamedTuple):
    """A verifier's answer of A tokens to a prompt of P, visual placeholders included.

    Attributes:
        key: what it is an answer to; see :func:`answer_key`.
        asked: the prompt.
        temperature: that it was drawn at; 0 is greedy.
        tokens: int64 ``(P + A,)``, no padding.
        prompt_length: P.
        top_ids: int64 ``(A, K)``: the verifier's most probable tokens at each place of the answer,
            most probable first, at temperature 1.
        top_p: fp32 ``(A, K)``: their probabilities.
    """

    key: str
    asked: Asked
    temperature: float
    tokens: Tensor
    prompt_length: int
    top_ids: Tensor
    top_p: Tensor


class Numbers(NamedTuple):
    """What is read of an answer without opening its images; see :class:`Answer`."""

    tokens: Tensor
    prompt_length: int
    top_ids: Tensor
    top_p: Tensor
    task: str
    temperature: float


class Facts(NamedTuple):
    """What is known of a shard: the keys of its answers, in order, the seconds that it took, and
    what was left out of it.
    """

    keys: list[str]
    seconds: float
    skipped: list[Skipped]


class AnswerShards:
    """The answers in a folder, numbered through all shards.

    Args:
        folder: created when the first shard is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tables: dict[int, Any] = {}  # of datasets, memory-mapped
        self._ends: list[int] = []
        self._known: list[int] = []

    def path(self, index: int) -> Path:
        """The file of the shard of this number."""
        return self.folder / f"answers-{index:05d}.arrow"

    @property
    def indices(self) -> list[int]:
        """The numbers of the shards that are there."""
        files = sorted(self.folder.glob("answers-*.arrow"))
        return [int(file.stem.removeprefix("answers-")) for file in files]

    def write(
        self,
        index: int,
        answers: Sequence[Answer],
        seconds: float,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        """Keep a batch that took ``seconds`` to answer."""
        import datasets  # type: ignore[import-untyped]  # it ships no type information
        import pyarrow  # type: ignore[import-untyped]  # likewise

        rows, features = [_row(answer) for answer in answers], _features()
        columns = {name: [row[name] for row in rows] for name in features}
        table = datasets.Dataset.from_dict(columns, features=features).data.table
        facts = json.dumps({"seconds": seconds, "skipped": skipped})
        table = table.replace_schema_metadata({**table.schema.metadata, _META: facts.encode()})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            replacing(self.path(index)) as unfinished,
            pyarrow.OSFile(str(unfinished), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)
        self._tables.pop(index, None)

    def facts(self, index: int) -> Facts:
        """What is known of a shard."""
        import pyarrow

        with pyarrow.memory_map(
            str(self.path(index))
        ) as file:  # datasets drops what is not its own
            meta = json.loads(pyarrow.ipc.open_stream(file).schema.metadata[_META])
        skipped = [Skipped(*each) for each in meta["skipped"]]
        return Facts(list(self._table(index)["key"]), meta["seconds"], skipped)

    @property
    def seconds(self) -> float:
        """The seconds that all answers took."""
        return sum(self.facts(index).seconds for index in self.indices)

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out of all shards, each once."""
        found = [each for index in self.indices for each in self.facts(index).skipped]
        return list(dict.fromkeys(found))

    def __len__(self) -> int:
        """How many answers there are, in all shards."""
        self._known = self.indices
        self._ends = list(accumulate(len(self._table(index)) for index in self._known))
        return self._ends[-1] if self._ends else 0

    def place(self, number: int) -> tuple[int, int]:
        """The shard of an answer, and its row there.

        Raises:
            IndexError: there is no such answer.
        """
        if not 0 <= number < (self._ends[-1] if self._ends else len(self)):
            raise IndexError(f"answer {number} of {len(self)}")
        start = 0
        for index, end in zip(self._known, self._ends, strict=True):
            if number < end:
                return index, number - start
            start = end
        raise AssertionError("the last end is the number of answers")

    def numbers(self, index: int, row: int) -> Numbers:
        """An answer without its images."""
        found = self._table(index).select_columns(list(_NUMBERS)).with_format("numpy")[row]
        tokens = torch.from_numpy(found["tokens"]).long()
        prompt = int(found["prompt_length"])
        shape = (len(tokens) - prompt, -1)
        return Numbers(
            tokens,
            prompt,
            torch.from_numpy(found["top_ids"]).long().view(shape),
            torch.from_numpy(found["top_p"]).float().view(shape),
            str(found["task"]),
            float(found["temperature"]),
        )

    def answer(self, index: int, row: int) -> Answer:
        """An answer with its images.

        Raises:
            ValueError: an image is not what it was when it was asked about.
        """
        table = self._table(index).select_columns(["key", "messages", "images"])
        [found] = table.with_format("arrow")[row].to_pylist()  # which decodes no images
        numbers = self.numbers(index, row)
        sources = [image["bytes"] or image["path"] for image in found["images"]]
        images = [open_image(source) for source in sources]
        asked = Asked(json.loads(found["messages"]), images, numbers.task, sources)
        if answer_key(asked, numbers.temperature) != found["key"]:
            names = ", ".join(str(image["path"]) for image in found["images"])
            raise ValueError(
                f"{self.path(index).name} row {row}: an image of {names} is not the one that was "
                "asked about; put it back, or answer again in another folder"
            )
        return Answer(found["key"], asked, numbers.temperature, *numbers[:4])

    def _table(self, index: int) -> Any:  # a datasets.Dataset
        import datasets

        if index not in self._tables:
            self._tables[index] = datasets.Dataset.from_file(str(self.path(index)))
        return self._tables[index]


def _features() -> Any:  # datasets.Features
    import datasets

    value = datasets.Value
    return datasets.Features(
        {
            "key": value("string"),
            "messages": value("string"),
            "images": datasets.List(datasets.Image()),
            "task": value("string"),
            "temperature": value("float64"),
            "tokens": datasets.List(value("int32")),
            "prompt_length": value("int32"),
            "top_ids": datasets.List(value("int32")),
            "top_p": datasets.List(value("float32")),
        }
    )


def _row(answer: Answer) -> Mapping[str, Any]:
    asked = answer.asked
    sources = asked.sources or [_png(image) for image in asked.images]
    return {
        "key": answer.key,
        "messages": json.dumps(asked.messages),
        "images": [
            {"bytes": None, "path": source}
            if isinstance(source, str)
            else {"bytes": source, "path": None}
            for source in sources
        ],
        "task": asked.task,
        "temperature": answer.temperature,
        "tokens": answer.tokens.tolist(),
        "prompt_length": answer.prompt_length,
        "top_ids": answer.top_ids.flatten().tolist(),
        "top_p": answer.top_p.flatten().tolist(),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
