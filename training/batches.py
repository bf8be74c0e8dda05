"""Batches of answers for drafters that learn: a dict of tensors each, by kind of drafter.

Besides what the drafter's ``forward`` takes, a batch holds ``total``, the sum of its weights (fp64,
a scalar), by which a loss summed over a batch becomes a mean, and ``tokens``, how many answer
tokens it has. A mean over several batches, on one machine or many, divides their summed losses by
their summed totals. Knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.drafters.eagle_head import EagleConfig
from specdec.training.examples import Example, without_visual
from specdec.training.features import Features
from specdec.training.layout import Slots, slots

Batch = dict[str, Tensor]
# Weights of an answer's tokens, (A,).
Weigh = Callable[[Example], Tensor]
# What a processor makes of an answer's prompt and its images, a batch of one row.
Inputs = Callable[[Example], Mapping[str, Tensor]]

TOKENWISE = ("mm_token_type_ids", "token_type_ids")


def equally(example: Example) -> Tensor:
    """The same weight for every token of the answer."""
    return torch.ones(len(example.top_ids))


@dataclass(frozen=True)
class TextCollator:
    """Answers without their visual tokens.

    ``ids``: int64 ``(B, L)``, padded on the right. ``places``: int64 ``(N,)``, where in the
    flattened ids each of the N answer tokens is predicted: at the token before it. ``top_ids``,
    ``top_p``: ``(N, K)``. ``weights``: ``(N,)``.
    """

    weigh: Weigh = equally

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return _answers([without_visual(each) for each in examples], self.weigh)


@dataclass(frozen=True)
class VisionCollator:
    """Answers with their images: as :class:`TextCollator`, and what the processor makes of the
    images, one behind the other.

    Attributes:
        inputs: of an answer's prompt.
    """

    inputs: Inputs
    weigh: Weigh = equally

    def __call__(self, examples: Sequence[Example]) -> Batch:
        batch = _answers(examples, self.weigh)
        longest = batch["ids"].shape[1]
        found: dict[str, list[Tensor]] = {}
        for example in examples:
            for name, value in self.inputs(example).items():
                if name in TOKENWISE:
                    value = F.pad(value, (0, longest - value.shape[1]))
                if name not in ("input_ids", "attention_mask"):
                    found.setdefault(name, []).append(value)
        return batch | {name: torch.cat(parts) for name, parts in found.items()}


@dataclass(frozen=True)
class EagleCollator:
    """Answers as slots of an EAGLE head: S slots an answer, padded on the left, of which the last
    R are rows that predict; k steps of which each goes on from the last one's output.

    The row with token r predicts at step s what follows token r + s. Of that, for N answer places:

    - ``ids``, ``starts``: int64 ``(B, S)`` tokens of the slots, ``(B,)`` where they start;
    - ``taps`` ``(B, S, layers * H)``; ``positions`` int64 ``(P, B, S)``;
    - ``later_ids`` int64 ``(k - 1, B, R)``, ``later_positions`` ``(k - 1, P, B, R)``;
    - ``last`` ``(N, H)``: the verifier's states at the places; ``rows`` int64 ``(N, k)``: which of
      the flattened rows predicts each at each step; ``weights`` ``(N, k)``, 0 where none does;
    - shared: ``visual_keys``, ``visual_values`` ``(B, Hkv, Tv, D)``, ``visual_counts`` ``(B,)``;
    - compressed: ``image_taps`` ``(M, layers * H)`` of all images, ``image_sizes`` int64 ``(I,)``,
      ``query_slots`` int64 ``(I * queries,)``, which of the flattened slots are theirs, and
      ``seen`` int64 ``(B, S)``: 1 + number of the image last seen, 0 if none.

    Attributes:
        config: of the head.
        steps: k.
        decay: weight of each step, as a share of the one before.
    """

    config: EagleConfig
    steps: int = 1
    decay: float = 0.8
    weigh: Weigh = equally

    def __call__(self, examples: Sequence[Example]) -> Batch:
        texts = [self._text(example) for example in examples]
        longest = max(len(text.ids) for text in texts)
        rows = max(text.rows for text in texts)
        batch: Batch = {
            "ids": torch.stack([_left(text.ids, longest) for text in texts]),
            "starts": torch.tensor([longest - len(text.ids) for text in texts]),
            "taps": torch.stack([_left(text.taps.T, longest).T for text in texts]),
            "positions": torch.stack([_left(text.positions, longest) for text in texts], 1),
            "last": torch.cat([text.last for text in texts]),
            "weights": torch.cat([text.weights for text in texts]),
            "later_ids": torch.stack([_left(text.later_ids, rows) for text in texts], 1),
            "later_positions": torch.stack(
                [_left(text.later_positions, rows) for text in texts], 2
            ),
            "rows": torch.cat(
                [
                    (text.slot_of - len(text.ids) + rows).clamp_min(0) + number * rows
                    for number, text in enumerate(texts)
                ]
            ),
        }
        if self.config.vision == "shared":
            batch |= _visual([text.features for text in texts], self.config)
        if self.config.vision == "compressed":
            batch |= _images(texts, longest)
        used = batch["weights"] > 0
        return batch | {
            "total": batch["weights"].double().sum(),
            "tokens": used.any(1).sum(),
        }

    def _text(self, example: Example) -> _Text:
        features = example.features
        if features is None:
            raise ValueError(
                "an EAGLE head learns from the verifier's states, but this answer has none; "
                "collect answers with features"
            )
        layout = slots(example.visual, self.config.vision, self.config.queries)
        total = len(example.tokens)
        slot = torch.full((total,), -1)  # by place, of tokens that have one
        held = (~layout.query).nonzero()[:, 0]
        slot[layout.before[held] + 1] = held
        # Place t is predicted at step s by the row of token t - s, all between being text.
        places = torch.arange(example.prompt_length - 1, total - 1)
        steps = torch.arange(self.steps)
        roots = places[:, None] - steps  # (A, k)
        hidden = F.pad(example.visual.long().cumsum(0), (1, 0))
        between = hidden[places[:, None] + 1] - hidden[(roots + 1).clamp_min(0)]
        slot_of = slot[roots.clamp_min(0)]
        valid = (roots > 0) & (between == 0) & (slot_of >= 0)
        slot_of = torch.where(valid, slot_of, len(layout.before) - 1)
        weights = self.weigh(example)[:, None] * self.decay**steps * valid
        rows = len(layout.before) - int(slot_of.min())
        # Steps beyond the end of the text have no weight; any token will do.
        later = layout.before[-rows:] + torch.arange(1, self.steps)[:, None]
        later_before = later.clamp_max(total - 1)
        return _Text(
            layout,
            features,
            torch.where(layout.query, 0, example.tokens[(layout.before + 1).clamp_max(total - 1)]),
            features.taps[layout.before],
            features.positions[:, layout.before],
            features.last[places],
            slot_of,
            weights,
            rows,
            example.tokens[(later + 1).clamp_max(total - 1)],
            features.positions[:, later_before].transpose(0, 1),
        )


class _Text(NamedTuple):
    """One answer's share of a batch of :class:`EagleCollator`."""

    layout: Slots
    features: Features
    ids: Tensor
    taps: Tensor
    positions: Tensor
    last: Tensor
    slot_of: Tensor
    weights: Tensor
    rows: int
    later_ids: Tensor
    later_positions: Tensor


