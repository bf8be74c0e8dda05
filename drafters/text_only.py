"""A small causal language model that drafts without seeing the image.

Visual tokens are dropped and the positions closed up, so any language model with the verifier's
tokenizer can draft for it (Gagrani et al. 2404.08856). Its vocabulary may be padded differently or
be smaller; tokens it does not know are dropped like visual ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.runtime import NodeBatch, PagedModel
from specdec.sampling import sample_children
from specdec.tree import DraftTree, Siblings, Topology, root_only, topology

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

    Raises:
        ValueError: the model's attention cannot be replaced.
    """

    name = "text_only"

    def __init__(self, model: PreTrainedModel, siblings: Siblings = "without_replacement") -> None:
        self.model = model
        self.siblings: Siblings = siblings
        self._paged = PagedModel(model)
        self._vocab_size = model.config.get_text_config(decoder=True).vocab_size
        self._limit = self._vocab_size
        self._visual: frozenset[int] = frozenset()
        self._never = torch.tensor([], dtype=torch.long)  # visual tokens, within the vocabulary
        self._states: dict[int, _State] = {}

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
    def propose(self, batch: Sequence[DraftRequest], shape: Topology) -> list[DraftTree]:
        """One forward per level of the tree for the whole batch, the first of them taking in the
        tokens that were accepted since the last call."""
        shapes = [shape.truncate(request.max_depth) for request in batch]
        live = [
            _Growing(request, self._state(request), shape, self.siblings)
            for request, shape in zip(batch, shapes, strict=True)
            if len(shape) > 1
        ]
        self._root_level(live)
        for depth in range(1, max((growing.shape.depth for growing in live), default=0)):
            self._next_level([growing for growing in live if growing.shape.depth > depth], depth)
        trees = {growing.request.id: growing.finish() for growing in live}
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

    def _take_in(self, growing: _Growing) -> NodeBatch | None:
        """Bring a request's keys up to its text; what is left to run, or ``None`` if nothing is.

        Accepted nodes of the last tree have their keys already and are committed. The root is
        always
        run: its logits are wanted.
        """
        state, request = growing.state, growing.request
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

    def _root_level(self, live: list[_Growing]) -> None:
        batch = []
        for growing in list(live):
            nodes = self._take_in(growing)
            if nodes is None:
                live.remove(growing)
            else:
                batch.append(nodes)
        if not batch:
            return
        self._choose([(growing, 0) for growing in live], self._paged.append(batch))

    def _next_level(self, live: Sequence[_Growing], depth: int) -> None:
        batch, parents = [], []
        for growing in live:
            nodes = growing.inner_nodes(depth)
            if nodes:
                batch.append(growing.node_batch(nodes, depth))
                parents += [(growing, node) for node in nodes]
        if batch:
            self._choose(parents, self._paged.forward(batch))

    def _choose(self, parents: Sequence[tuple[_Growing, int]], logits: Tensor) -> None:
        """Give each parent its children, from its row of ``logits (len(parents), V)``."""
        logits = logits[:, : self._limit].float().index_fill_(1, self._never, -torch.inf)
        widest = max(len(growing.shape.children[node]) for growing, node in parents)
        greedy = [row for row, (growing, _) in enumerate(parents) if growing.temperature == 0]
        if greedy:
            rows = logits if len(greedy) == len(parents) else logits[greedy]
            tokens = rows.argmax(-1, keepdim=True) if widest == 1 else rows.topk(widest).indices
            for row, children in zip(greedy, tokens.tolist(), strict=True):
                growing, node = parents[row]
                growing.add_children(node, children)
                if growing.request.wants_q:
                    growing.q[node] = logits[row].softmax(-1)
        for row, (growing, node) in enumerate(parents):
            if growing.temperature > 0:
                q = (logits[row] / growing.temperature).softmax(-1)
                drawn = sample_children(q, widest, self.siblings, growing.request.generator)
                growing.add_children(node, drawn.tolist())
                growing.q[node] = q

    def _knows(self, token: int) -> bool:
        return token < self._vocab_size and token not in self._visual


class _Growing:
    """A tree while it is drafted, numbered as in its shape; a node may turn out not to exist."""

    def __init__(
        self, request: DraftRequest, state: _State, shape: Topology, siblings: Siblings
    ) -> None:
        self.request = request
        self.state = state
        self.shape = shape
        self.temperature = request.temperature
        self.siblings: Siblings = siblings if request.temperature > 0 else "deterministic"
        self.tokens: dict[int, int] = {0: request.tokens[-1]}
        self.q: dict[int, Tensor] = {}
        self._cached: list[int] = []  # drafted nodes with keys, in scratch order

    def add_children(self, node: int, tokens: Sequence[int]) -> None:
        """Name the children of ``node``; -1 ends them early."""
        for child, token in zip(self.shape.children[node], tokens, strict=False):
            if token >= 0:
                self.tokens[child] = token

    def inner_nodes(self, depth: int) -> list[int]:
        """The nodes of this depth that are to have children."""
        level = self.shape.levels[depth]
        return [node for node in level if node in self.tokens and self.shape.children[node]]

    def node_batch(self, nodes: Sequence[int], depth: int) -> NodeBatch:
        """What to run for these nodes, all of one depth; they become scratch."""
        self._cached += nodes
        chained = len(self._cached) == depth  # one node a level so far
        visible = None if chained else self.shape.ancestors[list(nodes)][:, self._cached]
        tokens = [self.tokens[node] for node in nodes]
        return NodeBatch(self.state.sequence, tokens, [depth - 1] * len(nodes), visible)

    def finish(self) -> DraftTree:
        """The tree; the state remembers which of its nodes have keys."""
        kept = sorted(self.tokens)
        number = {node: index for index, node in enumerate(kept)} | {-1: -1}
        tree = DraftTree(
            topology(tuple(number[self.shape.parents[node]] for node in kept)),
            tuple(self.tokens[node] for node in kept),
            self._distributions(kept) if self.q else None,
            self.siblings,
        )
        self.state.tree = tree
        self.state.scratch = {number[node]: index for index, node in enumerate(self._cached)}
        return tree

    def _distributions(self, kept: Sequence[int]) -> Tensor:
        some = next(iter(self.q.values()))
        q = some.new_zeros(len(kept), some.shape[-1])
        for index, node in enumerate(kept):
            if node in self.q:
                q[index] = self.q[node]
        return q
