"""One request's state: its tokens, its rules for choosing and for stopping. Knows no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.engine.together import Together
from specdec.interfaces import DraftRequest, Prompt
from specdec.stats import AcceptanceStats


class Emission(NamedTuple):
    """One token of an answer. ``drafted``: a drafter proposed it and the verifier kept it."""

    request_id: int
    token: int
    drafted: bool


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a request's tokens are chosen and where its answer ends.

    Attributes:
        max_length: most tokens in all, padded prompt included.
        do_sample: draw from the distribution; else take its argmax.
        temperature: what drafters are told; the processors are what is applied.
        processor: ``(ids (1, T), logits (1, V)) -> scores (1, V)``; ``None`` changes nothing.
            Called once per position of the answer and in order, as plain decoding would.
        stopping: ``(ids (1, T), scores) -> bool``, called after every token; ``None`` never stops.
        eos_token_ids: tokens that end the answer.
        generator: source of randomness; ``None`` is torch's global one.
        keep_scores: record the processed scores of every token.
        keep_logits: record the raw logits of every token.
        together: rules that see all rows of the batch; then ``processor`` and ``stopping`` are
            ``None``.
        keep_keys: a finished request keeps its handle, until the engine is closed.
    """

    max_length: int
    do_sample: bool = False
    temperature: float = 1.0
    processor: Callable[[Tensor, Tensor], Tensor] | None = None
    stopping: Callable[[Tensor, Any], bool] | None = None
    eos_token_ids: frozenset[int] = frozenset()
    generator: torch.Generator | None = None
    keep_scores: bool = False
    keep_logits: bool = False
    together: Together | None = None
    keep_keys: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """A request that the engine runs.

    Attributes:
        prompt: the batch that the request's row belongs to.
        view: what drafters see; its ``tokens`` are the prompt without padding, and the output.
        decoding: how to choose and when to stop.
        ids: int64 ``(max_length,)``: the padded prompt and the output, on the CPU or where the
            prompt was.
        length: how much of ``ids`` is filled.
        row: which row of its batch the request is.
        handle: the verifier's; ``None`` while the request holds no keys.
        finished: the answer is complete.
        scores: per output token its processed scores ``(V,)``, if kept.
        logits: per output token its raw logits ``(V,)``, if kept.
    """

    prompt: Prompt
    view: DraftRequest
    decoding: Decoding
    ids: Tensor
    length: int
    row: int = 0
    handle: Any = None
    finished: bool = False
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    @classmethod
    def from_row(cls, request_id: int, prompt: Prompt, row: int, decoding: Decoding) -> Request:
        """The request of one row of ``prompt``."""
        padded = prompt.input_ids[row]
        tokens = padded[prompt.padding[row] :].tolist()
        ids = padded.new_empty(decoding.max_length)
        ids[: len(padded)] = padded
        view = DraftRequest(
            id=request_id,
            tokens=tokens,
            prompt_length=len(tokens),
            max_depth=0,
            temperature=decoding.temperature if decoding.do_sample else 0.0,
            generator=decoding.generator,
        )
        return cls(prompt, view=view, decoding=decoding, ids=ids, length=len(padded), row=row)

    @property
    def output(self) -> list[int]:
        """The answer so far."""
        return self.view.tokens[self.view.prompt_length :]

    def process(self, logits: Tensor) -> Tensor:
        """The scores ``(V,)`` behind the last token, given its raw ``logits (V,)``."""
        scores = logits.to(device=self.ids.device, dtype=torch.float32)
        if self.decoding.processor is None:
            return scores
        # A copy: processors may change what they are given.
        return self.decoding.processor(self.ids[None, : self.length], scores.clone()[None])[0]

    def emit(self, token: int) -> None:
        """Append a token and decide whether it ends the answer."""
        self.ids[self.length] = token
        self.length += 1
        self.view.tokens.append(token)
        self.stats.num_generated_tokens += 1
        decoding = self.decoding
        self.finished = token in decoding.eos_token_ids or self.length >= decoding.max_length
        if decoding.stopping is not None:
            scores = tuple(score[None] for score in self.scores) or None
            self.finished |= decoding.stopping(self.ids[None, : self.length], scores)
