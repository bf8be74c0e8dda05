"""A small causal language model that drafts without seeing the image.

Visual tokens are dropped and the positions closed up, so any language model with the verifier's
tokenizer can draft for it (Gagrani et al. 2404.08856). Its vocabulary may be padded differently or
be smaller; tokens it does not know are dropped like visual ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.drafters.growth import Calibration, grow
from specdec.drafters.paged_network import PagedNetwork
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.runtime import NodeBatch, PagedModel
from specdec.tree import DraftTree, Siblings, root_only

_ROOM = 512  # tokens that a sequence's pages are laid out for; more is fine


@dataclass(slots=True, eq=False)
class _State:
    """What is kept of one request between two proposals.

    ``seen`` of its tokens have been taken in. ``scratch`` maps the last tree's drafted nodes that
    have keys to their scratch index.
    """

    sequence: SequenceKV
    seen: int = 0
    tree: DraftTree | None = None
    scratch: dict[int, int] = field(default_factory=dict)


class TextOnlyDrafter:
    """Drafts with a causal language model over the text alone.

    Args:
        model: a transformers causal language model.
        siblings: how children are chosen when sampling; greedy requests always take the top k.
        calibration: of its probabilities, for dynamic trees.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """

    name = "text_only"

    def __init__(
        self,
        model: PreTrainedModel,
        siblings: Siblings = "without_replacement",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.siblings: Siblings = siblings
        self._paged = PagedModel(model)
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self._limit = self._vocab_size
        self._visual: frozenset[int] = frozenset()
        self._never = torch.tensor([], dtype=torch.long)  # visual tokens, within the vocabulary
        self._states: dict[int, _State] = {}

    @property
    def identity(self) -> Hashable:
        """Its model, whoever drafts with it."""
        return self.name, weakref.ref(self.model), self.siblings, self.calibration

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the model's forward."""
        return self._paged.seconds

    def check(self, verifier: VerifierSpec) -> None:
        """Note which tokens are visual and which ids the verifier cannot emit.

        Raises:
            ValueError: the vocabularies cannot belong to the same tokenizer.
        """
        smaller, larger = sorted((self._vocab_size, verifier.vocab_size))
        if smaller < larger // 2:
            raise ValueError(
                f"drafter {type(self.model).__name__} has a vocabulary of {self._vocab_size}, "
                f"verifier {verifier.name} one of {verifier.vocab_size}: they cannot share a "
                "tokenizer; train a drafter for this verifier with `specdec distill`"
            )
        self._visual = verifier.visual_token_ids
        self._limit = min(self._vocab_size, verifier.vocab_size)
        never = [token for token in self._visual if token < self._limit]
        self._never = torch.tensor(never, dtype=torch.long, device=self.model.device)

    @torch.no_grad()
    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One forward per level of the trees for the whole batch, the first of them taking in the
        tokens that were accepted since the last call."""
        wanted = [(each, self._take_in(each)) for each in batch if len(each.shape) > 1]
        # Without a text that it knows, it has nothing to say.
        live = [(each, text) for each, text in wanted if text is not None]
        if not live:
            return [root_only(request.tokens[-1]) for request in batch]
        requests = [request for request, _ in live]
        network = PagedNetwork(self._paged, [text for _, text in live], self._limit, self._never)
        trees = {}
        grown = grow(network, requests, self.siblings, self.calibration)
        for request, (tree, ran) in zip(requests, grown, strict=True):
            state = self._states[request.id]
            state.tree = trees[request.id] = tree
            state.scratch = {node: index for index, node in enumerate(ran) if node >= 0}
        return [trees.get(request.id) or root_only(request.tokens[-1]) for request in batch]

    def release(self, request_id: int) -> None:
        """Give the request's pages back."""
        state = self._states.pop(request_id, None)
        if state is not None:
            self._paged.kv.free(state.sequence)

    def _state(self, request: DraftRequest) -> _State:
        state = self._states.get(request.id)
        if state is None:
            state = _State(self._paged.kv.add(max(_ROOM, len(request.tokens))))
            self._states[request.id] = state
        return state

    def _take_in(self, request: DraftRequest) -> NodeBatch | None:
        """Bring a request's keys up to its text; what is left to run, or ``None`` if nothing is.

        Accepted nodes of the last tree have their keys already and are committed. The root is
        always run: its logits are wanted.
        """
        state = self._state(request)
        new = [token for token in request.tokens[state.seen :] if self._knows(token)]
        state.seen = len(request.tokens)
        kept: list[int] = []
        if state.tree is not None:
            for child in state.tree.follow(new[:-1]):
                if child not in state.scratch:
                    break
                kept.append(state.scratch[child])
        self._paged.kv.commit(state.sequence, kept)
        state.tree = None
        new = new[len(kept) :]
        if not new:
            return None
        return NodeBatch(state.sequence, new, range(len(new)))

    def _knows(self, token: int) -> bool:
        return token < self._vocab_size and token not in self._visual
