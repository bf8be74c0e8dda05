"""Relaxed acceptance: the target gives way to the drafter, within a bound, where language decides.

With p the target's distribution at a node, q the drafter's, v the visual reliance of the token
behind it: ε_v = ε·(1 − v)^γ, and 0 where a guard holds. Sampling verifies losslessly against the
nearest distribution to the proposal that lies within ε_v of p in total variation; no rule within
ε_v accepts more. Greedy decoding takes a drafted token x where p(x) ≥ (1 − ε_v)·max p: at most
−log(1 − ε_v) nats of regret. By the chain rule a whole answer is within the sum of what was spent.

Some tokens never gain by it: those that a logits processor has excluded stay excluded, and those
less than ``floor`` times as probable as the most probable one stay as improbable as they are. A
small distance alone would allow them: what is wrong half of the time, and all wrong then, is no
farther from the target than what is worded otherwise half of the time. And the probabilities of
guarded tokens (what ends the answer among them) stay exactly what they are.

Knows no model: reliance and guards come with the node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from specdec.acceptance import Decision, Node, child_with, decide
from specdec.guards import Guards
from specdec.reliance import Reliance


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """Acceptance relaxed by ε_v; the rule that a :class:`specdec.Relaxed` stands for.

    Attributes:
        epsilon: most that the target gives way at one token.
        gamma: how sharply v counts.
        floor: least probability of what may gain, as a share of the most probable token's.
        reliance: estimates v.
        guards: what stays strict.
        fixed: bool ``(V,)``: tokens whose probabilities stay what they are: those that are guarded,
            and those that end the answer.
        budget: see :class:`specdec.acceptance.Rule`.
    """

    epsilon: float
    gamma: float
    reliance: Reliance
    guards: Guards
    fixed: Tensor = field(repr=False)
    budget: float | None = None
    floor: float = 0.0
    coins: ClassVar[int] = 0

    def check(self, *, do_sample: bool, processed: bool) -> None:
        """Any way of decoding is fine."""

    def allowed(self, node: Node) -> float:
        """ε_v at this node, the budget aside."""
        if node.guarded or not node.children:
            return 0.0
        return self.epsilon * math.pow(1.0 - min(max(node.reliance, 0.0), 1.0), self.gamma)

    def greedy(self, node: Node, uniform: Callable[[], float]) -> Decision:
        """The most probable child within the bound, or else the most probable token."""
        scores, fixed = node.scores, self.fixed
        best = int(scores.argmax())
        child = child_with(node.tree, node.index, best)
        epsilon = self.allowed(node)
        if child is not None or epsilon == 0.0 or _holds(fixed, best):
            return Decision(child, best, epsilon=epsilon)
        share = max(1.0 - epsilon, self.floor)
        most = min(-math.log(share) if share > 0 else math.inf, node.left)
        tokens = node.tokens
        regrets = [
            math.inf if _holds(fixed, token) else gap
            for token, gap in zip(tokens, regret(scores, tokens), strict=True)
        ]
        least = min(regrets)
        if not least < math.inf or least > most:
            return Decision(None, best, epsilon=epsilon)
        chosen = regrets.index(least)
        return Decision(node.children[chosen], tokens[chosen], True, epsilon, least)

    def sampled(self, node: Node, uniform: Callable[[], float]) -> Decision:
        """A draw from the relaxed target."""
        p, epsilon = node.p, self.allowed(node)
        most = min(epsilon, node.left)
        if most <= 0.0:
            return decide(node.tree, node.index, p, uniform)._replace(epsilon=epsilon)
        if node.tree.siblings == "deterministic":
            target, spent = onto(p, node.tokens, most, self.fixed, self.floor)
        else:
            q = node.q
            assert q is not None, "DraftTree refuses drawn siblings without q"
            target, spent = toward(p, q.to(p.device), most, self.fixed, self.floor)
        decision = decide(node.tree, node.index, target, uniform, exact=p)
        return decision._replace(epsilon=epsilon, spent=float(spent))


def toward(
    p: Tensor,
    q: Tensor,
    epsilon: float | Tensor,
    fixed: Tensor | None = None,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The distribution nearest to ``q`` within ε of ``p`` in total variation.

    With D = (q − p)₊ where 0 < p ≥ floor·max p and S = (p − q)₊, both 0 at fixed tokens:
    ``r = p + m·(D / ΣD − S / ΣS)``, ``m = min(ε, ΣD, ΣS)``. Where p has all of q's support, no
    token is below the floor and none is fixed, that is ``(1 − λ)·p + λ·q`` with
    ``λ = min(1, ε / TV(p, q))``. A draw from q is accepted against r with probability
    ``1 − TV(p, q) + m``.

    Args:
        p: float64 ``(..., V)``, normalised.
        q: ``(..., W)``, normalised; tokens that one of the two lacks count as 0.
        epsilon: at least 0, a number or ``(..., 1)``.
        fixed: bool ``(V,)``: tokens whose probabilities must not change.
        floor: see :class:`Relaxation`.

    Returns:
        ``r``, float64 ``(..., V)``, and ``TV(r, p) = m``, ``(...)``.
    """
    change = torch.zeros_like(p)
    shared = min(p.shape[-1], q.shape[-1])
    change[..., :shared] = q[..., :shared]
    change -= p
    if fixed is not None:
        change.masked_fill_(fixed.to(p.device), 0.0)
    gain = change.clamp_min(0.0).masked_fill_(_improbable(p, floor), 0.0)
    loss = change.clamp_max_(0.0).neg_()
    return _move(p, gain, loss, epsilon)


