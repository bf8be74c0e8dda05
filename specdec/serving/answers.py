"""The answers to one call while they arrive: several prompts, several samples of each.

Knows nothing of HTTP; what it yields, others write down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from specdec.serving.asynchronous import AsyncEngine, AsyncStream
from specdec.serving.decoding import generator
from specdec.serving.metrics import Metrics
from specdec.serving.stream import RequestFailed
from specdec.serving.text import AnswerText, Piece, StopTexts
from specdec.stats import AcceptanceStats

# Of `AcceptanceStats`, what a response tells.
SPECULATION = (
    "mean_acceptance_length",
    "draft_acceptance_rate",
    "acceptance_histogram",
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "num_accepted_tokens_per_pos",
    "num_relaxed_tokens",
    "bound_spent",
)
Finish = Literal["stop", "length"]


class Order(NamedTuple):
    """One prompt and how it is to be answered.

    Attributes:
        inputs: of one prompt, where the model is.
        samples: how many answers.
        seed: of the first of them; the others' follow.
        stops: strings before which they end.
        options: further arguments of :meth:`ThreadedEngine.submit`.
    """

    inputs: Mapping[str, Tensor]
    samples: int
    seed: int | None
    stops: Sequence[str]
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one answer.

    Attributes:
        index: which of the call's answers.
        pieces: the text that its tokens add.
        finish: why it ended, if it did.
        cause: the stop string before which it ended, or ``timeout``.
    """

    index: int
    pieces: list[Piece]
    finish: Finish | None = None
    cause: str | None = None


@dataclass(slots=True)
class _Answer:
    """One of them."""

    stream: AsyncStream
    text: AnswerText
    sample: int  # which of its prompt's
    last: float  # when its last tokens arrived, by time.monotonic
    first: float | None = None
    ended: float | None = None


@dataclass(slots=True)
class Answers:
    """What was submitted for one call. Leaving the context cancels what has not ended.

    Attributes:
        began: when the call arrived, by `time.monotonic`.
    """

    metrics: Metrics
    began: float
    _answers: list[_Answer] = field(default_factory=list)

    @classmethod
    async def of(
        cls,
        engine: AsyncEngine,
        tokenizer: PreTrainedTokenizerBase,
        orders: Sequence[Order],
        metrics: Metrics,
        began: float,
    ) -> Answers:
        """Submit all of it, or nothing.

        Raises:
            ValueError, QueueFull, EngineClosed: as the engine does.
        """
        answers = cls(metrics, began)
        try:
            for order in orders:
                for sample in range(order.samples):
                    options = dict(order.options)
                    if order.stops:
                        stop = StopTexts(tokenizer, order.stops)
                        options["stopping_criteria"] = StoppingCriteriaList([stop])
                    stream = await engine.submit(
                        **order.inputs, **options, generator=generator(order.seed, sample)
                    )
                    text = AnswerText(tokenizer, order.stops)
                    answers._answers.append(_Answer(stream, text, sample, began))
        except BaseException:
            answers.cancel()
            raise
        return answers

    def cancel(self) -> None:
        """End what has not ended, and give back what it holds."""
        for answer in self._answers:
            if answer.ended is None:
                answer.stream.cancel()
                self.metrics.ended("cancelled")
                answer.ended = time.monotonic()

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Everything that is new, in the order in which it arrives.

        Raises:
            RequestFailed: an answer cannot be given.
        """
        waiting = {asyncio.ensure_future(self._next(i)): i for i in range(len(self._answers))}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=waiting.__getitem__):
                    index, delta = waiting.pop(task), task.result()
                    if delta.finish is None:
                        waiting[asyncio.ensure_future(self._next(index))] = index
                    if delta.pieces or delta.finish is not None:
                        yield delta
        finally:
            for task in waiting:
                task.cancel()
            self.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _next(self, index: int) -> Delta:
        answer = self._answers[index]
        try:
            emissions = await answer.stream.step()
        except RequestFailed:
            answer.ended = time.monotonic()
            self.metrics.ended("error")
            raise
        now = time.monotonic()
        if emissions:
            self._time(answer, len(emissions), now)
            return Delta(index, [piece for e in emissions for piece in answer.text.take(e)])
        answer.ended = now
        pieces, reason = answer.text.end(), answer.stream.finish_reason
        cause = "timeout" if reason == "timeout" else answer.text.stopped
        self.metrics.ended(reason or "error")
        self.metrics.request_seconds.observe(now - self.began)
        return Delta(index, pieces, "stop" if reason == "stop" else "length", cause)

    def _time(self, answer: _Answer, tokens: int, now: float) -> None:
        """Observe latencies. Tokens of one step arrive at once and share what it took."""
        if answer.first is None:
            answer.first = now
            self.metrics.first_token_seconds.observe(now - self.began)
        else:
            for _ in range(tokens):
                self.metrics.token_seconds.observe((now - answer.last) / tokens)
        answer.last = now

    @property
    def stats(self) -> AcceptanceStats:
        """What speculation achieved, over all answers."""
        merged = AcceptanceStats()
        for answer in self._answers:
            merged.merge(answer.stream.stats)
        return merged

    def usage(self) -> dict[str, Any]:  # Any: JSON values
        """OpenAI's account of tokens. A prompt counts once, whatever the number of its answers."""
        stats = self.stats
        prompt = cached = 0
        for answer in self._answers:
            if answer.sample == 0:
                length = answer.stream.request.view.prompt_length
                prompt += length
                cached += min(answer.stream.stats.num_cached_tokens, length)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": stats.num_generated_tokens,
            "total_tokens": prompt + stats.num_generated_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def speculation(self) -> dict[str, Any]:  # Any: JSON values
        """What speculation achieved and how long it took, as vLLM names it."""
        merged = self.stats
        stats, seen = merged.to_dict(), merged.acceptance_histogram
        # What vLLM sends, and readers of it take, is a list: entry j counts steps with j accepted.
        stats["acceptance_histogram"] = [seen.get(j, 0) for j in range(max(seen, default=0) + 1)]
        now = time.monotonic()
        firsts = [answer.first for answer in self._answers if answer.first is not None]
        first = min(firsts, default=now)
        started = [a.stream.let_in for a in self._answers if a.stream.let_in is not None]
        let_in = min(started, default=first)
        last = max((answer.ended or now for answer in self._answers), default=now)
        return {
            "speculative_decoding": {name: stats[name] for name in SPECULATION},
            "queue_time_s": let_in - self.began,
            "time_to_first_token_s": first - self.began,
            "generation_time_s": last - first,
        }
