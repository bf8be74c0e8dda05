"""The seam with transformers: an attention function and a mask function.

transformers looks both functions up by name, ``specdec``, in every text layer of a model whose text
config names it. What they do depends on the forward that is current in this context:

- none: what ``sdpa`` does, so others may call the model while the name is set;
- a :class:`Prefill`: the same, and the cache stores the keys of each row's real tokens;
- a :class:`TreeForward`: the nodes of all requests, packed into one row; each attends to its own
  request's pages;
- a ``dense.DenseForward``: the same for layers that change their keys after caching them.

What tree nodes see comes from the model's own mask function, evaluated on logical positions, so
sliding and chunked layers need no code per model: what transformers passes on as the mask of a
layer is then where each node's window begins. A logical position is a place in the whole text, of
which a sequence may leave some out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from specdec.cache import PagedKV, SequenceKV
from specdec.kernels import Backend, TreeBatch, backend, dense_attention
from specdec.runtime.gaze import Gaze, row_of, within

NAME = "specdec"
CURRENT: ContextVar[Prefill | OverNodes | None] = ContextVar("specdec_forward", default=None)


class KeysChanged(ValueError):
    """A layer attends to other keys or values than those it was handed after caching."""


class OverNodes(Protocol):
    """A forward over tree nodes."""

    @property
    def cached(self) -> int:
        """The most tokens that a sequence of this forward has committed."""

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the nodes' keys and values, and return what the layer goes on with."""

    def mask(
        self, mask_function: Callable[..., Tensor], dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """What the layers get as their attention mask."""


class PrefillRow(NamedTuple):
    """Row ``row`` of a prefill: its tokens ``[start, T)`` go to the sequence, ``[0, start)`` is
    padding. Rows that nobody names are computed and dropped.
    """

    row: int
    sequence: SequenceKV
    start: int


class Prefill:
    """A forward over whole prompts, left-padded; valid during that forward only.

    Attributes:
        places: int64 ``(T,)``: what places its tokens have in their text, if it is of one sequence
            that leaves some out; else ``None``.
    """

    cached = 0

    def __init__(self, kv: PagedKV, rows: Sequence[PrefillRow], gaze: Gaze | None = None) -> None:
        self._kv = kv
        self._gaze = gaze
        self.places = rows[0].sequence.places if len(rows) == 1 else None
        self._rows = [
            (slice(row, row + 1), start, kv.slots(sequence, 0, sequence.length))
            for row, sequence, start in rows
        ]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the real tokens' keys ``(B, Hkv, T, D)`` and values ``(B, Hkv, T, Dv)``; returns
        both.
        """
        for row, start, slots in self._rows:
            self._kv.write(layer, slots, keys[row, :, start:], values[row, :, start:])
        return keys, values

    def look(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        """Note where the rows' last tokens look in this layer, if that is asked for."""
        if self._gaze is None or not self._gaze.next_layer():
            return
        for text, (row, start, _) in enumerate(self._rows):
            keys = slice(start, key.shape[2])
            seen = row_of(mask, row.start, keys)
            own = query[row, :, -1:], key[row, :, keys]
            self._gaze.add(text, *own, seen, scale, softcap, sinks)


class TreeRows(NamedTuple):
    """``nodes`` new tree nodes of one sequence, already added as its last scratch nodes.

    ``visible`` is bool ``(nodes, scratch)``: which scratch nodes each new node may see, itself
    included; ``None`` is all up to itself. ``watched``: one of the new nodes, whose gaze is wanted:
    the first, or any of a chain.
    """

    sequence: SequenceKV
    nodes: int
    visible: Tensor | None
    watched: int | None = None


class TreeForward:
    """A forward over packed tree nodes ``(1, N)``; valid during that forward only.

    Attributes:
        visual_mass: per attention layer, in order: float32 ``(N, Hq)``; see
            :class:`specdec.kernels.Attended`. Empty if visual tokens are not flagged.
    """

    def __init__(self, kv: PagedKV, rows: Sequence[TreeRows], gaze: Gaze | None = None) -> None:
        self._kv = kv
        self.rows = rows
        self._gaze = gaze
        self._batch = TreeBatch([kv.request(*row[:3]) for row in rows], kv.page_size, kv.visual)
        self.unpaged: frozenset[int] = frozenset()  # ids of keys that are in no page
        # Every layer's pools, by the ids of its new keys and values.
        self._pools: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        # Alive until the end of the forward, so that ids stay unique.
        self._new: list[tuple[Tensor, Tensor]] = []
        self.visual_mass: list[Tensor] = []
        self._backend: Backend | None = None  # known with the first keys

    @property
    def cached(self) -> int:
        """The most tokens that a sequence of this forward has committed."""
        return max(request.committed for request in self._batch.requests)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the nodes' keys ``(1, Hkv, N, D)`` and values ``(1, Hkv, N, Dv)``; returns both:
        attention finds its pages through them.
        """
        pools = self._kv.pools(layer, keys, values)
        self._pools[id(keys), id(values)] = pools
        self._new.append((keys, values))
        if self._backend is None:
            self._backend = backend(keys.device)
        self._backend.store(*pools, self._batch, keys, values)
        return keys, values

    def mask(
        self, mask_function: Callable[..., Tensor], dtype: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """The first logical position that each node may see, int64 ``(1, 1, N, 1)``; ``None`` if
        that is the beginning.

        Raises:
            RuntimeError: the model lets a node see something else than all from there to itself.
        """
        plain: Any = causal_mask_function
        if mask_function is plain:
            return None
        positions = [
            sequence.end + depth
            for sequence, count, *_ in self.rows
            for depth in sequence.scratch_depths[len(sequence.scratch_depths) - count :]
        ]
        queries = torch.tensor(positions, device=device)[None, None, :, None]
        keys = torch.arange(max(positions) + 1, device=device)[None, None, None]
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
        allowed = mask_function(zero, zero, queries, keys).expand(1, 1, len(positions), -1)
        first = allowed.int().argmax(-1, keepdim=True)
        window = (keys >= first) & (keys <= queries)
        torch._assert_async(
            (allowed == window).all(), "this model's attention mask is no window; specdec needs one"
        )
        return self._indices(first)

    def _indices(self, first: Tensor) -> Tensor:
        """Places in the text ``(1, 1, N, 1)`` as each node's own sequence counts them."""
        if all(sequence.places is None for sequence, *_ in self.rows):
            return first
        parts = first.flatten().split([count for _, count, *_ in self.rows])
        each = zip(self.rows, parts, strict=True)
        return torch.cat([row.sequence.index(part) for row, part in each])[None, None, :, None]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        first: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of the nodes ``(1, Hq, N, D)`` over their pages; returns ``(1, N, Hq, Dv)``."""
        pools = self._pools.get((id(key), id(value)))
        if pools is None or self._backend is None:
            raise KeysChanged("a text layer changed its keys or values after caching them")
        if first is not None and first.is_floating_point():
            raise ValueError("a text layer makes a mask of its own; specdec cannot run this model")
        out, mass = self._backend.tree_attention(
            query,
            *pools,
            self._batch,
            scale=scale,
            first=first,
            softcap=softcap,
            sinks=sinks,
        )
        if mass is not None:
            self.visual_mass.append(mass)
        if self._gaze is not None and self._gaze.next_layer():
            self._look(self._gaze, query, pools[0], first, scale, softcap, sinks)
        return out.transpose(1, 2)

    def _look(
        self,
        gaze: Gaze,
        query: Tensor,
        keys: Tensor,
        first: Tensor | None,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> None:
        """Note where the watched nodes look in this layer: one query each, over its own keys."""
        start = 0
        for text, (sequence, count, _, watched) in enumerate(self.rows):
            if watched is not None:
                node = start + watched
                length = sequence.length - count + watched + 1
                key = keys[:, :, self._kv.slots(sequence, 0, length)]
                seen = within(first, node, length, key.device)
                own = query[:, :, node : node + 1]
                gaze.add(text, own, key, seen, scale, softcap, sinks)
            start += count


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,  # transformers passes what any backend might need
) -> tuple[Tensor, None]:
    """transformers' attention signature: ``(B, H, T, D)`` in, ``(B, T, H, D)`` out."""
    forward = CURRENT.get()
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if isinstance(forward, TreeForward) and id(key) not in forward.unpaged:
        return forward.attend(query, key, value, attention_mask, scale, softcap, s_aux), None
    if isinstance(forward, Prefill):
        forward.look(query, key, attention_mask, scale, softcap, s_aux)
    over_nodes = forward is not None and not isinstance(forward, Prefill)
    if softcap is None and s_aux is None and not over_nodes:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out, None
    if attention_mask is None and query.shape[2] > 1 and not over_nodes:  # sdpa's is_causal
        attention_mask = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
        ).tril_(key.shape[2] - query.shape[2])[None, None]
    dense = dense_attention(
        query, key, value, attention_mask, scale=scale, softcap=softcap, sinks=s_aux
    )
    return dense.transpose(1, 2).contiguous(), None


def mask(*, mask_function: Callable[..., Tensor], **kwargs: Any) -> Tensor | None:
    """transformers' mask signature."""
    forward = CURRENT.get()
    if forward is not None and not isinstance(forward, Prefill):
        return forward.mask(mask_function, kwargs["dtype"], kwargs["device"])
    if forward is not None and forward.places is not None:
        mask_function = _by_places(mask_function, forward.places.to(kwargs["device"]))
        kwargs["allow_is_causal_skip"] = False
    result: Tensor | None = sdpa_mask(mask_function=mask_function, **kwargs)
    return result


def _by_places(mask_function: Callable[..., Tensor], places: Tensor) -> Callable[..., Tensor]:
    """The same mask for tokens at these places."""

    def moved(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return mask_function(row, head, places[query], places[key])

    return moved


def register() -> None:
    """Make the name known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
