"""The texts of a drafter's model in its own pages: what is new in each, and trees behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specdec.cache import SequenceKV
from specdec.drafters.calibration import Calibration
from specdec.drafters.growth import Network, grow
from specdec.interfaces import DraftRequest
from specdec.runtime import NodeBatch, PagedModel
from specdec.tree import DraftTree, Siblings, root_only

ROOM = 512  # tokens that a sequence's pages are laid out for; more is fine


@dataclass(slots=True, eq=False)
class _Text:
    """What is kept of one request between two proposals.

    ``seen`` of its tokens have been taken in. ``scratch`` maps the last tree's drafted nodes that
    have keys to their scratch index.
    """

    sequence: SequenceKV
    offset: Tensor | None
    seen: int
    tree: DraftTree | None = None
    scratch: dict[int, int] = field(default_factory=dict)


class Texts:
    """One text per request.

    Args:
        paged: the model, whose pages they are in.
    """

    def __init__(self, paged: PagedModel) -> None:
        self._paged = paged
        self._texts: dict[int, _Text] = {}

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._texts

    def begin(
        self, request_id: int, sequence: SequenceKV, *, seen: int = 0, offset: Tensor | None = None
    ) -> None:
        """Take over a sequence that holds what matters of a request's first ``seen`` tokens.
        ``offset``: as in :class:`NodeBatch`.
        """
        self._texts[request_id] = _Text(sequence, offset, seen)

    def take_in(self, request: DraftRequest, knows: Callable[[int], bool]) -> NodeBatch | None:
        """Bring a request's keys up to its text; what is left to run, or ``None`` if nothing is.

        Accepted nodes of the last tree have their keys already and are committed. The root is
        always run: its logits are wanted. Tokens that it does not know are dropped.
        """
        text = self._texts[request.id]
        new = [token for token in request.tokens[text.seen :] if knows(token)]
        text.seen = len(request.tokens)
        kept: list[int] = []
        if text.tree is not None:
            for child in text.tree.follow(new[:-1]):
                if child not in text.scratch:
                    break
                kept.append(text.scratch[child])
        self._paged.kv.commit(text.sequence, kept)
        text.tree = None
        new = new[len(kept) :]
        if not new:
            return None
        return NodeBatch(text.sequence, new, range(len(new)), None, text.offset)

    def draft(
        self,
        batch: Sequence[DraftRequest],
        take_in: Callable[[DraftRequest], NodeBatch | None],
        network: Callable[[list[NodeBatch]], Network],
        siblings: Siblings,
        calibration: Calibration,
    ) -> list[DraftTree]:
        """A tree per request: one forward per level for the whole batch, the first of them taking
        in what is new.

        Args:
            batch: the requests.
            take_in: what is new in a request's text, ``None`` for nothing to draft from.
            network: what runs the trees behind these.
            siblings: as for :func:`grow`.
            calibration: likewise.
        """
        wanted = [(each, take_in(each)) for each in batch if len(each.shape) > 1]
        # Without a text that it knows, it has nothing to say.
        live = [(each, text) for each, text in wanted if text is not None]
        if not live:
            return [root_only(request.tokens[-1]) for request in batch]
        requests = [request for request, _ in live]
        trees = {}
        grown = grow(network([text for _, text in live]), requests, siblings, calibration)
        for request, (tree, ran) in zip(requests, grown, strict=True):
            text = self._texts[request.id]
            text.tree = trees[request.id] = tree
            text.scratch = {node: index for index, node in enumerate(ran) if node >= 0}
        return [trees.get(request.id) or root_only(request.tokens[-1]) for request in batch]

    def release(self, request_id: int) -> None:
        """Give a request's pages back. Unknown ids are ignored."""
        text = self._texts.pop(request_id, None)
        if text is not None:
            self._paged.kv.free(text.sequence)
