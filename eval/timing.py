"""Ways to decode, on the same questions: are the tokens the same, and how long did they take.

Knows nothing of command lines, files or tables.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel

from specdec.stats import AcceptanceStats

Inputs = Mapping[str, Any]  # what model.generate takes, one row, no padding


class Said(NamedTuple):
    """The tokens of an answer, and acceptance where the method reports it."""

    tokens: list[int]
    stats: AcceptanceStats | None = None


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Attributes:
        name: unique.
        run: prompt to answer.
        ours: its tokens must be those of ``model.generate``; of other people's methods mismatches
            are only counted, and they may refuse.
    """

    name: str
    run: Callable[[Inputs], Said]
    ours: bool = False


class Run(NamedTuple):
    """One answer and the seconds it took."""

    said: Said
    seconds: float

    @property
    def ms_per_token(self) -> float:
        """Milliseconds per generated token, prefill included."""
        return 1000 * self.seconds / len(self.said.tokens)


@dataclass
class Check:
    """How a method's answers compare with the reference's.

    Attributes:
        answers: compared answers.
        tokens: compared tokens, each answer up to its first difference.
        ties: answers that differ first where the verifier itself is undecided: between two tokens
            whose logits are closer than ``bound``.
        wrong: answers that differ elsewhere.
        widest: widest gap among the differences, in logits.
    """

    answers: int = 0
    tokens: int = 0
    ties: int = 0
    wrong: int = 0
    widest: float = 0.0


class Interval(NamedTuple):
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float


def plainly(model: PreTrainedModel, asked: Sequence[Inputs], **how: Any) -> list[Said]:
    """What ``model.generate`` answers, greedily; ``how``: what else it takes."""
    generator: Any = model  # generate comes from a mixin that PreTrainedModel does not declare
    answers = ((each, generator.generate(**each, do_sample=False, **how)) for each in asked)
    return [Said(ids[0, each["input_ids"].shape[1] :].tolist()) for each, ids in answers]


def check(
    model: PreTrainedModel,
    asked: Sequence[Inputs],
    reference: Sequence[Said],
    said: Sequence[Said],
    bound: float,
) -> Check:
    """Compare answers with the reference's. ``bound`` 0 accepts no difference at all."""
    result = Check()
    for inputs, plain, other in zip(asked, reference, said, strict=True):
        result.answers += 1
        place = first_difference(plain.tokens, other.tokens)
        if place is None:
            result.tokens += len(plain.tokens)
            continue
        result.tokens += place + 1
        gap = float("inf")
        if place < min(len(plain.tokens), len(other.tokens)):
            pair = (plain.tokens[place], other.tokens[place])
            gap = logit_gap(model, inputs, plain.tokens[:place], pair)
        result.widest = max(result.widest, gap)
        result.ties += gap < bound
        result.wrong += not gap < bound
    return result


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Where two answers part; ``None`` if they are equal."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))


@torch.no_grad()
def logit_gap(
    model: PreTrainedModel, inputs: Inputs, prefix: Sequence[int], pair: tuple[int, int]
) -> float:
    """How far the worse of two tokens lies below the best logit behind ``prefix``."""
    cache = DynamicCache()
    out = model(**inputs, past_key_values=cache, use_cache=True)
    if prefix:
        ids = torch.tensor([list(prefix)], device=model.device)
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
    last = out.logits[0, -1].float()
    return float(last.max() - last[list(pair)].min())


def interleaved(
    methods: Sequence[Method], asked: Sequence[Inputs], rounds: int = 1
) -> Iterator[tuple[int, str, Run]]:
    """Every method on every question, all methods of a question right after one another, forwards
    and backwards in turn, so that whatever drifts hits all of them alike.

    Yields:
        question number, method name, run.
    """
    for turn in range(rounds):
        for number, inputs in enumerate(asked):
            order = methods if (number + turn) % 2 == 0 else list(reversed(methods))
            for method in order:
                began = time.perf_counter()
                said = method.run(inputs)
                yield number, method.name, Run(said, time.perf_counter() - began)


def ratio(
    numerator: Sequence[float], denominator: Sequence[float], resamples: int = 2000, seed: int = 0
) -> Interval:
    """Median of the paired ratios with a 95 % bootstrap interval over the pairs."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    rng = random.Random(seed)
    medians = sorted(
        statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(resamples)
    )
    edge = int(0.025 * resamples)
    return Interval(statistics.median(ratios), medians[edge], medians[-1 - edge])
