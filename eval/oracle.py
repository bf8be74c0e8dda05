"""Oracles of visual reliance, to find out what better estimators could gain.

An oracle knows for every node of every tree, on whichever path relaxation has led to, what the
verifier would say if other images were shown: it runs the same trees behind the same text with each
of them, too. That costs a forward for each image, so its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.interfaces import Piece, Prefilled, Prompt, Verified
from specdec.reliance import Evidence, Need
from specdec.sampling import total_variation
from specdec.tree import DraftTree
from specdec.verifiers import TransformersVerifier


class Oracle:
    """Reads what an :class:`OracleVerifier` hands on in place of hidden states.

    Args:
        graded: v is by how much the distribution changes, the largest total variation to that with
            another image; else it is 1 where the argmax changes, and 0 elsewhere.
    """

    def __init__(self, *, graded: bool = False) -> None:
        self.graded = graded

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"hidden"})

    def values(self, evidence: Evidence) -> Tensor:
        hidden = evidence.hidden
        if hidden is None or hidden.shape[1] != 2:
            raise ValueError("an oracle takes its numbers from an OracleVerifier")
        return hidden[:, int(self.graded)]


class _Watched(NamedTuple):
    """A request's handle, and its handles with other images. All are opaque to the engine, hence
    the Any wherever one comes back from it.
    """

    own: Any
    others: list[Any]


class OracleVerifier(TransformersVerifier):
    """A verifier whose hidden states are two numbers a node: whether its argmax changes with
    another image, and by how much its distribution does, at temperature 1.

    Args:
        model: see :class:`TransformersVerifier`.
        kv_cache_bytes: likewise.

    Attributes:
        others: what to put in place of a prompt's pixels, for each other image. To be set before a
            prompt comes; rows of one prompt have the same images.
    """

    def __init__(self, model: PreTrainedModel, *, kv_cache_bytes: int | None = None) -> None:
        super().__init__(model, kv_cache_bytes=kv_cache_bytes)
        self.gives = frozenset({"hidden"})
        self.others: list[Mapping[str, Any]] = []

    def prefill(self, prompt: Prompt, room: int, rows: Sequence[int] | None = None) -> Prefilled:
        own = super().prefill(prompt, room, rows)
        count = len(prompt.padding)
        others = []
        for other in self.others:
            pixels = {name: _rows(value, count) for name, value in other.items()}
            shown = prompt._replace(model_kwargs={**prompt.model_kwargs, **pixels})
            others.append(super().prefill(shown, room, rows).handles)
        handles = [
            _Watched(handle, [other[row] for other in others])
            for row, handle in enumerate(own.handles)
        ]
        return own._replace(handles=handles)

    def verify(
        self, handles: Sequence[Any], trees: Sequence[DraftTree], pieces: Sequence[Piece] = ()
    ) -> Verified:
        assert not pieces, "its prompts are run whole"
        verified = super().verify([handle.own for handle in handles], trees)
        best, p = verified.logits.argmax(-1), verified.logits.float().softmax(-1)
        changes = p.new_zeros(len(p), 2)
        for other in range(len(self.others)):
            seen = super().verify([handle.others[other] for handle in handles], trees).logits
            far = total_variation(p, seen.float().softmax(-1))
            differs = (seen.argmax(-1) != best).float()
            changes = torch.maximum(changes, torch.stack([differs, far.float()], -1))
        return verified._replace(visual_mass=(), hidden=changes)

    def append(self, handle: Any, tokens: Sequence[int]) -> None:
        for each in (handle.own, *handle.others):
            super().append(each, tokens)

    def commit(self, handle: Any, nodes: Sequence[int]) -> None:
        for each in (handle.own, *handle.others):
            super().commit(each, nodes)

    def release(self, handle: Any) -> None:
        for each in (handle.own, *handle.others):
            super().release(each)


def _rows(value: Tensor, count: int) -> Tensor:
    """The same for each of ``count`` rows."""
    return value.repeat(count, *[1] * (value.ndim - 1))
