"""EAGLE-3: a head of one layer that drafts from the verifier's own hidden states.

What it computes is in :mod:`specdec.drafters.eagle_head`; here it is given pages of its own, trees
and, for heads that read them, the verifier's pages. Its keys of drafted nodes rest on states that
it guessed; once tokens are accepted they are run again with the verifier's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specdec.cache import PagedKV, PageView
from specdec.drafters.calibration import Calibration
from specdec.drafters.eagle_head import EagleHead
from specdec.drafters.eagle_network import EagleNetwork, Rows, State
from specdec.drafters.growth import grow
from specdec.interfaces import DraftRequest, Reads, VerifierSpec
from specdec.runtime import Source
from specdec.tree import DraftTree, Siblings, root_only

_ROOM = 512  # tokens that a sequence's pages are laid out for; more is fine


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
        self._states: dict[int, State] = {}
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
        # Without states that have come since the last call there is nothing to draft from.
        requests = [request for request in batch if len(request.shape) > 1 and request.states]
        if not requests:
            return [root_only(request.tokens[-1]) for request in batch]
        rows = self._take_in(requests)
        states = [self._states[request.id] for request in requests]
        network = EagleNetwork(
            self.head,
            self._embeddings,
            self._kv,
            self._never,
            self._vocabulary,
            states,
            rows,
        )
        trees = {}
        grown = grow(network, requests, self.siblings, self.calibration)
        self.model_seconds += network.seconds
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

    def _state(self, request: DraftRequest) -> State:
        state = self._states.get(request.id)
        if state is None:
            state = State(self._kv.add(max(_ROOM, len(request.tokens))))
            if self.reads.pages and request.source is not None:
                state.source = request.source
                state.view = _view(request.source, self.head.config.keep)
            self._states[request.id] = state
        return state

    def _take_in(self, requests: Sequence[DraftRequest]) -> list[Rows]:
        """Per request the tokens whose states have come since the last call, the root last."""
        counts = [sum(map(len, request.states)) for request in requests]
        fused = self.head.fuse(torch.cat([part for each in requests for part in each.states]))
        tokens = [
            token
            for request, count in zip(requests, counts, strict=True)
            for token in request.tokens[len(request.tokens) - count :]
        ]
        embeds = self._embeddings(torch.tensor(tokens, device=fused.device)).to(fused.dtype)
        parts = zip(requests, embeds.split(counts), fused.split(counts), strict=True)
        return [self._rows(*part) for part in parts]

    def _rows(self, request: DraftRequest, embeds: Tensor, fused: Tensor) -> Rows:
        """What the head reads of a request's newest tokens."""
        request.states.clear()
        state = self._state(request)
        first = len(request.tokens) - len(fused)  # the token behind the first state
        positions = _positions(request, first - 1, len(request.tokens) - 1)
        state.last = positions[:, -1]
        rows = Rows(embeds, fused, positions)
        if self.head.config.vision != "hidden" and first < request.prompt_length:
            asked = request.tokens[first : request.prompt_length]
            visual = [token in self._visual for token in asked]
            visual += [False] * (len(rows.embeds) - len(visual))  # whatever the answer says
            rows = self._without_images(state, visual, rows)
        elif state.glance is not None:
            rows = rows._replace(features=fused + state.glance)
        return rows

    def _without_images(self, state: State, visual: Sequence[bool], rows: Rows) -> Rows:
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
            return Rows(rows.embeds[:0], rows.features[:0], rows.positions[:, :0])
        return Rows(torch.cat(embeds), torch.cat(features), rows.positions[:, places])


def _positions(request: DraftRequest, start: int, stop: int) -> Tensor:
    """Positions of tokens ``[start, stop)`` of the text, int64 ``(R, stop - start)``."""
    known = request.positions
    if known is None:
        return torch.arange(start, stop)[None]
    if start >= known.shape[1]:
        return known[:, -1:] + torch.arange(start, stop) - (known.shape[1] - 1)
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
