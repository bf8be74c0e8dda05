"""One request's state: its tokens, its rules for choosing and for stopping. Knows no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from specdec.acceptance import Rule
from specdec.engine.estimates import needs
from specdec.engine.together import Together
from specdec.guards import GuardState
from specdec.interfaces import DraftRequest, Prompt
from specdec.ledger import Entry
from specdec.stats import AcceptanceStats
from specdec.tree import chain

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


class Logprobs(NamedTuple):
    """Natural logarithms of the model's own probabilities, before any processor.

    Attributes:
        own: of the token that was chosen.
        top: the most probable tokens with theirs, best first.
    """

    own: float
    top: tuple[tuple[int, float], ...]


class Emission(NamedTuple):
    """One token of an answer.

    Attributes:
        request_id: the row that it belongs to.
        token: its id.
        drafted: a drafter proposed it and the verifier kept it.
        relaxed: lossless acceptance would not have.
        spent: what relaxed acceptance spent on it of its bound.
        logprobs: if they were asked for.
    """

    request_id: int
    token: int
    drafted: bool
    relaxed: bool = False
    spent: float = 0.0
    logprobs: Logprobs | None = None


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
        rule: decides how far a tree is accepted; ``None`` is losslessly.
        keep_keys: a finished request keeps its handle, until the engine is closed.
        drafts: whether anything may be drafted for it.
        top_logprobs: give every token's :class:`Logprobs`, with so many alternatives; ``None``
            gives none.
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
    rule: Rule | None = None
    keep_keys: bool = False
    drafts: bool = True
    top_logprobs: int | None = None


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
        finish_reason: why it ended: a stop token or criterion, its length, from outside, or an
            error; ``None`` while it goes on.
        error: what went wrong, if something did.
        priority: requests with a higher one are let in first.
        drafts: whether anything may be drafted for it.
        held: nothing was to be drafted in its last step, because that would not have paid.
        scores: per output token its processed scores ``(V,)``, if kept.
        logits: per output token its raw logits ``(V,)``, if kept.
        ledger: per output token how it was accepted; empty without a rule.
    """

    prompt: Prompt
    view: DraftRequest
    decoding: Decoding
    ids: Tensor
    length: int
    row: int = 0
    handle: Any = None
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    priority: int = 0
    drafts: bool = True
    held: bool = False
    stats: AcceptanceStats = field(default_factory=AcceptanceStats)
    scores: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    _text: GuardState | None = None  # what is open behind the answer, if there are guards

    @classmethod
    def from_row(
        cls, request_id: int, prompt: Prompt, row: int, decoding: Decoding, priority: int = 0
    ) -> Request:
        """The request of one row of ``prompt``."""
        padded = prompt.input_ids[row]
        tokens = padded[prompt.padding[row] :].tolist()
        ids = padded.new_empty(decoding.max_length)
        ids[: len(padded)] = padded
        view = DraftRequest(
            id=request_id,
            tokens=tokens,
            prompt_length=len(tokens),
            shape=chain(0),
            temperature=decoding.temperature if decoding.do_sample else 0.0,
            generator=decoding.generator,
            wants_q="divergence" in needs(decoding.rule),
            prompt=prompt,
            row=row,
        )
        rest: dict[str, Any] = {"priority": priority, "drafts": decoding.drafts}
        return cls(prompt, view, decoding, ids, len(padded), row, **rest)

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, or will never be."""
        return self.finish_reason is not None

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

    @property
    def budget_left(self) -> float:
        """What relaxed acceptance may still spend on this answer."""
        rule = self.decoding.rule
        if rule is None or rule.budget is None:
            return math.inf
        return max(0.0, rule.budget - self.stats.bound_spent)

    @property
    def guarded(self) -> bool:
        """Whether the next token must be the verifier's own, by what was said before it."""
        rule = self.decoding.rule
        if rule is None or rule.guards is None:
            return False
        return self._text is not None and rule.guards.closed(self._text)

    def record(self, entry: Entry) -> None:
        """Note how the token that was emitted last was accepted."""
        self.ledger.append(entry)
        self.stats.num_relaxed_tokens += entry.rule == "relaxed"
        self.stats.epsilon_allowed += entry.epsilon
        self.stats.bound_spent += entry.spent

    def emit(self, token: int) -> None:
        """Append a token and decide whether it ends the answer."""
        self.ids[self.length] = token
        self.length += 1
        self.view.tokens.append(token)
        self.stats.num_generated_tokens += 1
        decoding = self.decoding
        if decoding.rule is not None and decoding.rule.guards is not None:
            guards = decoding.rule.guards
            before = guards.start if self._text is None else self._text
            self._text = guards.advance(before, token)
        stops = token in decoding.eos_token_ids
        if decoding.stopping is not None:
            scores = tuple(score[None] for score in self.scores) or None
            stops |= decoding.stopping(self.ids[None, : self.length], scores)
        if stops:
            self.finish_reason = "stop"
        elif self.length >= decoding.max_length:
            self.finish_reason = "length"


def rows_of(
    prompt: Prompt, each: Sequence[Decoding], ids: Iterator[int], priority: int
) -> list[Request]:
    """The requests of the rows of ``prompt``, to be decoded like this.

    Raises:
        ValueError: the prompt leaves no room for an answer, or ``priority`` is no number.
    """
    if not isinstance(priority, int):
        raise ValueError(f"priority={priority!r}: expected a whole number")
    length = prompt.input_ids.shape[1]
    if length >= each[0].max_length:
        raise ValueError(
            f"the prompt has {length} tokens, max_length={each[0].max_length} leaves no room "
            "for an answer; raise max_length or pass max_new_tokens"
        )
    requests = [
        Request.from_row(next(ids), prompt, row, decoding, priority)
        for row, decoding in enumerate(each)
    ]
    if each[0].together is not None:
        each[0].together.rows = requests
    return requests
