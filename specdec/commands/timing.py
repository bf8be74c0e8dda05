"""Plain and speculative decoding of the same questions, compared and timed side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

import specdec
from specdec.stats import AcceptanceStats

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specdec.engine import Emission
    from specdec.interfaces import Drafter

Inputs = Mapping[str, Tensor]

# Rounding of bf16, relative to the largest logit, within which two tokens count as tied: its
# precision of 2^-8, four times over, since every layer adds its own.
TIE = 4 * 2.0**-8


class Run(NamedTuple):
    """One answer. `tokens`: its ids without the prompt's; `stats`: `None` if decoded plainly."""

    tokens: list[int]
    seconds: float
    stats: AcceptanceStats | None = None

    @property
    def ms_per_token(self) -> float:
        """Of the whole call, reading the image included."""
        return 1e3 * self.seconds / len(self.tokens)


class Pair(NamedTuple):
    """The same question answered plainly and, right after, speculatively."""

    plain: Run
    speculative: Run

    @property
    def speedup(self) -> float:
        """How many times faster a token comes speculatively."""
        return self.plain.ms_per_token / self.speculative.ms_per_token


class Contestants:
    """Both ways to an answer, greedy, over one model.

    Args:
        model: the model.
        drafter: its drafter.
        max_new_tokens: longest answer.
    """

    def __init__(self, model: PreTrainedModel, drafter: Drafter, max_new_tokens: int) -> None:
        self.model = model
        self.drafter = drafter
        self._how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}

    def plain(self, inputs: Inputs) -> Run:
        """With transformers' own `generate`."""
        # Any: the mixin's overloads do not survive PreTrainedModel.
        model: Any = self.model
        began = time.perf_counter()
        out = model.generate(**inputs, **self._how)
        return Run(_answer(out, inputs), time.perf_counter() - began)

    def speculative(
        self, inputs: Inputs, on_emission: Callable[[Emission], None] | None = None
    ) -> Run:
        """With specdec."""
        began = time.perf_counter()
        out = specdec.generate(
            self.model, drafter=self.drafter, on_emission=on_emission, **inputs, **self._how
        )
        return Run(_answer(out, inputs), time.perf_counter() - began, out.stats)

    def pairs(self, questions: Sequence[Inputs], rounds: int) -> list[Pair]:
        """Both in turn, `rounds` times for each question, so that whatever else the machine does
        falls on both alike. Warm up with one answer of each before."""
        return [
            Pair(self.plain(inputs), self.speculative(inputs))
            for inputs in questions
            for _ in range(rounds)
        ]

    @torch.no_grad()
    def tied(self, inputs: Inputs, pair: Pair) -> bool:
        """Whether the two answers part where the model holds both tokens for equally good, as far
        as its precision can tell. In fp32 nothing counts as tied."""
        if self.model.dtype == torch.float32:
            return False
        at = parting(pair)
        assert at is not None, "the answers do not part"
        plain, speculative = pair.plain.tokens, pair.speculative.tokens
        if at >= min(len(plain), len(speculative)):
            return False
        ids = inputs["input_ids"]
        before = ids.new_tensor([plain[:at]])
        extended = dict(inputs) | {
            "input_ids": torch.cat([ids, before], -1),
            "attention_mask": ids.new_ones(1, ids.shape[1] + at),
        }
        logits = self.model(**extended).logits[0, -1].float()
        gap = abs(float(logits[plain[at]] - logits[speculative[at]]))
        return gap <= TIE * float(logits.abs().max())


def parting(pair: Pair) -> int | None:
    """The first token in which the two answers differ; `None` if they are equal."""
    plain, speculative = pair.plain.tokens, pair.speculative.tokens
    if plain == speculative:
        return None
    same = [a == b for a, b in zip(plain, speculative, strict=False)]
    return same.index(False) if False in same else len(same)


class Summary(NamedTuple):
    """Figures over all pairs.

    Attributes:
        plain_ms: milliseconds per token of plain decoding, median.
        speculative_ms: the same of speculative decoding.
        speedup: median of the pairs' ratios.
        slowest: smallest of them.
        fastest: largest.
        stats: of all speculative runs together.
    """

    plain_ms: float
    speculative_ms: float
    speedup: float
    slowest: float
    fastest: float
    stats: AcceptanceStats


def summarise(pairs: Sequence[Pair]) -> Summary:
    """The figures of one interleaved run."""
    ratios = [pair.speedup for pair in pairs]
    stats = AcceptanceStats()
    for pair in pairs:
        assert pair.speculative.stats is not None
        stats.merge(pair.speculative.stats)
    return Summary(
        plain_ms=statistics.median(pair.plain.ms_per_token for pair in pairs),
        speculative_ms=statistics.median(pair.speculative.ms_per_token for pair in pairs),
        speedup=statistics.median(ratios),
        slowest=min(ratios),
        fastest=max(ratios),
        stats=stats,
    )


def _answer(out: Tensor, inputs: Inputs) -> list[int]:
    tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens
