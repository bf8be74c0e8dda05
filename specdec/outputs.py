"""What a call of ``generate`` gives back: to a streamer token by token, and at the end.

Rows advance at their own pace; here they become the columns that transformers speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from specdec.arguments import Prepared
from specdec.engine import Request
from specdec.states import Shown, gives_keys
from specdec.stats import AcceptanceStats


def sequences_of(prepared: Prepared, requests: Sequence[Request]) -> Tensor:
    """Prompts and answers ``(B, T)``; rows that ended early are padded."""
    prompt = prepared.input_ids
    length = max(request.length for request in requests)
    sequences = prompt.new_full((len(requests), length), prepared.pad_token)
    sequences[:, : prompt.shape[1]] = prompt
    for row, request in zip(sequences, requests, strict=True):
        row[prompt.shape[1] : request.length] = request.ids[prompt.shape[1] : request.length]
    return sequences


def assemble(
    prepared: Prepared,
    requests: Sequence[Request],
    sequences: Tensor,
    shown: Shown,
    stats: AcceptanceStats,
) -> Any:
    """What ``generate`` returns."""
    ledger = [request.ledger for request in requests]
    if not prepared.generation_config.return_dict_in_generate:
        result: Any = sequences  # a tensor takes attributes
        result.stats, result.ledger = stats, ledger
        return result
    longest = sequences.shape[1] - prepared.input_ids.shape[1]
    output: Any = GenerateDecoderOnlyOutput  # annotated with one-element tuples
    out = output(
        sequences=sequences,
        scores=_columns([request.scores for request in requests], longest),
        logits=_columns([request.logits for request in requests], longest),
        hidden_states=shown.hidden_states,
        attentions=shown.attentions,
        past_key_values=prepared.model_kwargs["past_key_values"] if gives_keys(prepared) else None,
    )
    out.stats, out.ledger = stats, ledger
    return out


def _columns(rows: list[list[Tensor]], longest: int) -> tuple[Tensor, ...] | None:
    """Per token one tensor ``(B, V)``; a row that ended early repeats its last entry."""
    if not rows[0]:
        return None
    return tuple(
        torch.stack([row[min(column, len(row) - 1)] for row in rows]) for column in range(longest)
    )


class Columns:
    """Feeds a streamer as ``generate`` does: the prompt, then one token of every row at a time.

    Rows advance at their own pace; a column goes out once every unfinished row has reached it.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._streamer = prepared.streamer
        self._prompt = prepared.input_ids
        self._pad = prepared.pad_token
        self._sent = 0

    def start(self) -> None:
        if self._streamer is not None:
            self._streamer.put(self._prompt.cpu())

    def advance(self, requests: list[Request]) -> None:
        if self._streamer is None:
            return
        outputs = [request.output for request in requests]
        unfinished = [len(r.output) for r in requests if not r.finished]
        ready = min(unfinished) if unfinished else max(map(len, outputs))
        for column in range(self._sent, ready):
            tokens = [out[column] if column < len(out) else self._pad for out in outputs]
            self._streamer.put(torch.tensor(tokens))
        self._sent = ready
