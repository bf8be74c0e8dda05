"""What the verifier wants behind the nodes of one request's tree, and handing out what is accepted.

A node is visited only once its token is sure to be part of the answer. Its token is handed out
first, and the stopping criteria asked; so logits processors see what plain decoding would show
them, position by position, and nothing behind the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specdec.acceptance import (
    Decision,
    Node,
    Rule,
    Verdict,
    accept,
    accept_greedy,
    accept_sampled,
    supply,
    uniforms_needed,
)
from specdec.engine.estimates import Estimate
from specdec.engine.request import Emission, Logprobs, Request
from specdec.ledger import Entry
from specdec.tree import DraftTree

_NAN = "the model gave NaN as logits; its weights or numbers are broken, or float16 overflowed"


class Target:
    """One request's tree on its way from the verifier to the answer.

    Args:
        request: the request.
        tree: its tree.
        logits: raw logits ``(n, V)`` behind the tree's nodes.
        estimate: how much the token behind each node depends on the image, where that is known.

    Attributes:
        emissions: the tokens that were handed out, in order.
        verdict: what was accepted; ``None`` before that, and if it failed.
        broken: nodes behind which the logits are no numbers.
        best: per node the most probable token, if that was looked up for all.
    """

    def __init__(
        self,
        request: Request,
        tree: DraftTree,
        logits: Tensor,
        estimate: Estimate = None,
    ) -> None:
        self.request = request
        self.tree = tree
        self.logits = logits
        self.reliance: Sequence[float] | None = None
        self._fault: ValueError | None = None
        if isinstance(estimate, ValueError):
            self._fault = estimate
        else:
            self.reliance = estimate
        self.emissions: list[Emission] = []
        self.verdict: Verdict | None = None
        self.broken: frozenset[int] = frozenset()
        self.best: Sequence[int] | None = None
        self._scores: dict[int, Tensor] = {}
        self._decisions: dict[int, Decision] = {}  # of the rule, if there is one
        self._reached = 0

    @property
    def takes_best(self) -> bool:
        """Whether what is accepted is the most probable token by the logits as they are."""
        decoding = self.request.decoding
        return decoding.processor is None and decoding.rule is None and not decoding.do_sample

    @property
    def kept(self) -> tuple[int, ...]:
        """The nodes whose tokens are followed by another: all of them have keys. Where the answer
        ended within the block, no others are kept.
        """
        assert self.verdict is not None
        return (0, *self.verdict.path)[: len(self.emissions)]

    def decide(self, scores: Tensor | None = None) -> None:
        """Accept what is to be accepted and hand it out, up to where the answer ends.

        Args:
            scores: processed scores ``(V,)`` behind the root, if they are known already.

        Raises:
            ValueError: a node on the way is broken, or reliance cannot be estimated.
        """
        if self._fault is not None:
            raise self._fault
        if scores is not None:
            self._scores[0] = scores
        if 0 in self.broken:
            raise ValueError(_NAN)
        verdict = self._verdict()
        if not self.broken.isdisjoint(verdict.path):
            raise ValueError(_NAN)
        for node in verdict.path:
            self._reach(node)
        if not self.request.finished:
            self._emit(verdict.token, drafted=False)
        self.verdict = verdict

    def _verdict(self) -> Verdict:
        decoding, tree = self.request.decoding, self.tree
        rule = decoding.rule
        if rule is not None:
            count = len(tree) * rule.coins + uniforms_needed(tree) * decoding.do_sample
            uniform = supply(tree, self._uniforms(count))
            return accept(tree, lambda node: self._decide(rule, node, uniform))
        if decoding.do_sample:
            return accept_sampled(tree, self._distribution, self._uniforms(uniforms_needed(tree)))
        if self.takes_best and not self._scores and self.best is not None:
            return accept_greedy(tree, self.best)
        return accept_greedy(tree, self._argmax)

    def _uniforms(self, count: int) -> list[float]:
        generator = self.request.decoding.generator
        device = None if generator is None else generator.device
        uniforms: list[float] = torch.rand(
            count, dtype=torch.float64, generator=generator, device=device
        ).tolist()
        return uniforms

    def _decide(self, rule: Rule, index: int, uniform: Callable[[], float]) -> Decision:
        """What the rule says behind a node; anything at all behind the end of the answer."""
        self._reach(index)
        request = self.request
        if request.finished:
            return Decision(None, -1)
        node = Node(
            tree=self.tree,
            index=index,
            scores=self._scores_at(index),
            logits=self.logits,
            reliance=1.0 if self.reliance is None else self.reliance[index],
            guarded=request.guarded,
            left=request.budget_left,
        )
        decide = rule.sampled if request.decoding.do_sample else rule.greedy
        self._decisions[index] = decision = decide(node, uniform)
        return decision

    def _distribution(self, node: int) -> Tensor:
        """Probabilities ``(V,)``; any at all behind the end of the answer."""
        self._reach(node)
        if self.request.finished:
            return torch.nn.functional.one_hot(torch.tensor(0), self.logits.shape[-1]).float()
        return self._scores_at(node).softmax(-1)

    def _argmax(self, node: int) -> int:
        """The most probable token; -1 behind the end of the answer."""
        self._reach(node)
        return -1 if self.request.finished else int(self._scores_at(node).argmax())

    def _scores_at(self, node: int) -> Tensor:
        """Processed scores ``(V,)``, float32. The processors run once per node."""
        if node not in self._scores:
            self._scores[node] = self.request.process(self.logits[node])
        return self._scores[node]

    def _reach(self, node: int) -> None:
        """Hand out the token of an accepted node, unless that is done or the answer has ended."""
        if self.request.finished or self.tree.topology.depths[node] <= len(self.emissions):
            return
        self._emit(self.tree.tokens[node], drafted=True)
        self._reached = node

    def _emit(self, token: int, *, drafted: bool) -> None:
        request = self.request
        if request.decoding.keep_scores:
            request.scores.append(self._scores_at(self._reached))
        if request.decoding.keep_logits:
            request.logits.append(self.logits[self._reached].float())
        request.emit(token)
        decision = self._decisions.get(self._reached)
        if decision is not None:
            request.record(self._entry(decision, drafted))
        spent, relaxed = (0.0, False) if decision is None else (decision.spent, decision.relaxed)
        logprobs = self._logprobs(token)
        emission = Emission(request.view.id, token, drafted, relaxed, spent, logprobs)
        self.emissions.append(emission)

    def _logprobs(self, token: int) -> Logprobs | None:
        """Those behind the node that was reached last, if they are wanted."""
        count = self.request.decoding.top_logprobs
        if count is None:
            return None
        logprobs = self.logits[self._reached].float().log_softmax(-1)
        top = logprobs.topk(min(count, len(logprobs)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return Logprobs(float(logprobs[token]), tuple(pairs))

    def _entry(self, decision: Decision, drafted: bool) -> Entry:
        return Entry(
            token=decision.token,
            rule="relaxed" if decision.relaxed else "matched" if drafted else "verifier",
            reliance=None if self.reliance is None else self.reliance[self._reached],
            epsilon=decision.epsilon,
            spent=decision.spent,
            own=int(self._scores_at(self._reached).argmax()),
        )
