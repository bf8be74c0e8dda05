"""EAGLE-3: a head of one layer that drafts from the verifier's own hidden states.

What it computes is in :mod:`specdec.drafters.eagle_head`; here it is given pages of its own, trees
and, for heads that read them, the verifier's pages. Its keys of drafted nodes rest on states that
it guessed; once tokens are accepted they are run again with the verifier's.
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
from specdec.drafters.growth import Calibration, Wave, grow
from specdec.interfaces import DraftRequest, Reads, VerifierSpec
from specdec.kernels import Beside, TreeBatch, TreeRequest, backend
from specdec.runtime import Source
from specdec.tree import DraftTree, Siblings, root_only

_ROOM = 512  # tokens that a sequence's pages are laid out for; more is fine
PIECE = 256  # tokens of a text that are run at once


class _Rows(NamedTuple):
    """What is new in a request's text, as the head takes it in: ``embeds`` and ``features``
    ``(n, H)``, ``positions`` int64 ``(R, n)``.
    """

    embeds: Tensor
    features: Tensor
    positions: Tensor


@dataclass(slots=True, eq=False)
class _State:
    """What is kept of one request between two proposals.

    ``view`` is what it reads of the verifier's pages. ``glance`` is the global vector of the last
    image. ``last`` is the position of the token before the root, int64 ``(R,)``.
    """

    sequence: SequenceKV
    view: PageView | None = None
    source: Source | None = None
    glance: Tensor | None = None
    last: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))


class EagleDrafter:
    """Drafts with an EAGLE-3 head.

    Args:
        head: the head.
        embeddings: the verifier's input embeddings, for a head without its own.
        siblings: how children are chosen when sampling from a static shape.
        calibration: of its probabilities, for dynamic trees.

    Raises:
        ValueError: the head has no embeddings, and none are given that fit it.
    """

    name = "eagle"

    def __init__(
        self,
        head: EagleHead,
        embeddings: nn.Module | None = None,
        siblings: Siblings = "without_replacement",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        own: nn.Module | None = head.embed_tokens
        found = own or embeddings
        width = getattr(found, "embedding_dim", head.config.hidden_size)
        if found is None or width != head.config.hidden_size:
            given = "none are given" if found is None else f"those given have a width of {width}"
            raise ValueError(
                f"the EAGLE head reads embeddings of width {head.config.hidden_size} that it does "
                f"not bring along, and {given}: load it with the verifier that it was trained for"
            )
        self.head = head
        self.calibration = calibration
        self.siblings: Siblings = siblings
        self.model_seconds = 0.0
        self._embeddings = found
        self._kv = PagedKV()
        self._states: dict[int, _State] = {}
        self._visual: frozenset[int] = frozenset()
        spoken = head.spoken
        self._vocabulary = None if torch.equal(spoken, torch.arange(len(spoken))) else spoken
        self._never = torch.tensor([], dtype=torch.long)

    @property
    def reads(self) -> Reads:
        """The layers that the head was trained on, and pages if it shares them."""
        return Reads(self.head.config.layers, pages=self.head.config.vision == "shared")

    def check(self, verifier: VerifierSpec) -> None:
        """Note which tokens are visual.

        Raises:
            ValueError: the head was trained for another verifier.
        """
        config = self.head.config
        pairs = (
            ("hidden size", config.target_hidden_size, verifier.hidden_size),
            ("vocabulary", config.vocab_size, verifier.vocab_size),
        )
        for what, expected, given in pairs:
            if expected != given:
                raise ValueError(
                    f"the EAGLE head was trained for a verifier with a {what} of {expected}, "
                    f"{verifier.name} has one of {given}; train a drafter for it with "
                    "`specdec distill --kind eagle`"
                )
        deepest = max((*config.layers, config.shared_layer or 0))
        if deepest >= verifier.num_layers:
            raise ValueError(
                f"the EAGLE head reads layer {deepest} of its verifier, {verifier.name} has "
                f"{verifier.num_layers} layers"
            )
        if config.vision == "shared" and verifier.chains_only:
            raise ValueError(
                f"the EAGLE head reads keys of the image in its verifier's pages, and "
                f"{verifier.name} keeps states instead; train one with vision 'hidden'"
            )
        self._visual = verifier.visual_token_ids
        spoken = self.head.spoken.cpu()
        visual = torch.tensor(sorted(self._visual), dtype=torch.long)
        never = torch.isin(spoken, visual) | (spoken >= verifier.vocab_size)
        self._never = never.nonzero()[:, 0].to(self.head.d2t.device)

    @torch.no_grad()
    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One forward per level of the trees for the whole batch, the first of them taking in the
        tokens that were accepted since the last call."""
        wanted = [(each, self._take_in(each)) for each in batch if len(each.shape) > 1]
        live = [(each, rows) for each, rows in wanted if rows is not None]
        if not live:
            return [root_only(request.tokens[-1]) for request in batch]
        requests = [request for request, _ in live]
        states = [self._states[request.id] for request in requests]
        network = _Network(self, states, [rows for _, rows in live])
        trees = {}
        grown = grow(network, requests, self.siblings, self.calibration)
        for request, state, (tree, _) in zip(requests, states, grown, strict=True):
            trees[request.id] = tree
            self._kv.rollback(state.sequence)
        return [trees.get(request.id) or root_only(request.tokens[-1]) for request in batch]

    def release(self, request_id: int) -> None:
        """Give the request's pages back, and let the verifier's go."""
        state = self._states.pop(request_id, None)
        if state is not None:
            self._kv.free(state.sequence)
            if state.view is not None and state.source is not None:
                state.source.paged.kv.close(state.view)

    @property
    def bytes_taken(self) -> int:
        """What keys and values of its own take now; what it reads of the verifier's is not its
        own.
        """
        return self._kv.bytes_taken

    def _state(self, request: DraftRequest) -> _State:
        state = self._states.get(request.id)
        if state is None:
            state = _State(self._kv.add(max(_ROOM, len(request.tokens))))
            if self.reads.pages and request.source is not None:
                state.source = request.source
                state.view = _view(request.source, self.head.config.keep)
            self._states[request.id] = state
        return state

    def _take_in(self, request: DraftRequest) -> _Rows | None:
        """The tokens whose states have come since the last call, the root last; ``None`` if there
        are none, and nothing to draft from.
        """
        if not request.states:
            return None
        state = self._state(request)
        fused = self.head.fuse(torch.cat(request.states))
        request.states.clear()
        first = len(request.tokens) - len(fused)  # the token behind the first state
        text = torch.tensor(request.tokens[first:], device=fused.device)
        positions = _positions(request, first - 1, len(request.tokens) - 1)
        state.last = positions[:, -1]
        embeds = self._embeddings(text).to(fused.dtype)
        rows = _Rows(embeds, fused, positions)
        if self.head.config.vision != "hidden" and first < request.prompt_length:
            asked = request.tokens[first : request.prompt_length]
            visual = [token in self._visual for token in asked]
            visual += [False] * (len(rows.embeds) - len(visual))  # whatever the answer says
            rows = self._without_images(state, visual, rows)
        elif state.glance is not None:
            rows = rows._replace(features=fused + state.glance)
        return rows

    def _without_images(self, state: _State, visual: Sequence[bool], rows: _Rows) -> _Rows:
        """The rows without those of visual tokens, in whose place stands what the head reads of
        them, if it compresses.
        """
        embeds, features, places = list[Tensor](), list[Tensor](), list[int]()
        begun = 0
        for place, is_visual in enumerate([*visual, True]):
            if is_visual and begun < place and not visual[begun]:
                kept = slice(begun, place)
                glance = 0.0 if state.glance is None else state.glance
                embeds.append(rows.embeds[kept])
                features.append(rows.features[kept] + glance)
                places += range(begun, place)
                begun = place
            elif not is_visual and place and visual[place - 1]:
                # States of the image's tokens are those behind them: one row later.
                if self.head.compress is not None:
                    read, state.glance = self.head.compress(rows.features[begun + 1 : place + 1])
                    embeds.append(read)
                    features.append(read)
                    places += [place] * len(read)
                begun = place
        if not places:
            return _Rows(rows.embeds[:0], rows.features[:0], rows.positions[:, :0])
        return _Rows(torch.cat(embeds), torch.cat(features), rows.positions[:, places])