def _answers(examples: Sequence[Example], weigh: Weigh) -> Batch:
    longest = max(len(each.tokens) for each in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    places = []
    for row, example in enumerate(examples):
        ids[row, : len(example.tokens)] = example.tokens
        first = row * longest + example.prompt_length - 1
        places.append(torch.arange(first, first + len(example.top_ids)))
    weights = torch.cat([weigh(each) for each in examples])
    return {
        "ids": ids,
        "places": torch.cat(places),
        "top_ids": torch.cat([each.top_ids for each in examples]),
        "top_p": torch.cat([each.top_p for each in examples]),
        "weights": weights,
        "total": weights.double().sum(),
        "tokens": torch.tensor(len(weights)),
    }


def _left(x: Tensor, length: int) -> Tensor:
    """Padded on the left of its last dimension."""
    return F.pad(x, (length - x.shape[-1], 0))


def _visual(features: Sequence[Features], config: EagleConfig) -> Batch:
    counts = [len(each.read) for each in features]
    sides = []
    for name in ("visual_keys", "visual_values"):
        rows = []
        for each, count in zip(features, counts, strict=True):
            given = getattr(each, name)
            if given is None and count:
                raise ValueError(
                    "this EAGLE head reads the verifier's keys of an image, but an answer has "
                    "none; collect answers with a layer to share"
                )
            if given is None:  # an answer without an image
                given = each.taps.new_zeros(0, config.num_key_value_heads, config.head_dim)
            rows.append(F.pad(given, (0, 0, 0, 0, 0, max(counts) - count)))
        sides.append(torch.stack(rows).transpose(1, 2))
    return {
        "visual_keys": sides[0],
        "visual_values": sides[1],
        "visual_counts": torch.tensor(counts),
    }


def _images(texts: Sequence[_Text], longest: int) -> Batch:
    taps, sizes, query_slots, seen, before = [], [], [], [], 0
    for number, text in enumerate(texts):
        layout = text.layout
        first = number * longest + longest - len(text.ids)
        query_slots.append(layout.query.nonzero()[:, 0] + first)
        seen.append(_left(torch.where(layout.seen > 0, layout.seen + before, 0), longest))
        before += len(layout.images)
        for start, stop in layout.images.tolist():
            taps.append(text.features.taps[start:stop])
            sizes.append(stop - start)
    width = texts[0].taps.shape[-1]
    return {
        "image_taps": torch.cat(taps) if taps else texts[0].taps.new_zeros(0, width),
        "image_sizes": torch.tensor(sizes, dtype=torch.long),
        "query_slots": torch.cat(query_slots),
        "seen": torch.stack(seen),
    }
