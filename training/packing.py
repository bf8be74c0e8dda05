"""Training batches for the decoder: many conversations about one image behind one shared visual
prefix.

A row is `[prefix) [branch 1) [branch 2) ... [padding)`. Every branch continues the prefix: its
positions start at the prefix's length and it sees the prefix and itself only, so the decoder
computes exactly what it computes when it is asked that question alone, and the visual tokens are
paid for once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from specdec.training import curriculum, dialogues, grading, lvlm, render, scenes
from specdec.training.wording import Turn

FACT_WEIGHT = 3.0
BLIND_SHARE = 0.05  # packs shown a wrong or blank image: only the wording counts there


class Batch(NamedTuple):
    """Tensors of one step; L is the longest row, N the number of images of the batch."""

    ids: torch.Tensor  # (B, L) int64
    positions: torch.Tensor  # (B, L) int64
    segments: torch.Tensor  # (B, L) int64: 0 prefix, 1.. branches, -1 padding
    weights: torch.Tensor  # (B, L) fp32: loss weight of predicting this token
    images: torch.Tensor  # (N, 192, 192, 3) uint8
    labels: torch.Tensor  # (N, heads, 144) int64: what each patch shows, -100 for nothing to learn


class Mix(NamedTuple):
    """What a stage trains on."""

    rows: int  # packs per batch; even if they are twins
    brief: int  # terse turns per pack, at most; at least one
    full: int  # full conversations per pack
    twins: bool = False  # of every two packs half a batch apart both show images of one kind


class Encoder:
    """Turns to token ids and loss weights."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.newline: list[int] = tokenizer.encode("\n", add_special_tokens=False)

    def prefix(self, images: int) -> list[int]:
        """Ids of everything before the first question."""
        return [lvlm.BOS, lvlm.USER] + ([lvlm.IMAGE] * lvlm.VISUAL_TOKENS + self.newline) * images

    def branch(self, turns: tuple[Turn, ...], facts: float) -> tuple[list[int], list[float]]:
        """Ids and loss weights of a conversation after the prefix; a fact word weighs `facts`."""
        ids: list[int] = []
        weights: list[float] = []
        for i, turn in enumerate(turns):
            asked = self.tokenizer.encode(turn.question, add_special_tokens=False)
            asked = ([lvlm.USER] if i else []) + asked + [lvlm.EOS, lvlm.ASSISTANT]
            told = self.tokenizer(
                turn.answer, add_special_tokens=False, return_offsets_mapping=True
            )
            marks = np.zeros(len(turn.answer) + 1, bool)
            for start, end in grading.spans(turn.answer):
                marks[start:end] = True
            heavy = [
                facts if marks[start:end].any() else 1.0 for start, end in told["offset_mapping"]
            ]
            ids += [*asked, *told["input_ids"], lvlm.EOS]
            weights += [0.0] * len(asked) + [*heavy, 1.0]
        return ids, weights


class Packs(IterableDataset[Batch]):
    """An endless stream of batches from a first seed on; the same seeds give the same batches."""

    def __init__(
        self, encoder: Encoder, first: int, mix: Mix, tasks: tuple[str, ...] = dialogues.TASK_NAMES
    ):
        self.encoder, self.first, self.mix, self.tasks = encoder, first, mix, tasks

    def __iter__(self) -> Iterator[Batch]:
        seed = self.first
        while True:
            yield self.batch(seed)
            seed += self.mix.rows

    def batch(self, seed: int) -> Batch:
        """The batch whose first pack has this seed."""
        apart = self.mix.rows // 2 if self.mix.twins else self.mix.rows
        packs = [self._pack(seed + i, seed + i % apart) for i in range(self.mix.rows)]
        longest = max(len(row) for row, _, _, _, _ in packs)

        def padded(column: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
            rows = [list(p[column]) + [fill] * (longest - len(p[column])) for p in packs]
            return torch.tensor(rows, dtype=dtype)

        return Batch(
            padded(0, lvlm.PAD, torch.long),
            padded(1, 0, torch.long),
            padded(2, -1, torch.long),
            padded(3, 0.0, torch.float32),
            torch.from_numpy(np.stack([image for p in packs for image, _ in p[4]])),
            torch.from_numpy(np.stack([label for p in packs for _, label in p[4]])),
        )

    def _pack(
        self, seed: int, topic: int
    ) -> tuple[
        list[int], list[int], list[int], list[float], list[tuple[render.Pixels, render.Labels]]
    ]:
        rng, chance = random.Random(f"pack-{seed}"), random.Random(f"topic-{topic}")
        kinds = [k for k in scenes.KINDS for t in dialogues.TASKS[k] if t in self.tasks]
        paired = self.mix.full > 0 and "pair_first" in self.tasks and chance.random() < 0.06
        kind = "shapes" if paired else chance.choice(kinds)
        shown = [scenes.make_scene(seed, "train", kind)]
        branches: list[tuple[Turn, ...]] = []
        if paired:
            shown.append(scenes.make_scene(seed + (1 << 40), "train", kind))
            branches = [dialogues.about_pair(shown[0], shown[1], seed + i).turns for i in range(3)]
        else:
            turns = curriculum.brief(shown[0], rng)
            branches = [
                (turn,)
                for turn in turns[:1]
                + rng.sample(turns[1:], min(len(turns) - 1, self.mix.brief - 1))
            ]
            own = [t for t in dialogues.TASKS[kind] if t in self.tasks]
            for i in range(self.mix.full):
                task = own[(seed + i) % len(own)]
                follow = task in dialogues.FOLLOW_UPS and rng.random() < 0.15
                branches.append(dialogues.about(shown[0], task, seed + i, follow).turns)
        images = [(render.render(scene), render.dense_labels(scene)) for scene in shown]
        blind = self.mix.full > 0 and rng.random() < BLIND_SHARE
        if blind:
            other = scenes.make_scene(seed + (1 << 41), "train")
            wrong = render.render(other), render.dense_labels(other)
            if rng.random() < 0.5:
                wrong = np.full_like(wrong[0], 255), np.full_like(wrong[1], -100)
            images = [wrong] * len(images)
        ids = self.encoder.prefix(len(images))
        start = len(ids)
        positions, segments, weights = list(range(start)), [0] * start, [0.0] * start
        for i, turns_ in enumerate(branches):
            more, heavy = self.encoder.branch(turns_, 0.0 if blind else FACT_WEIGHT)
            ids += more
            weights += heavy
            positions += range(start, start + len(more))
            segments += [i + 1] * len(more)
        return ids, positions, segments, weights, images


def block_mask(segments: torch.Tensor) -> torch.Tensor:
    """Which key each query may see, bool (B, 1, L, L): earlier tokens of the prefix and of its own
    branch.

    Padding sees itself, so that no row of a softmax is empty.
    """
    length = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return (causal & ((key == 0) | (key == query)))[:, None]
