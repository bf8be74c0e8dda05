"""Which of many acceptance policies lose little enough, by what they answer.

A policy *passes* if the mean loss of quality per question, against the lossless answer to the same
question, has an upper confidence bound (:mod:`specdec.eval.bounds`) that is small enough. Many are
tried, so the bound has to hold for whichever is picked (Learn then Test, 2110.01052): for each γ
the ε are tested from strict to permissive, and testing stops at the first that fails, so one error
probability serves them all (fixed-sequence testing); it is the allowed one over the number of γ
(Bonferroni). Knows nothing of command lines and files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from specdec.eval.bounds import upper_bound
from specdec.eval.devset import DevQuestion, Metric, quality
from specdec.eval.policy_runs import Decoder
from specdec.policies import Relaxed
from specdec.stats import AcceptanceStats
from specdec.training.prompts import model_inputs


class Grid(NamedTuple):
    """The policies to try: each γ with each ε, the ε from strict to permissive."""

    reliance: str
    gammas: tuple[float, ...]
    epsilons: tuple[float, ...]

    def policies(self) -> list[Relaxed]:
        """All of them, γ by γ."""
        return [Relaxed(e, self.reliance, gamma) for gamma in self.gammas for e in self.epsilons]


class Tried(NamedTuple):
    """A policy that was tried.

    Attributes:
        policy: the policy.
        tau: its mean acceptance length.
        loss: mean over questions.
        bound: what the mean loss is at most; ``None`` if testing had stopped before.
        passed: whether that is little enough.
    """

    policy: Relaxed
    tau: float
    loss: float
    bound: float | None
    passed: bool


def judge(
    policies: Sequence[Relaxed],
    losses: Sequence[Sequence[float]],
    taus: Sequence[float],
    *,
    max_loss: float,
    confidence: float,
) -> list[Tried]:
    """Test policies; of each γ from strict to permissive, until one fails.

    Args:
        policies: of each γ in order of their ε.
        losses: of each policy, per question, at most 1; a gain is a negative one.
        taus: of each policy.
        max_loss: largest mean loss that is acceptable.
        confidence: with which all that pass do not lose more.
    """
    gammas = {policy.gamma for policy in policies}
    each = 1 - (1 - confidence) / len(gammas)
    stopped: set[float] = set()
    tried = []
    for policy, lost, tau in zip(policies, losses, taus, strict=True):
        bound = None if policy.gamma in stopped else upper_bound(lost, each)
        passed = bound is not None and bound <= max_loss
        if not passed:
            stopped.add(policy.gamma)
        tried.append(Tried(policy, tau, sum(lost) / len(lost), bound, passed))
    return tried


def measure(
    decoder: Decoder,
    processor: Any,  # a transformers processor; their classes share no useful base
    questions: Sequence[DevQuestion],
    policies: Sequence[Relaxed],
    metric: Metric,
    *,
    samples: int = 1,
    seed: int = 0,
    told: Callable[[int], None] = lambda count: None,
) -> tuple[list[list[float]], list[AcceptanceStats], AcceptanceStats]:
    """Answer all questions losslessly and under all policies.

    Args:
        samples: answers to each question, their qualities averaged.
        seed: of what is sampled; the same for all policies.
        told: called with the number of questions answered so far.

    Returns:
        per policy the loss of each question, per policy its statistics, and the lossless ones.
    """
    rules = [None, *(decoder.rule(policy) for policy in policies)]
    losses: list[list[float]] = [[] for _ in policies]
    totals = [AcceptanceStats() for _ in rules]
    for number, question in enumerate(questions):
        inputs = model_inputs(decoder.model, processor, [question.asked])
        sums = [0.0] * len(rules)
        for sample in range(samples):
            said = decoder.answers(inputs, rules, seed=seed + number * samples + sample)
            texts = [processor.decode(each.tokens, skip_special_tokens=True) for each in said]
            for row, (answer, text) in enumerate(zip(said, texts, strict=True)):
                good = quality(metric, question, text, texts[0], ended=answer.ended)
                sums[row] += good / samples
                totals[row].merge(answer.stats)
        for row, good in enumerate(sums[1:]):
            losses[row].append(sums[0] - good)
        told(number + 1)
    return losses, totals[1:], totals[0]
