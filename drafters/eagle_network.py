"""An EAGLE head over pages: its own, and the verifier's where it reads those.

Knows requests by what is kept of them; what their texts say is for others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from specdec.cache import PagedKV, PageView, SequenceKV
from specdec.drafters.eagle_head import EagleHead
from specdec.drafters.growth import Wave
from specdec.interfaces import DraftRequest
from specdec.kernels import Beside, TreeBatch, TreeRequest, backend
from specdec.runtime import Source

PIECE = 256  # tokens of a text that are run at once


class Rows(NamedTuple):
    """What is new in a request's text, as the head takes it in: ``embeds`` and ``features``
    ``(n, H)``, ``positions`` int64 ``(R, n)``.
    """

    embeds: Tensor
    features: Tensor
    positions: Tensor


@dataclass(slots=True, eq=False)
class State:
    """What is kept of one request between two proposals.

    ``view`` is what it reads of the verifier's pages. ``glance`` is the global vector of the last
    image. ``last`` is the position of the token before the root, int64 ``(R,)``.
    """

    sequence: SequenceKV
    view: PageView | None = None
    source: Source | None = None
    glance: Tensor | None = None
    last: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))


class EagleNetwork:
    """The head over the trees of one proposal.

    Args:
        head: the head.
        embeddings: what it reads tokens with.
        kv: its own pages.
        never: int64: columns of its logits that must not be drafted.
        vocabulary: the token of each column; ``None``: itself.
        states: of the requests.
        rows: what is new in the text of each.
    """

    def __init__(
        self,
        head: EagleHead,
        embeddings: nn.Module,
        kv: PagedKV,
        never: Tensor,
        vocabulary: Tensor | None,
        states: Sequence[State],
        rows: Sequence[Rows],
    ) -> None:
        self.vocabulary = vocabulary
        self.seconds = 0.0  # spent inside the head
        self._head = head
        self._embeddings = embeddings
        self._kv = kv
        self._never = never
        self._states = states
        self._rows = rows
        self._hidden = torch.empty(0)  # of the last wave

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Run and commit what is new; long texts piece by piece."""
        last: dict[int, Tensor] = {}
        for start in range(0, max(len(rows.embeds) for rows in self._rows), PIECE):
            members = [i for i, rows in enumerate(self._rows) if len(rows.embeds) > start]
            parts = [
                Rows(
                    self._rows[i].embeds[start : start + PIECE],
                    self._rows[i].features[start : start + PIECE],
                    self._rows[i].positions[:, start : start + PIECE],
                )
                for i in members
            ]
            counts = [len(part.embeds) for part in parts]
            for i, count in zip(members, counts, strict=True):
                self._kv.extend(self._states[i].sequence, range(count))
            hidden = self._forward(
                members,
                counts,
                [None] * len(members),
                Rows(
                    torch.cat([part.embeds for part in parts]),
                    torch.cat([part.features for part in parts]),
                    torch.cat([part.positions for part in parts], 1),
                ),
            )
            for i, count, end in zip(members, counts, accumulate(counts), strict=True):
                self._kv.commit(self._states[i].sequence, range(count))
                last[i] = hidden[end - 1]
        self._hidden = torch.stack([last[i] for i in range(len(self._rows))])
        return self._logits()

    def run(self, wave: Wave) -> Tensor:
        """Run the nodes behind the states that the head guessed for their parents."""
        device = self._hidden.device
        features = self._hidden[wave.parents.to(device)]
        if self._head.compress is not None:
            glances = [self._states[member].glance for member in wave.members]
            counts = torch.tensor(wave.counts, device=device)
            zero = torch.zeros_like(features[0])
            each = torch.stack([zero if glance is None else glance for glance in glances])
            features = features + each.repeat_interleave(counts, 0)
        for member, count in zip(wave.members, wave.counts, strict=True):
            self._kv.extend(self._states[member].sequence, [wave.depth - 1] * count)
        positions = torch.cat(
            [
                (self._states[member].last + wave.depth)[:, None].expand(-1, count)
                for member, count in zip(wave.members, wave.counts, strict=True)
            ],
            1,
        )
        embeds = self._embeddings(wave.tokens.to(device)).to(features.dtype)
        rows = Rows(embeds, features, positions)
        self._hidden = self._forward(wave.members, wave.counts, wave.visible, rows)
        return self._logits()

    def _forward(
        self,
        members: Sequence[int],
        counts: Sequence[int],
        visible: Sequence[Tensor | None],
        rows: Rows,
    ) -> Tensor:
        """States ``(N, H)`` behind these rows, the last scratch nodes of their requests."""
        kv = self._kv
        states = [self._states[member] for member in members]
        batch = TreeBatch(
            [
                kv.request(state.sequence, count, seen)
                for state, count, seen in zip(states, counts, visible, strict=True)
            ],
            kv.page_size,
        )
        beside = _beside(self._head.config.shared_layer, states, counts)

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            pools = kv.pools(0, keys, values)
            kernels = backend(keys.device)
            kernels.store(*pools, batch, keys, values)
            scale = query.shape[-1] ** -0.5
            return kernels.tree_attention(query, *pools, batch, scale=scale, beside=beside).out

        began = time.perf_counter()
        hidden = self._head(rows.embeds[None], rows.features[None], rows.positions, attend)[0]
        self.seconds += time.perf_counter() - began
        found: Tensor = hidden
        return found

    def _logits(self) -> Tensor:
        began = time.perf_counter()
        logits = self._head.logits(self._hidden)
        if len(self._never):
            logits.index_fill_(1, self._never, -torch.inf)
        self.seconds += time.perf_counter() - began
        return logits


def _beside(layer: int | None, states: Sequence[State], counts: Sequence[int]) -> Beside | None:
    """The verifier's keys that these requests read."""
    source = next((state.source for state in states if state.view is not None), None)
    if layer is None or source is None:
        return None
    size = source.paged.kv.page_size
    requests = []
    for state, count in zip(states, counts, strict=True):
        view = state.view or PageView((), 0)
        pages = view.pages
        follow = list(pages) == list(range(pages[0], pages[0] + len(pages))) if pages else False
        length = len(pages) * size - view.lead
        requests.append(TreeRequest(pages, length, (), count, None, view.lead, follow))
    return Beside(*source.paged.kv.layer(layer), TreeBatch(requests, size))
