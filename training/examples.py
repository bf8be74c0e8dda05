"""What a drafter learns from, one answer after another: tokens, and what the verifier saw there.

Knows nothing of drafters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from specdec.training.feature_shards import FeatureShards
from specdec.training.features import FeatureReader, Features
from specdec.training.shards import AnswerShards
from specdec.verifiers.spec import read_spec


class Example(NamedTuple):
    """An answer: T tokens, the last A of them behind the prompt.

    Attributes:
        tokens: int64 ``(T,)``, visual placeholders included.
        prompt_length: T - A.
        visual: bool ``(T,)``: the visual placeholders.
        top_ids: int64 ``(A, K)``: the verifier's K most probable tokens at each place of the
            answer, most probable first, at temperature 1.
        top_p: fp32 ``(A, K)``: their probabilities.
        temperature: that the answer was drawn at; 0 is greedy.
        task: what kind of question it was, if that is known.
        place: its shard, and its row there.
        features: ``None`` for drafters that see text only.
    """

    tokens: Tensor
    prompt_length: int
    visual: Tensor
    top_ids: Tensor
    top_p: Tensor
    temperature: float
    task: str
    place: tuple[int, int]
    features: Features | None = None


def without_visual(example: Example) -> Example:
    """The same as a drafter has it that sees text only: visual tokens dropped, and all features."""
    kept = ~example.visual
    prompt = int(kept[: example.prompt_length].sum())
    tokens = example.tokens[kept]
    return example._replace(
        tokens=tokens,
        prompt_length=prompt,
        visual=torch.zeros(len(tokens), dtype=torch.bool),
        features=None,
    )


class _Listed(Dataset[Example], ABC):
    """Answers by their numbers; several at once by ``__getitems__``, which a DataLoader uses."""

    def __init__(self, answers: AnswerShards, visual_ids: Collection[int]) -> None:
        self.answers = answers
        self._count = len(answers)
        self._visual = torch.tensor(sorted(visual_ids), dtype=torch.long)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Example:
        return self.__getitems__([number])[0]

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))

    def __getitems__(self, numbers: Sequence[int]) -> list[Example]:
        places = [self.answers.place(number) for number in numbers]
        features = self._features(places)
        return [self._example(place, seen) for place, seen in zip(places, features, strict=True)]

    @abstractmethod
    def _features(self, places: Sequence[tuple[int, int]]) -> Sequence[Features | None]:
        """Those of the answers in these rows of shards."""

    def _example(self, place: tuple[int, int], features: Features | None) -> Example:
        numbers = self.answers.numbers(*place)
        visual = torch.isin(numbers.tokens, self._visual)
        return Example(
            numbers.tokens,
            numbers.prompt_length,
            visual,
            numbers.top_ids,
            numbers.top_p,
            numbers.temperature,
            numbers.task,
            place,
            features,
        )


class Examples(_Listed):
    """Answers with the features that are kept of them, read as they are asked for.

    Args:
        answers: the answers; those that are there now.
        visual_ids: ids of the verifier's visual placeholders.
        features: ``None`` for drafters that see text only.
    """

    def __init__(
        self,
        answers: AnswerShards,
        visual_ids: Collection[int],
        features: FeatureShards | None = None,
    ) -> None:
        super().__init__(answers, visual_ids)
        self._kept = features

    def _features(self, places: Sequence[tuple[int, int]]) -> Sequence[Features | None]:
        if self._kept is None:
            return [None] * len(places)
        rows = defaultdict[int, list[int]](list)
        for index, row in places:
            rows[index].append(row)
        found = {
            (index, row): features
            for index, those in rows.items()
            for row, features in zip(those, self._kept.read(index, those), strict=True)
        }
        return [found[place] for place in places]


class OnlineExamples(_Listed):
    """Answers with their features, for which the verifier runs whenever they are asked for.

    Args:
        answers: the answers; those that are there now.
        reader: of the features.
    """

    def __init__(self, answers: AnswerShards, reader: FeatureReader) -> None:
        super().__init__(answers, read_spec(reader.model).visual_token_ids)
        self._reader = reader

    def _features(self, places: Sequence[tuple[int, int]]) -> Sequence[Features | None]:
        return self._reader.read([self.answers.answer(*place) for place in places])
