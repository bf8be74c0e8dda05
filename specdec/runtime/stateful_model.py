"""A transformers model whose layers keep more of a text than keys that trees could share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.runtime import hook
from specdec.runtime.bypass import Bypass
from specdec.runtime.hook import PrefillRow
from specdec.runtime.node_batch import NodeBatch, model_inputs
from specdec.runtime.paged_model import PagedModel
from specdec.runtime.states import Beside, Kinds, Layers, StatefulCache

# Given once a token; what the last token was given goes for all that follow.
_PER_TOKEN = ("cross_attention_mask",)
# Tokens that may be run again along with the next nodes, rather than in a forward of their own.
_BEHIND = 16


class StatefulModel(PagedModel):
    """Runs each sequence in a forward of its own, since states are not shared within one.

    A state that was written with refused nodes is thrown away: the accepted ones among them are run
    again, from the state before, in front of the next nodes; alone, when they have become many.

    Args:
        model: as for :class:`PagedModel`.
        kinds: which of its layers keep states.
        page_size: tokens a page.
        kv_cache_bytes: what keys and values may take; states are not counted.
        keeps_hidden: as for :class:`PagedModel`.
        taps: as for :class:`PagedModel`.
    """

    _keeps_states = True

    def __init__(
        self,
        model: PreTrainedModel,
        kinds: Kinds,
        *,
        page_size: int = 16,
        kv_cache_bytes: int | None = None,
        keeps_hidden: bool = False,
        taps: Sequence[int] = (),
    ) -> None:
        super().__init__(
            model,
            page_size=page_size,
            kv_cache_bytes=kv_cache_bytes,
            cache=StatefulCache,
            keeps_hidden=keeps_hidden,
            taps=taps,
        )
        self._kinds = kinds
        # Of the current forward: the states it starts from, and those it writes.
        self._before: Layers = kinds.fresh()
        self._after: Layers = self._before

    @property
    def chains_only(self) -> bool:
        """Whether nodes must be chains."""
        return bool(self._kinds.recurrent)

    def prefill(self, inputs: Mapping[str, Any], rows: Sequence[PrefillRow]) -> Tensor:
        """As in :class:`PagedModel`; the sequences get the states of their rows."""
        self._before = self._kinds.fresh()
        logits = super().prefill(inputs, rows)
        given = {name: inputs[name] for name in _PER_TOKEN if inputs.get(name) is not None}
        for row, sequence, _ in rows:
            last = {name: value[row : row + 1, -1:] for name, value in given.items()}
            sequence.beside = Beside(self._kinds.row(self._after, row), last)
        self._before = self._after = self._kinds.fresh()
        return logits

    def forward(
        self,
        batch: Sequence[NodeBatch],
        *,
        keep: Tensor | None = None,
        bypass: Bypass | None = None,
    ) -> Tensor:
        """As in :class:`PagedModel`; nodes are new ones, and chains where states are recurrent."""
        assert bypass is None, "no layer may miss what its state is made of"
        for nodes in batch:
            assert not nodes.sequence.scratch_depths, "states branch off committed text only"
            beside = _beside(nodes.sequence)
            if len(beside.behind) >= _BEHIND:
                self._catch_up(nodes.sequence, nodes.offset)
        whole = [_with_behind(nodes) for nodes in batch]
        logits, hidden, states = list[Tensor](), list[Tensor](), list[Tensor]()
        with self._extended(whole):
            for nodes, wanted in zip(whole, batch, strict=True):
                logits.append(self._alone(nodes)[-len(wanted.tokens) :])
                if self.hidden is not None:
                    hidden.append(self.hidden[-len(wanted.tokens) :])
                if self.states is not None:
                    states.append(self.states[0, -len(wanted.tokens) :])
        for nodes in batch:
            _beside(nodes.sequence).nodes = list(nodes.tokens)
        if hidden:
            self.hidden = torch.cat(hidden)
        if states:
            self.states = torch.cat(states)
        self.gaze = [None] * len(batch)
        every = torch.cat(logits)
        return every if keep is None else every[keep]

    def commit(self, sequence: SequenceKV, nodes: Sequence[int]) -> None:
        """Keep these nodes. If a recurrent state has seen others as well, it goes back."""
        beside = _beside(sequence)
        if not self.chains_only:
            self.kv.commit(sequence, nodes)
        elif len(nodes) == len(beside.nodes):
            self._arrive(sequence)
        else:
            self.kv.rollback(sequence)
            beside.behind += [beside.nodes[node] for node in nodes]
        beside.nodes, beside.after = [], None

    def _catch_up(self, sequence: SequenceKV, offset: Tensor | None) -> None:
        """Run the tokens that the states have not seen."""
        whole = _with_behind(NodeBatch(sequence, (), (), None, offset))
        with self._extended([whole]):
            self._alone(whole)
        self._arrive(sequence)

    def _arrive(self, sequence: SequenceKV) -> None:
        """All nodes of the last forward are part of the text."""
        beside = _beside(sequence)
        assert beside.after is not None, "nothing has been run"
        self.kv.commit(sequence, range(len(sequence.scratch_depths)))
        beside.layers, beside.behind, beside.after = beside.after, [], None

    def _alone(self, nodes: NodeBatch) -> Tensor:
        """Logits ``(n, V)`` of one sequence's nodes, which have been added to it."""
        beside = _beside(nodes.sequence)
        count = len(nodes.tokens)
        inputs = model_inputs([nodes], self._embedding)
        for name, value in beside.inputs.items():
            # As for the whole text: transformers takes the nodes' part, 5.17 knows no other way.
            length = nodes.sequence.committed + count
            inputs[name] = value.expand(-1, length, *value.shape[2:])
        self._before = beside.layers
        rows = [hook.TreeRows(nodes.sequence, count, nodes.visible)]
        logits = self._over_nodes(rows, inputs)[0]
        beside.after = self._after
        return logits

    def _run(
        self,
        forward: hook.Prefill | hook.OverNodes,
        inputs: Mapping[str, Any],
        bypass: Bypass | None = None,
    ) -> Tensor:
        self._after = self._kinds.written(self._before)
        cache = self.cache
        assert isinstance(cache, StatefulCache)
        cache.lay(self._after)
        if isinstance(forward, hook.TreeForward):
            held = (getattr(layer, "keys", None) for layer in self._after.values())
            forward.unpaged = frozenset(id(keys) for keys in held)
        logits = super()._run(forward, inputs, bypass)
        self.set_limit()
        return logits


def _beside(sequence: SequenceKV) -> Beside:
    beside = sequence.beside
    assert isinstance(beside, Beside), "the sequence has not been prefilled"
    return beside


def _with_behind(nodes: NodeBatch) -> NodeBatch:
    """The nodes with the tokens in front of them that the states have not seen."""
    behind = _beside(nodes.sequence).behind
    if not behind:
        return nodes
    assert nodes.visible is None, "only chains go on from a state"
    tokens = [*behind, *nodes.tokens]
    return nodes._replace(tokens=tokens, depths=range(len(tokens)))
