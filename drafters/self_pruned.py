"""The verifier drafts for itself, over fewer of its own pages: no second model, no training.

For each proposal a request's text is borrowed without most of its visual pages; only the last page,
if it is not full, is copied when the drafts' keys are written. Tokens keep their positions. What it
drafts is thrown away with its keys: the verifier computes them again, from everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdec.cache import OutOfPages, SequenceKV
from specdec.drafters.calibration import Calibration
from specdec.drafters.growth import Grown, Wave, grow
from specdec.drafters.selection import SHARE_UNIFORM, check_ratio, select_pages
from specdec.interfaces import DraftRequest, Reads, VerifierSpec
from specdec.runtime import Bypass, NodeBatch, PagedModel, Source
from specdec.tree import DraftTree, Siblings, root_only


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """``left_out``: pages that a request does without. ``gaze``: what they were chosen by."""

    left_out: frozenset[int]
    gaze: Tensor | None


class SelfPrunedDrafter:
    """Drafts with the verifier itself, which sees a part of each image only.

    Whole pages are left out, those that hold nothing but visual tokens: how few tokens are kept is
    limited by what shares a page with text.

    Args:
        ratio: share of visual tokens that is kept: those that the verifier looks at, and some
            everywhere; all of them spread evenly if the verifier was not made with ``gaze=True``.
        every: choose again after so many steps; 0 keeps the choice.
        skip: layers of the text tower that drafts pass by.
        share_uniform: share of the kept ones that is spread evenly.
        siblings: how children are chosen when sampling; greedy requests always take the top k.
        calibration: of its probabilities, for dynamic trees.

    Raises:
        ValueError: a ratio or number that makes no sense.
    """

    name = "self_pruned"

    def __init__(
        self,
        ratio: float = 0.25,
        every: int = 8,
        skip: Sequence[int] = (),
        *,
        share_uniform: float = SHARE_UNIFORM,
        siblings: Siblings = "without_replacement",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        if every < 0:
            raise ValueError(f"every={every}: expected a number of steps, or 0 for never")
        self.ratio = check_ratio(ratio)
        self.share_uniform = check_ratio(share_uniform)
        self.skip = tuple(skip)
        self.reads = Reads(pages=True, gaze=ratio not in (0, 1), gaze_every=every)
        self.siblings: Siblings = siblings
        self.calibration = calibration
        self.model_seconds = 0.0
        self._choices: dict[int, _Choice] = {}
        self._bypass: Bypass | None = None

    def check(self, verifier: VerifierSpec) -> None:
        """Raise ``ValueError`` if the verifier's text is more than the keys of its tokens, or has
        no such layers.
        """
        if verifier.keeps_states or verifier.chains_only:
            raise ValueError(
                f"drafter {self.name} leaves out keys of visual tokens, and verifier "
                f"{verifier.name} keeps more of a text than keys, by linear attention or "
                "cross-attention; use another drafter"
            )
        wrong = [layer for layer in self.skip if not 0 <= layer < verifier.num_layers]
        if wrong or len(set(self.skip)) == verifier.num_layers:
            raise ValueError(
                f"drafter {self.name} skips layers {', '.join(map(str, sorted(self.skip)))}, and "
                f"verifier {verifier.name} has {verifier.num_layers}, from 0"
            )

    @torch.no_grad()
    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One forward of the verifier per level of the trees for the whole batch. Where its pages
        do not suffice, nothing is drafted.
        """
        live = [(each, each.source) for each in batch if len(each.shape) > 1 and each.source]
        trees = {}
        if live:
            requests, sources = [request for request, _ in live], [source for _, source in live]
            for request, grown in zip(requests, self._grow(requests, sources), strict=False):
                trees[request.id] = grown.tree
        return [trees.get(request.id) or root_only(request.tokens[-1]) for request in batch]

    def release(self, request_id: int) -> None:
        """Forget what was chosen for the request."""
        self._choices.pop(request_id, None)

    def _grow(self, requests: Sequence[DraftRequest], sources: Sequence[Source]) -> list[Grown]:
        """Their trees, or none at all if the pages do not suffice."""
        paged = sources[0].paged
        if self.skip and self._bypass is None:
            self._bypass = Bypass(paged.model, self.skip)
        began = paged.seconds
        pruned: list[SequenceKV] = []
        try:
            for request, source in zip(requests, sources, strict=True):
                pruned.append(self._prune(request, source))
            offsets = [source.offset for source in sources]
            network = _PrunedNetwork(paged, pruned, offsets, self._bypass)
            return grow(network, requests, self.siblings, self.calibration)
        except OutOfPages:
            return []
        finally:
            for sequence in pruned:
                paged.kv.free(sequence)
            self.model_seconds += paged.seconds - began

    def _prune(self, request: DraftRequest, source: Source) -> SequenceKV:
        """The request's text without what is left out of it; to be freed."""
        kv, sequence = source.paged.kv, source.sequence
        pages = range(-(-(sequence.lead + sequence.committed) // kv.page_size))
        choice = self._choices.get(request.id)
        if choice is None or choice.gaze is not request.gaze:
            kept = select_pages(
                source.visual,
                request.gaze,
                self.ratio,
                committed=sequence.committed,
                lead=sequence.lead,
                page_size=kv.page_size,
                share_uniform=self.share_uniform,
            )
            choice = _Choice(frozenset(pages).difference(kept), request.gaze)
            self._choices[request.id] = choice
        left_out = choice.left_out
        pruned = kv.prune(sequence, [page for page in pages if page not in left_out])
        pruned.beside = sequence.beside
        return pruned


class _PrunedNetwork:
    """Runs the trees of one proposal, roots included, as scratch of borrowed sequences."""

    vocabulary = None

    def __init__(
        self,
        paged: PagedModel,
        sequences: Sequence[SequenceKV],
        offsets: Sequence[Tensor],
        bypass: Bypass | None,
    ) -> None:
        self._paged = paged
        self._sequences = sequences
        self._offsets = offsets
        self._bypass = bypass

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Run the roots."""
        each = zip(requests, self._sequences, self._offsets, strict=True)
        batch = [
            NodeBatch(sequence, request.tokens[-1:], [0], None, offset)
            for request, sequence, offset in each
        ]
        return self._paged.forward(batch, bypass=self._bypass)

    def run(self, wave: Wave) -> Tensor:
        """Run the nodes; all see the root."""
        tokens = wave.tokens.split(wave.counts)
        batch = [
            NodeBatch(
                self._sequences[member],
                own.tolist(),
                [wave.depth] * len(own),
                None if visible is None else torch.nn.functional.pad(visible, (1, 0), value=True),
                self._offsets[member],
            )
            for member, own, visible in zip(wave.members, tokens, wave.visible, strict=True)
        ]
        return self._paged.forward(batch, bypass=self._bypass)
