"""A transformers model that reads and writes paged keys and values.

Knows nothing of drafting or acceptance. Between two calls the model is exactly as its owner left
it: the attention implementation is switched for the duration of a forward only.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import PagedKV, SequenceKV
from specdec.kernels import MAX_SCRATCH, TreeBatch
from specdec.runtime import hook
from specdec.runtime.bypass import Bypass
from specdec.runtime.dense import DenseForward
from specdec.runtime.gaze import Gaze, looked
from specdec.runtime.hook import PrefillRow
from specdec.runtime.last_hidden import LastHidden
from specdec.runtime.node_batch import NodeBatch, model_inputs
from specdec.runtime.paged_cache import PagedCache
from specdec.runtime.seam import seam_of
from specdec.runtime.shards import of_all_heads, shards_of
from specdec.runtime.taps import Taps

_IMPLEMENTATION = "_attn_implementation_internal"
PIECE = MAX_SCRATCH  # tokens of a text that are run at once


class PagedModel:
    """Runs ``model`` over pages.

    Args:
        model: a decoder-only transformers model, text-only or vision-language.
        page_size: tokens a page.
        kv_cache_bytes: what keys and values may take in all; ``None`` grows as needed.
        cache: what the model gets as ``past_key_values``.
        flags_visual: keep note of which keys are those of visual tokens, for ``visual_mass``.
        keeps_hidden: keep what the output embeddings read, for ``hidden``.
        taps: layers whose inputs are kept, for ``states``.
        remembers: keep them in the pages, too, for :meth:`remembered`.
        watches: note where the last tokens of prompts look, for ``gaze``.

    Attributes:
        remembers: as above.
        visual_mass: of the last :meth:`forward`, per attention layer, float32 ``(N, Hq)``: how much
            of each node's attention went to visual tokens. Empty if they are not flagged.
        hidden: of the last :meth:`forward` that gave the logits of all rows, ``(N, H)``: what the
            output embeddings made them of. ``None`` if it is not kept.
        gaze: of the last forward, per text float32 ``(L,)``: how much its watched token looked at
            each of its keys, its own being the last; ``None`` of texts without one, or of layers
            that change their keys after caching them.
        states: what went into the tapped layers: of the last :meth:`forward` ``(N, layers * H)``,
            of the last :meth:`prefill` ``(B, T, layers * H)``. ``None`` if there are none.

    Raises:
        ValueError: the model's attention cannot be replaced through transformers' interfaces, or
            its layers keep states, which only a :class:`StatefulModel` looks after, or hidden
            states are to be kept of a model without output embeddings.
    """

    _keeps_states = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        page_size: int = 16,
        kv_cache_bytes: int | None = None,
        cache: type[PagedCache] = PagedCache,
        flags_visual: bool = False,
        keeps_hidden: bool = False,
        taps: Sequence[int] = (),
        remembers: bool = False,
        watches: bool = False,
    ) -> None:
        self.model = model
        self.kv = PagedKV(page_size, flags_visual=flags_visual)
        self.visual_mass: list[Tensor] = []
        self.hidden: Tensor | None = None
        self.states: Tensor | None = None
        self.gaze: list[Tensor | None] = []
        self._watches = watches
        self._head = LastHidden(model) if keeps_hidden else None
        self._taps = Taps(model, taps) if taps else None
        self.remembers = remembers
        self._budget = kv_cache_bytes
        text_config = model.config.get_text_config(decoder=True)
        self.cache = cache(text_config)
        self.shards = shards_of(model)
        self._layers: int = text_config.num_hidden_layers
        if self.cache.keeps_states and not self._keeps_states:
            raise ValueError(
                f"{type(model).__name__} keeps more of a text than keys, by linear attention or "
                "cross-attention; specdec runs such models as verifiers only"
            )
        self._expands = False  # its layers change their keys after caching them
        self.seconds = 0.0  # spent inside the model's own forward
        self._seam = seam_of(model)
        self._embedding = model.get_input_embeddings()
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def prefill(self, inputs: Mapping[str, Any], rows: Sequence[PrefillRow]) -> Tensor:
        """Run whole prompts and commit their keys.

        Args:
            inputs: what the model's forward takes, without a cache; rows are left-padded.
            rows: those that are wanted, each with an empty sequence.

        Returns:
            logits ``(len(rows), V)`` at each row's last token.

        Raises:
            OutOfPages: the page limit is reached.
        """
        ids = inputs.get("input_ids")
        length = (ids if ids is not None else inputs["inputs_embeds"]).shape[1]
        for row in rows:
            self.kv.extend(row.sequence, range(length - row.start))
        gaze = Gaze(self._layers) if self._watches else None
        logits = self._run(hook.Prefill(self.kv, rows, gaze), inputs)[:, -1]
        self.gaze = looked(gaze, len(rows), self.shards)
        if self.states is not None:
            self._remember((row.sequence, self.states[row.row, row.start :]) for row in rows)
        self.set_limit()
        for row in rows:
            self.kv.commit(row.sequence, range(len(row.sequence.scratch_depths)))
        return logits if len(rows) == len(logits) else logits[[row.row for row in rows]]

    def forward(
        self,
        batch: Sequence[NodeBatch],
        *,
        keep: Tensor | None = None,
        bypass: Bypass | None = None,
    ) -> Tensor:
        """Run the new nodes of all sequences in one forward; they stay as scratch.

        Args:
            batch: at most one entry per sequence.
            keep: rows whose logits are wanted, int64 ``(K,)``; ``None`` is all.
            bypass: layers that are left out.

        Returns:
            logits ``(N, V)``, or ``(K, V)``: the packed nodes in the order of ``batch``.

        Raises:
            OutOfPages: the page limit is reached; no sequence has changed.
        """
        with self._extended(batch):
            inputs = model_inputs(batch, self._embedding)
            if keep is not None and self._keeps_logits:
                inputs["logits_to_keep"] = keep
            rows = [
                hook.TreeRows(nodes.sequence, len(nodes.tokens), nodes.visible, nodes.watched)
                for nodes in batch
            ]
            logits = self._over_nodes(rows, inputs, bypass)[0]
            if self.states is not None:
                self.states = self.states[0]
                states = self.states.split([len(nodes.tokens) for nodes in batch])
                self._remember(zip((nodes.sequence for nodes in batch), states, strict=True))
            self.set_limit()
            return logits if keep is None or self._keeps_logits else logits[keep]

    def append(self, texts: Sequence[NodeBatch]) -> tuple[Tensor, list[Tensor]]:
        """Run and commit what comes next in some texts, each a chain behind what is committed.

        Long ones are run piece by piece: a tree has its limits, a text has none.

        Returns:
            logits ``(len(texts), V)`` behind each text's last token; and the tapped states of all
            tokens, per text ``(n, layers * H)``, empty if there are none.

        Raises:
            OutOfPages: the page limit is reached; some of it may have been committed.
        """
        logits: dict[int, Tensor] = {}
        looked: dict[int, Tensor | None] = {}
        states: list[list[Tensor]] = [[] for _ in texts]
        for start in range(0, max(len(text.tokens) for text in texts), PIECE):
            pieces = {}
            for index, text in enumerate(texts):
                tokens = text.tokens[start : start + PIECE]
                if tokens:
                    last = start + len(tokens) == len(text.tokens)
                    pieces[index] = text._replace(
                        tokens=tokens,
                        depths=range(len(tokens)),
                        watched=len(tokens) - 1 if last and self._watches else None,
                    )
            sizes = [len(piece.tokens) for piece in pieces.values()]
            keep = torch.tensor([end - 1 for end in accumulate(sizes)])
            logits |= zip(pieces, self.forward(list(pieces.values()), keep=keep), strict=True)
            looked |= zip(pieces, self.gaze, strict=True)
            if self.states is not None:
                for index, part in zip(pieces, self.states.split(sizes), strict=True):
                    states[index].append(part)
            for piece in pieces.values():
                self.commit(piece.sequence, range(len(piece.tokens)))
        self.gaze = [looked[index] for index in range(len(texts))]
        behind = torch.stack([logits[index] for index in range(len(texts))])
        return behind, [torch.cat(parts) for parts in states if parts]

    def remembered(self, sequence: SequenceKV) -> Tensor:
        """The tapped states ``(committed, layers * H)`` of all tokens, whoever computed them."""
        slots = self.kv.slots(sequence, 0, sequence.committed)
        states: Tensor = self.kv.layer(self._layers)[0][0, 0, slots]
        return states

    def _remember(self, nodes: Iterable[tuple[SequenceKV, Tensor]]) -> None:
        """Keep the states of sequences' last nodes, as the keys of one more layer."""
        if self.remembers:
            each = list(nodes)
            requests = [self.kv.request(sequence, len(states)) for sequence, states in each]
            states = torch.cat([states for _, states in each])[None, None]
            target = TreeBatch(requests, self.kv.page_size).target(states.device)
            self.kv.write(self._layers, target, states, states[..., :0])

    def commit(self, sequence: SequenceKV, nodes: Sequence[int]) -> None:
        """Keep these scratch nodes, a path from the first, and drop the others."""
        self.kv.commit(sequence, nodes)

    @contextmanager
    def _extended(self, batch: Sequence[NodeBatch]) -> Iterator[None]:
        """Add the nodes to their sequences; on an exception within, take them back."""
        grown: list[tuple[SequenceKV, int]] = []
        try:
            for nodes in batch:
                self.kv.extend(nodes.sequence, nodes.depths)
                grown.append((nodes.sequence, len(nodes.depths)))
            yield
        except BaseException:
            for sequence, count in grown:
                del sequence.scratch_depths[-count:]
            raise

    def _over_nodes(
        self,
        rows: Sequence[hook.TreeRows],
        inputs: Mapping[str, Any],
        bypass: Bypass | None = None,
    ) -> Tensor:
        if not self._expands:
            try:
                watched = any(row.watched is not None for row in rows)
                gaze = Gaze(self._layers) if watched else None
                forward = hook.TreeForward(self.kv, rows, gaze)
                logits = self._run(forward, inputs, bypass)
                self.visual_mass = of_all_heads(forward.visual_mass, self.shards)
                self.gaze = looked(gaze, len(rows), self.shards)
                return logits
            except hook.KeysChanged:  # by the first layer; once in the life of a model
                self._expands = True
        if self.kv.visual is not None:
            raise ValueError(
                f"{type(self.model).__name__} changes its keys after caching them, as multi-head "
                "latent attention does; specdec gives no visual mass of such models"
            )
        self.gaze = [None] * len(rows)
        return self._run(DenseForward(self.kv, rows), inputs, bypass)

    def _run(
        self,
        forward: hook.Prefill | hook.OverNodes,
        inputs: Mapping[str, Any],
        bypass: Bypass | None = None,
    ) -> Tensor:
        # Through vars(): a config's own __setattr__ takes longer than all the rest.
        configs = [vars(config) for config in self._seam.text_configs]
        with self._seam.switching:
            token = hook.CURRENT.set(forward)
            before = [config[_IMPLEMENTATION] for config in configs]
            try:
                for config in configs:
                    config[_IMPLEMENTATION] = hook.NAME
                began = time.perf_counter()
                with ExitStack() as watching:
                    if self._head is not None:
                        watching.enter_context(self._head.watched())
                    if bypass is not None:
                        watching.enter_context(bypass.active())
                    if self._taps is not None:
                        watching.enter_context(self._taps.watched())
                    out = self.model(
                        **inputs, past_key_values=self.cache, use_cache=True, return_dict=True
                    )
                self.seconds += time.perf_counter() - began
            finally:
                for config, name in zip(configs, before, strict=True):
                    config[_IMPLEMENTATION] = name
                hook.CURRENT.reset(token)
        logits: Tensor = out.logits
        if self._head is not None and not isinstance(forward, hook.Prefill):
            self.hidden = self._head.take(logits)
        if self._taps is not None:
            self.states = self._taps.take()
        return logits

    def set_limit(self) -> None:
        """Turn the budget into a number of pages, once there are keys: only then is known what a
        page takes, as layers differ in heads, dtypes and sharing.
        """
        if self._budget is not None:
            limit = max(1, self._budget // self.kv.bytes_per_page)
            self.kv.allocator.limit = self.shards.least(limit) if self.shards else limit
            self._budget = None
