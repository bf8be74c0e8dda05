"""Judged answers as one table of tokens, and as shards on disk.

A shard is one batch of prompts, answered at one temperature. It appears under its name only when it
is complete, so a run that was cut off goes on with the first shard that is missing. Knows nothing
of estimators.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from specdec.files import replacing
from specdec.reliance import Evidence
from specdec.training.counterfactual import Judged, answer, comparable, judge
from specdec.training.prompts import Asked, Asking
from specdec.verifiers import TransformersVerifier


class Tokens(NamedTuple):
    """T answer tokens that follow from a node of a tree: all but the first of each answer.

    Attributes:
        hidden: ``(T, H)``: the verifier's last hidden state behind the node.
        visual_mass: float32 ``(T, heads)``; no columns if the verifier gives none.
        divergence: float32 ``(T,)``.
        dependent: bool ``(T,)``: the label.
        mismatched: bool ``(T,)``: the drafter's argmax is another than the verifier's.
        images: int64 ``(T,)``: a checksum of the images that were asked about.
    """

    hidden: Tensor
    visual_mass: Tensor
    divergence: Tensor
    dependent: Tensor
    mismatched: Tensor
    images: Tensor

    @property
    def evidence(self) -> Evidence:
        """As an estimator takes it."""
        masses = [self.visual_mass] if self.visual_mass.shape[1] else []
        return Evidence(self.hidden, masses, self.divergence)

    def where(self, chosen: Tensor) -> Tokens:
        """Those for which ``chosen``, bool ``(T,)``, is true."""
        return Tokens(*(tensor[chosen] for tensor in self))


def join(parts: Sequence[Tokens]) -> Tokens:
    """All of them."""
    return Tokens(*map(torch.cat, zip(*parts, strict=True)))


def tokens(questions: Sequence[Asked], judged: Sequence[Judged]) -> Tokens:
    """The table of judged answers.

    Raises:
        ValueError: no answer has a second token.
    """
    rows = []
    for question, each in zip(questions, judged, strict=True):
        if each.hidden is None:
            continue
        count = len(each.hidden)
        mass = each.visual_mass
        rows.append(
            Tokens(
                each.hidden,
                torch.zeros(count, 0) if mass is None else mass,
                each.divergence[1:],
                each.dependent[1:],
                each.mismatched[1:],
                torch.full((count,), _checksum(question)),
            )
        )
    if not rows:
        raise ValueError("no answer has more than one token, so there is nothing to learn from")
    return join(rows)


@dataclass(frozen=True)
class Reader:
    """Asks, and judges what is answered.

    Attributes:
        verifier: one that gives hidden states, and visual mass if that is wanted.
        processor: the model's.
        drafter: a text-only drafter's model.
        max_new_tokens: longest answer.
        batch: answers that are read together.
    """

    verifier: TransformersVerifier
    processor: Any  # a transformers processor; their classes share no useful base
    drafter: PreTrainedModel
    max_new_tokens: int
    batch: int

    def read(self, asking: Asking, seed: int) -> Tokens | None:
        """Answer and judge; ``None`` if the prompts have no images to swap. ``seed`` settles what
        is sampled.
        """
        asked = comparable(asking.asked)
        if not asked:
            return None
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            answered = answer(
                self.verifier.model,
                self.processor,
                asked,
                max_new_tokens=self.max_new_tokens,
                batch=self.batch,
                temperature=asking.temperature,
            )
        found = judge(self.verifier, self.processor, self.drafter, answered, batch=self.batch)
        return tokens(asked, found)


def collect(
    reader: Reader, batches: Iterator[Asking], folder: Path, *, minutes: float, seed: int
) -> Iterator[Tokens]:
    """Read batch after batch, or what is left of them from an earlier run, until ``minutes`` are
    spent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for index, asking in enumerate(batches):
        file = folder / f"{index:05d}.safetensors"
        if not file.exists():
            if time.monotonic() - began > 60 * minutes:
                return
            found = reader.read(asking, seed + index)
            if found is None:
                continue
            tensors = {name: t.contiguous() for name, t in found._asdict().items()}
            with replacing(file) as unfinished:
                save_file(tensors, unfinished)
        yield Tokens(**load_file(file))


def _checksum(question: Asked) -> int:
    return zlib.crc32(b"".join(image.tobytes() for image in question.images))
