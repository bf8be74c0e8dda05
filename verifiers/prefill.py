"""Prompts into pages: what of them is known already, and what has to be run.

Knows nothing of trees, drafting or acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.cache import SequenceKV
from specdec.interfaces import Encoded, Prefilled, Prompt, Ready, VerifierSpec
from specdec.runtime import NodeBatch, PagedModel, PrefillRow
from specdec.tree import DraftTree
from specdec.verifiers.encoding import positions_of, prepared_inputs
from specdec.verifiers.key_transfer import read_row
from specdec.verifiers.page_keys import RowKeys, lead, prompt_keys


class Begun(NamedTuple):
    """Of a prompt that is run piece by piece: what is known of it, what the pages are known by that
    it has yet to fill, and how many tokens were there already.
    """

    encoded: Encoded
    missing: frozenset[bytes]
    cached: int


@dataclass(slots=True, eq=False)
class Handle:
    """What a verifier knows a request by.

    ``text``: the committed tokens, ``None`` if not all are known. ``offset``: int64 ``(R,)``,
    what is added to a logical index to get its position. ``tree``: the last one that was verified.
    ``prompt``: tokens of the prompt. ``steps``: trees verified so far. ``begun``: set while
    ``text`` is still to be run, from what is committed on. ``named``: others that begin with this
    text may find its pages.
    """

    sequence: SequenceKV
    text: list[int] | None
    offset: Tensor
    tree: DraftTree | None = None
    prompt: int = 0
    steps: int = 0
    begun: Begun | None = None
    named: bool = True


class Prefiller:
    """Runs prompts over a paged model.

    Args:
        model: the model.
        spec: what is known of it.
        paged: the same over pages.
        gaze: whether to say how much each prompt's last token looked at the others.
        counts_padding: whether a row's padding changes what the model makes of it.

    Attributes:
        seconds: inside the model's forward, so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: VerifierSpec,
        paged: PagedModel,
        gaze: bool,
        *,
        counts_padding: bool,
    ) -> None:
        self.seconds = 0.0
        self._model = model
        self._spec = spec
        self._paged = paged
        self._gaze = gaze
        self._counts_padding = counts_padding

    def run(
        self, prompt: Prompt, room: int, rows: Sequence[int] | None, *, shares: bool
    ) -> Prefilled:
        """Run these rows of a prompt; ``shares``: compare them with what there is in the cache."""
        kv, padding = self._paged.kv, prompt.padding
        chosen = range(len(padding)) if rows is None else rows
        texts = [prompt.input_ids[row, padding[row] :].tolist() for row in chosen]
        visual = self._spec.visual_token_ids
        if shares:
            keys = prompt_keys(prompt, visual, kv.page_size, by_padding=self._counts_padding)
        else:
            rows_of = zip(prompt.input_ids.tolist(), padding, strict=True)
            keys = [RowKeys([], lead(row[pad:], visual, kv.page_size)) for row, pad in rows_of]
        inputs = prepared_inputs(self._model, prompt, self._paged)
        given = inputs.get("position_ids")
        positions = [positions_of(given, row, padding[row], prompt.input_ids) for row in chosen]
        twins = list(range(len(texts)))
        if shares:
            twins = _twins(texts, [keys[row] for row in chosen])
        handles: dict[int, Handle] = {}
        logits: dict[int, Tensor] = {}
        states: dict[int, Tensor] = {}
        gaze: dict[int, Tensor | None] = {}
        began = self._paged.seconds
        try:
            for i, (row, text) in enumerate(zip(chosen, texts, strict=True)):
                if twins[i] == i:
                    sequence = self._begin(text, keys[row], room)
                    if self._counts_padding:
                        sequence.beside = padding[row]
                    offset = positions[i][:, -1] + 1 - len(text)
                    handles[i] = Handle(sequence, text, offset, prompt=len(text))
                    handles[i].named = keys[row].say_all
            cached = {i: handle.sequence.committed for i, handle in handles.items()}
            fresh = [i for i, count in cached.items() if count == 0]
            if fresh:
                first = [
                    PrefillRow(chosen[i], handles[i].sequence, padding[chosen[i]]) for i in fresh
                ]
                logits |= zip(fresh, self._paged.prefill(inputs, first), strict=True)
                gaze |= zip(fresh, self._paged.gaze, strict=True)
                for i in fresh:
                    if self._paged.states is not None:
                        states[i] = self._paged.states[chosen[i], padding[chosen[i]] :]
                    places = [place for place, token in enumerate(texts[i]) if token in visual]
                    kv.flag_visual(handles[i].sequence, places)
            found = [i for i, count in cached.items() if count > 0]
            if found:
                if self._paged.states is not None:
                    states |= {i: self._paged.remembered(handles[i].sequence) for i in found}
                behind, read = self._go_on([handles[i] for i in found])
                logits |= zip(found, behind, strict=True)
                gaze |= zip(found, self._paged.gaze, strict=True)
                for i, new in zip(found, read, strict=bool(read)):
                    states[i] = torch.cat([states[i], new])
        except BaseException:
            for handle in handles.values():
                kv.free(handle.sequence)
            raise
        self.seconds += self._paged.seconds - began
        for i, twin in enumerate(twins):
            if twin != i:
                same = handles[twin]
                handles[i] = Handle(kv.fork(same.sequence), list(texts[i]), same.offset)
                handles[i].prompt = same.prompt
                handles[i].sequence.beside = same.sequence.beside
                cached[i] = len(texts[i])
        order = range(len(texts))
        return Prefilled(
            [handles[i] for i in order],
            torch.stack([logits[twins[i]] for i in order]),
            [cached[i] for i in order],
            [states[twins[i]] for i in order] if states else (),
            positions,
            [gaze[twins[i]] for i in order] if self._gaze else (),
        )

    def take_over(self, ready: Ready, room: int, rows: Sequence[int] | None) -> Prefilled:
        """Copy the keys of these rows into pages."""
        kv = self._paged.kv
        handles: list[Handle] = []
        chosen = range(len(ready.padding)) if rows is None else rows
        try:
            for row in chosen:
                sequence = kv.add(room + ready.cache.get_seq_length())
                handles.append(Handle(sequence, None, ready.positions[:, row] + 1))
                read_row(kv, sequence, ready.cache, row, ready.padding[row])
                self._paged.set_limit()
                handles[-1].offset -= sequence.committed
        except BaseException:
            for handle in handles:
                kv.free(handle.sequence)
            raise
        return Prefilled(handles, ready.logits[list(chosen)], [ready.cached[row] for row in chosen])

    def _go_on(self, handles: Sequence[Handle]) -> tuple[Tensor, list[Tensor]]:
        """Run and commit what is left of the texts; logits ``(len(handles), V)`` behind them, and
        their tapped states.
        """
        batch = []
        for handle in handles:
            assert handle.text is not None
            rest = handle.text[handle.sequence.committed :]
            batch.append(NodeBatch(handle.sequence, rest, range(len(rest)), None, handle.offset))
        return self._paged.append(batch)

    def _begin(self, text: Sequence[int], keys: RowKeys, room: int) -> SequenceKV:
        """A sequence with what is cached of ``text``: not its last token, whose logits are wanted,
        and nothing if an image is left to be read.
        """
        kv = self._paged.kv
        most = (keys.lead + len(text) - 1) // kv.page_size
        sequence = kv.add(room, keys.pages[:most], keys.lead)
        if not self._spec.visual_token_ids.isdisjoint(text[sequence.committed :]):
            kv.free(sequence)
            sequence = kv.add(room, lead=keys.lead)
        kv.name(sequence, keys.pages[len(sequence.keys) :])
        return sequence


def _twins(texts: Sequence[list[int]], keys: Sequence[RowKeys]) -> list[int]:
    """For each row the first that is the same, pixels included; itself if there is none."""
    firsts: dict[Any, int] = {}
    # All pixels are in full pages, so the keys speak of all of them.
    rows = enumerate(zip(texts, keys, strict=True))
    return [
        firsts.setdefault((tuple(text), tuple(known.pages)), i) if known.say_all else i
        for i, (text, known) in rows
    ]