def onto(
    p: Tensor,
    tokens: Sequence[int],
    epsilon: float | Tensor,
    fixed: Tensor | None = None,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``p`` with up to ε of its mass moved from other tokens onto the drafted ones, in proportion.

    Args:
        p: float64 ``(V,)``, normalised.
        tokens: the drafted ones; those below the floor stay as they are.
        epsilon: at least 0.
        fixed: bool ``(V,)``: tokens whose probabilities must not change.
        floor: see :class:`Relaxation`.

    Returns:
        ``r``, float64 ``(V,)``, and ``TV(r, p)``.
    """
    drafted = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    drafted[[token for token in tokens if 0 <= token < p.shape[0]]] = True
    free = torch.ones_like(drafted) if fixed is None else ~fixed.to(p.device)
    inside = p * (drafted & free & ~_improbable(p, floor))
    outside = p * (~drafted & free)
    # As much as lies outside can be moved, whatever lies inside, if anything does.
    gain = inside * (1.0 / inside.sum()) if inside.any() else inside
    return _move(p, gain, outside, epsilon)


def _improbable(p: Tensor, floor: float) -> Tensor:
    """bool ``(..., V)``: tokens that must not gain."""
    return (p <= 0) | (p < floor * p.amax(-1, keepdim=True))


def _move(p: Tensor, gain: Tensor, loss: Tensor, epsilon: float | Tensor) -> tuple[Tensor, Tensor]:
    """Up to ε of mass from where ``loss`` lies to where ``gain`` lies, in proportion to both."""
    gained, lost = gain.sum(-1, keepdim=True), loss.sum(-1, keepdim=True)
    moved = torch.minimum(gained, lost).clamp_max(epsilon)
    tiny = torch.finfo(p.dtype).tiny
    r = p + moved * (gain / gained.clamp_min(tiny) - loss / lost.clamp_min(tiny))
    return r.clamp_min_(0.0), moved.squeeze(-1)


def regret(scores: Tensor, tokens: Sequence[int]) -> list[float]:
    """``log(max p / p(x))`` in nats for each of the tokens, from scores ``(V,)``; infinite where p
    is 0, and for tokens that the target lacks.
    """
    known = [token if 0 <= token < scores.shape[0] else -1 for token in tokens]
    gaps = (scores.max() - scores[known]).tolist()
    return [
        gap if token >= 0 and not math.isnan(gap) else math.inf
        for token, gap in zip(known, gaps, strict=True)
    ]


def _holds(fixed: Tensor, token: int) -> bool:
    return 0 <= token < fixed.shape[0] and bool(fixed[token])
