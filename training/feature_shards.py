"""Features on disk: `features-00000.safetensors` beside `answers-00000.arrow`, of the same answers.

A shard appears under its name only when it is complete. Of a batch only its own rows are read.
Knows nothing of drafters.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import accumulate
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from specdec.cache.layout import visual_places
from specdec.files import replacing
from specdec.training.features import FeatureReader, Features, Reading
from specdec.training.shards import AnswerShards
from specdec.verifiers.spec import read_spec

# By token, or by key that was read; lengths say how many there are of an answer.
_BY_TOKEN = ("positions", "taps", "last")
_BY_KEY = ("visual_keys", "visual_values", "read")


class FeatureShards:
    """The features of answers.

    Args:
        answers: their shards.
        reading: what is read of each; a shard of another reading, or of other answers, is refused.
        dtype: that states and keys are kept in.
        folder: default: that of the answers.
    """

    def __init__(
        self,
        answers: AnswerShards,
        reading: Reading,
        *,
        dtype: torch.dtype = torch.bfloat16,
        folder: Path | None = None,
    ) -> None:
        self.answers = answers
        self.reading = reading
        self.dtype = dtype
        self.folder = answers.folder if folder is None else folder
        self._facts: dict[int, dict[str, str]] = {}

    def path(self, index: int) -> Path:
        """The file of the shard of this number."""
        return self.folder / f"features-{index:05d}.safetensors"

    @property
    def missing(self) -> list[int]:
        """The numbers of the shards that are still to be written.

        Raises:
            ValueError: one that is there is of another reading, or of other answers.
        """
        missing = []
        for index in self.answers.indices:
            if not self.path(index).exists():
                missing.append(index)
                continue
            with safe_open(self.path(index), "pt") as file:
                self._check(index, file.metadata())
        return missing

    def write(self, index: int, features: Sequence[Features]) -> None:
        """Keep the features of all answers of a shard."""
        tensors = {
            "lengths": torch.tensor([len(each.last) for each in features], dtype=torch.long),
            "reads": torch.tensor([len(each.read) for each in features], dtype=torch.long),
        }
        for name in (*_BY_TOKEN, *_BY_KEY):
            parts = [self._stored(name, getattr(each, name)) for each in features]
            if parts and parts[0] is not None:
                tensors[name] = torch.cat([part for part in parts if part is not None])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path(index)) as unfinished:
            save_file(tensors, unfinished, self._about(index))

    def read(self, index: int, rows: Sequence[int]) -> list[Features]:
        """The features of these answers of a shard, on the CPU; nothing else is read of it.

        Raises:
            ValueError: the shard is of another reading, or of other answers.
        """
        with safe_open(self.path(index), "pt") as file:
            self._check(index, file.metadata())
            there = set(file.keys())
            tokens, keys = (
                [0, *accumulate(file.get_tensor(name).tolist())] for name in ("lengths", "reads")
            )
            found = []
            for row in rows:
                parts: dict[str, Tensor | None] = {}
                for names, ends in ((_BY_TOKEN, tokens), (_BY_KEY, keys)):
                    for name in names:
                        part = None
                        if name in there:
                            part = file.get_slice(name)[ends[row] : ends[row + 1]]
                        parts[name] = part
                found.append(_features(parts))
        return found

    def _stored(self, name: str, tensor: Tensor | None) -> Tensor | None:
        """As it is kept: what belongs to a token or key is a row."""
        if tensor is None:
            return None
        tensor = tensor.cpu()
        if name == "positions":
            return tensor.T.int().contiguous()
        return tensor.int() if name == "read" else tensor.to(self.dtype).contiguous()

    def _about(self, index: int) -> dict[str, str]:
        """What the shard's metadata have to say."""
        if index not in self._facts:
            keys = " ".join(self.answers.facts(index).keys)
            self._facts[index] = {
                "reading": json.dumps(asdict(self.reading)),
                "dtype": str(self.dtype).removeprefix("torch."),
                "answers": hashlib.sha256(keys.encode()).hexdigest(),
            }
        return self._facts[index]

    def _check(self, index: int, there: dict[str, str]) -> None:
        for name, wanted in self._about(index).items():
            if there.get(name) != wanted:
                raise ValueError(
                    f"{self.path(index)} was written with {name}={there.get(name)}, now it is "
                    f"{wanted}; remove it, or give the same options"
                )


def _features(parts: dict[str, Tensor | None]) -> Features:
    positions, taps, last, read = (parts[name] for name in ("positions", "taps", "last", "read"))
    assert positions is not None
    assert taps is not None
    assert last is not None
    assert read is not None
    keys, values = parts["visual_keys"], parts["visual_values"]
    return Features(positions.T.long(), taps, last, keys, values, read.long())


def estimate(reader: FeatureReader, shards: FeatureShards) -> int:
    """Bytes that the missing shards will take: what a token and a key take in the first answer,
    which is read for it, by how many there are of them.
    """
    visual, places = read_spec(reader.model).visual_token_ids, [0, 0]
    first = None
    for index in shards.missing:
        for row in range(len(shards.answers.facts(index).keys)):
            first = first or (index, row)
            numbers = shards.answers.numbers(index, row)
            prompt = numbers.tokens[: numbers.prompt_length].tolist()
            places[0] += len(numbers.tokens)
            places[1] += len(visual_places(prompt, visual, reader.reading.page_size))
    if first is None:
        return 0
    [features] = reader.read([shards.answers.answer(*first)])
    total = 0
    for names, count in ((_BY_TOKEN, places[0]), (_BY_KEY, places[1])):
        for name in names:
            stored = shards._stored(name, getattr(features, name))
            if stored is not None:
                total += stored.element_size() * prod(stored.shape[1:]) * count
    return total


def check_room(folder: Path, wanted: int) -> None:
    """Raise ``ValueError``, naming both figures, if the disk has less than ``wanted`` bytes free.

    Args:
        folder: where the features will be; it, or a folder above it, exists.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ValueError(
            f"the features take {wanted / 2**30:.1f} GiB, and {folder} has {free / 2**30:.1f} GiB "
            "free; ask for fewer or shorter answers, tap fewer layers, or read features online"
        )


def collect(reader: FeatureReader, shards: FeatureShards) -> Iterator[tuple[int, int]]:
    """Read the features of all answers that have none yet.

    Yields:
        after every shard the number of those that are there, and of all.

    Raises:
        ValueError: see :attr:`FeatureShards.missing` and :meth:`FeatureReader.read`.
    """
    missing = shards.missing
    total = len(shards.answers.indices)
    for done, index in enumerate(missing, start=total - len(missing) + 1):
        rows = range(len(shards.answers.facts(index).keys))
        shards.write(index, reader.read([shards.answers.answer(index, row) for row in rows]))
        yield done, total