class _Network:
    """The head over the trees of one proposal."""

    def __init__(
        self, drafter: EagleDrafter, states: Sequence[_State], rows: Sequence[_Rows]
    ) -> None:
        self.vocabulary = drafter._vocabulary
        self._drafter = drafter
        self._states = states
        self._rows = rows
        self._hidden = torch.empty(0)  # of the last wave

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Run and commit what is new; long texts piece by piece."""
        last: dict[int, Tensor] = {}
        for start in range(0, max(len(rows.embeds) for rows in self._rows), PIECE):
            members = [i for i, rows in enumerate(self._rows) if len(rows.embeds) > start]
            parts = [
                _Rows(
                    self._rows[i].embeds[start : start + PIECE],
                    self._rows[i].features[start : start + PIECE],
                    self._rows[i].positions[:, start : start + PIECE],
                )
                for i in members
            ]
            counts = [len(part.embeds) for part in parts]
            for i, count in zip(members, counts, strict=True):
                self._drafter._kv.extend(self._states[i].sequence, range(count))
            hidden = self._forward(
                members,
                counts,
                [None] * len(members),
                _Rows(
                    torch.cat([part.embeds for part in parts]),
                    torch.cat([part.features for part in parts]),
                    torch.cat([part.positions for part in parts], 1),
                ),
            )
            for i, count, end in zip(members, counts, accumulate(counts), strict=True):
                self._drafter._kv.commit(self._states[i].sequence, range(count))
                last[i] = hidden[end - 1]
        self._hidden = torch.stack([last[i] for i in range(len(self._rows))])
        return self._logits()

    def run(self, wave: Wave) -> Tensor:
        """Run the nodes behind the states that the head guessed for their parents."""
        drafter = self._drafter
        device = self._hidden.device
        features = self._hidden[wave.parents.to(device)]
        if drafter.head.compress is not None:
            glances = [self._states[member].glance for member in wave.members]
            counts = torch.tensor(wave.counts, device=device)
            zero = torch.zeros_like(features[0])
            each = torch.stack([zero if glance is None else glance for glance in glances])
            features = features + each.repeat_interleave(counts, 0)
        for member, count in zip(wave.members, wave.counts, strict=True):
            drafter._kv.extend(self._states[member].sequence, [wave.depth - 1] * count)
        positions = torch.cat(
            [
                (self._states[member].last + wave.depth)[:, None].expand(-1, count)
                for member, count in zip(wave.members, wave.counts, strict=True)
            ],
            1,
        )
        embeds = drafter._embeddings(wave.tokens.to(device)).to(features.dtype)
        rows = _Rows(embeds, features, positions)
        self._hidden = self._forward(wave.members, wave.counts, wave.visible, rows)
        return self._logits()

    def _forward(
        self,
        members: Sequence[int],
        counts: Sequence[int],
        visible: Sequence[Tensor | None],
        rows: _Rows,
    ) -> Tensor:
        """States ``(N, H)`` behind these rows, the last scratch nodes of their requests."""
        drafter, kv = self._drafter, self._drafter._kv
        states = [self._states[member] for member in members]
        batch = TreeBatch(
            [
                kv.request(state.sequence, count, seen)
                for state, count, seen in zip(states, counts, visible, strict=True)
            ],
            kv.page_size,
        )
        beside = _beside(drafter.head.config.shared_layer, states, counts)

        def attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            pools = kv.pools(0, keys, values)
            kernels = backend(keys.device)
            kernels.store(*pools, batch, keys, values)
            scale = query.shape[-1] ** -0.5
            return kernels.tree_attention(query, *pools, batch, scale=scale, beside=beside).out

        began = time.perf_counter()
        hidden = drafter.head(rows.embeds[None], rows.features[None], rows.positions, attend)[0]
        drafter.model_seconds += time.perf_counter() - began
        found: Tensor = hidden
        return found

    def _logits(self) -> Tensor:
        began = time.perf_counter()
        logits = self._drafter.head.logits(self._hidden)
        if len(self._drafter._never):
            logits.index_fill_(1, self._drafter._never, -torch.inf)
        self._drafter.model_seconds += time.perf_counter() - began
        return logits


def _positions(request: DraftRequest, start: int, stop: int) -> Tensor:
    """Positions of tokens ``[start, stop)`` of the text, int64 ``(R, stop - start)``."""
    known = request.positions
    if known is None:
        return torch.arange(start, stop)[None]
    beyond = torch.arange(1, stop - known.shape[1] + 1)
    return torch.cat([known, known[:, -1:] + beyond], 1)[:, start:stop]


def _view(source: Source, keep: float) -> PageView | None:
    """The verifier's pages with visual tokens, an evenly spread share of them; ``None`` without
    any.
    """
    sequence, kv = source.sequence, source.paged.kv
    size = kv.page_size
    pages = sorted({(sequence.lead + place) // size for place in source.visual})
    pages = [page for page in pages if page < sequence.full_pages(size)]
    count = max(1, round(keep * len(pages)))
    kept = sorted({pages[i * len(pages) // count] for i in range(count)}) if pages else []
    return kv.view(sequence, kept) if kept else None


def _beside(layer: int | None, states: Sequence[_State], counts: Sequence[int]) -> Beside | None:
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
