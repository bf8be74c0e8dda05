"""Relaxed acceptance as others do it, so that claims can be compared in one run.

None of these keeps a bound on how far an answer may drift from the target's, and none looks at the
image; :class:`specdec.Relaxed` does both. They spend nothing, since nothing is accounted for.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from specdec.acceptance import Decision, Node, child_with, decide
from specdec.policies import Relaxed
from specdec.reliance import Constant
from specdec.sampling import draw


def uniform(epsilon: float, *, budget: float | None = None, floor: float = 0.0) -> Relaxed:
    """The bound of :class:`specdec.Relaxed` alone: every token may give way by ε, whatever the
    image says, those that end the answer excepted. Without a floor unless one is given.
    """
    return Relaxed(epsilon, Constant(0.0), 0.0, guards=(), budget=budget, floor=floor)


class _Baseline:
    """What they have in common: nothing is estimated, nothing is guarded, nothing is counted."""

    __slots__ = ()
    reliance: ClassVar[None] = None
    guards: ClassVar[None] = None
    budget: ClassVar[None] = None
    coins: ClassVar[int] = 0

    def check(self, *, do_sample: bool, processed: bool) -> None:
        """Any way of decoding is fine."""


@dataclass(frozen=True, slots=True)
class Random(_Baseline):
    """Where losslessly no child is accepted, the eldest is all the same with this probability: the
    pilot of the survey (2604.05546).

    Raises:
        ValueError: no probability.
    """

    probability: float
    coins: ClassVar[int] = 2  # one, and that of the token that is then not emitted

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability={self.probability} is not in [0, 1]")

    def greedy(self, node: Node, uniform: Callable[[], float]) -> Decision:
        best = int(node.scores.argmax())
        strict = Decision(child_with(node.tree, node.index, best), best)
        return self._or_else(strict, node, uniform)

    def sampled(self, node: Node, uniform: Callable[[], float]) -> Decision:
        strict = decide(node.tree, node.index, node.p, uniform)
        return self._or_else(strict, node, uniform)

    def _or_else(self, strict: Decision, node: Node, uniform: Callable[[], float]) -> Decision:
        if strict.child is not None or not node.children or uniform() >= self.probability:
            return strict
        return Decision(node.children[0], node.tokens[0], relaxed=True)


class _Admitting(_Baseline, ABC):
    """Accepts the most probable of the children that the target admits."""

    __slots__ = ()

    def greedy(self, node: Node, uniform: Callable[[], float]) -> Decision:
        best = int(node.scores.argmax())
        return self._admit(node, best)

    def sampled(self, node: Node, uniform: Callable[[], float]) -> Decision:
        # What the target would draw counts as admitted, so a refused child never comes out.
        return self._admit(node, draw(node.p, uniform()))

    def _admit(self, node: Node, own: int) -> Decision:
        strict = Decision(child_with(node.tree, node.index, own), own)
        if strict.child is not None or not node.children:
            return strict
        p = node.p
        least = self.least(p)
        chances = [float(p[token]) if 0 <= token < len(p) else 0.0 for token in node.tokens]
        most = max(chances)
        if most < least or most == 0.0:
            return strict
        place = chances.index(most)
        return Decision(node.children[place], node.tokens[place], relaxed=True)

    @abstractmethod
    def least(self, p: Tensor) -> float:
        """The least probability that is admitted, given the target's ``(V,)``."""


@dataclass(frozen=True, slots=True)
class Typical(_Admitting):
    """Admits x where p(x) ≥ min(ε, δ·exp(−H(p))): Medusa's typical acceptance (2401.10774, §2.3.1).

    Raises:
        ValueError: a threshold out of range.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.epsilon <= 1 and 0 < self.delta <= 1):
            raise ValueError(f"epsilon={self.epsilon}, delta={self.delta}: expected both in (0, 1]")

    def least(self, p: Tensor) -> float:
        return min(self.epsilon, self.delta * math.exp(-entropy(p)))


@dataclass(frozen=True, slots=True)
class TopK(_Admitting):
    """Admits the target's k most probable tokens as far as p(x) ≥ max p − δ: the relaxed acceptance
    of TensorRT-LLM (``relaxed_topk``, ``relaxed_delta``).

    Raises:
        ValueError: k below 1, or δ out of range.
    """

    k: int = 10
    delta: float = 0.6

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 <= self.delta <= 1:
            raise ValueError(f"k={self.k}, delta={self.delta}: expected k >= 1 and delta in [0, 1]")

    def least(self, p: Tensor) -> float:
        top = p.topk(min(self.k, len(p))).values
        return max(float(top[-1]), float(top[0]) - self.delta)


@dataclass(frozen=True, slots=True)
class FLy(_Baseline):
    """Accepts a mismatch where the target is unsure and agrees with everything behind it: FLy
    (2511.22972), for greedy decoding of chains.

    A mismatch is kept if the entropy there, as a share of its maximum, is at least ``entropy``,
    and if the next ``window`` drafted tokens are all the target's argmax. Where fewer are drafted
    behind it, it is refused. What is looked at ahead are raw logits, so no logits processors.

    Raises:
        ValueError: a number out of range.
    """

    window: int = 6
    entropy: float = 0.3

    def __post_init__(self) -> None:
        if self.window < 1 or not 0 <= self.entropy <= 1:
            raise ValueError(
                f"window={self.window}, entropy={self.entropy}: expected window >= 1 and entropy "
                "in [0, 1]"
            )

    def check(self, *, do_sample: bool, processed: bool) -> None:
        if do_sample or processed:
            what = "sampling" if do_sample else "logits processors"
            raise ValueError(
                f"FLy does not go with {what}: it compares drafts with the model's own argmax"
            )

    def greedy(self, node: Node, uniform: Callable[[], float]) -> Decision:
        best = int(node.scores.argmax())
        strict = Decision(child_with(node.tree, node.index, best), best)
        if strict.child is not None or not node.children:
            return strict
        unsure = entropy(node.p) >= self.entropy * math.log(len(node.scores))
        if not unsure or not self._agrees_behind(node):
            return strict
        return Decision(node.children[0], node.tokens[0], relaxed=True)

    def sampled(self, node: Node, uniform: Callable[[], float]) -> Decision:
        raise AssertionError("check refuses sampling")

    def _agrees_behind(self, node: Node) -> bool:
        children = node.tree.topology.children
        ahead = node.children[0]
        for _ in range(self.window):
            if not children[ahead]:
                return False
            wanted = int(node.logits[ahead].argmax())
            ahead = children[ahead][0]
            if node.tree.tokens[ahead] != wanted:
                return False
        return True


def entropy(p: Tensor) -> float:
    """Of a distribution ``(V,)``, in nats."""
    return float(-(p * p.clamp_min(1e-300).log()).sum())
