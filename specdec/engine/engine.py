"""The step: schedule → draft → verify → accept → commit, for a ragged batch of requests.

There is no other decode loop: ``generate`` and everything else that produces tokens drives this
one. Knows verifiers, drafters and acceptance rules through their interfaces only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.acceptance import Verdict, accept_greedy, accept_sampled, uniforms_needed
from specdec.engine.request import Decoding, Emission, Request
from specdec.interfaces import Drafter, Prompt, Verifier
from specdec.stats import AcceptanceStats
from specdec.tree import DraftTree, Topology, chain, root_only

DEFAULT_SHAPE = chain(4)


class _Group(NamedTuple):
    """Requests that wait to be prefilled together."""

    prompt: Prompt
    requests: list[Request]


class Engine:
    """Runs requests through one verifier and one drafter.

    Args:
        verifier: the model that decides.
        drafter: the model that proposes; ``None`` decodes plainly.
        shape: the largest tree to propose.

    Raises:
        ValueError: the drafter does not fit the verifier.
    """

    def __init__(
        self, verifier: Verifier, drafter: Drafter | None, shape: Topology = DEFAULT_SHAPE
    ) -> None:
        if drafter is not None:
            drafter.check(verifier.spec)
        self.verifier = verifier
        self.drafter = drafter
        self.shape = shape
        self.stats = AcceptanceStats()
        self._waiting: list[_Group] = []
        self._running: list[Request] = []
        self._next_id = 0

    def submit(self, prompt: Prompt, decoding: Decoding) -> list[Request]:
        """Queue the rows of ``prompt``; they are prefilled together by a later step.

        Raises:
            ValueError: the prompt leaves no room for an answer.
        """
        rows, length = prompt.input_ids.shape
        if length >= decoding.max_length:
            raise ValueError(
                f"the prompt has {length} tokens, max_length={decoding.max_length} leaves no room "
                "for an answer; raise max_length or pass max_new_tokens"
            )
        requests = [
            Request.from_row(self._next_id + row, prompt, row, decoding) for row in range(rows)
        ]
        self._next_id += rows
        self._waiting.append(_Group(prompt, requests))
        return requests

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Prefill what waits, or else advance every running request by one tree.

        Returns:
            The new tokens, in order within each request.
        """
        if self._waiting:
            return self._prefill(self._waiting.pop(0))
        running = self._running
        with self._timed("draft"):
            trees = self._draft(running)
        with self._timed("verify"):
            logits = self._verify(running, trees)
        with self._timed("accept"):
            blocks = logits.split([len(tree) for tree in trees])
            targets = [Target(*parts) for parts in zip(running, trees, blocks, strict=True)]
            verdicts = [_accept(target) for target in targets]
        with self._timed("commit"):
            emissions = []
            for target, verdict in zip(targets, verdicts, strict=True):
                emissions += self._commit(target, verdict)
            self._retire()
        return emissions

    def close(self) -> None:
        """Drop every request and give back what they hold."""
        for request in self._running:
            self._release(request)
        self._running.clear()
        self._waiting.clear()

    def _prefill(self, group: _Group) -> list[Emission]:
        began = time.perf_counter()
        room = group.requests[0].decoding.max_length + len(self.shape)
        handles, logits = self.verifier.prefill(group.prompt, room)
        for request, handle in zip(group.requests, handles, strict=True):
            request.handle = handle
            self._running.append(request)
        emissions = []
        for request, row in zip(group.requests, logits, strict=True):
            target = Target(request, root_only(request.view.tokens[-1]), row[None])
            emissions += _emit(target, _accept(target))
        self._retire()
        self.stats.times.prefill += time.perf_counter() - began
        return emissions

    def _draft(self, running: Sequence[Request]) -> list[DraftTree]:
        if self.drafter is None:
            return [root_only(request.view.tokens[-1]) for request in running]
        for request in running:
            # A tree of depth d yields up to d + 1 tokens.
            request.view.max_depth = request.decoding.max_length - request.length - 1
        before = self.drafter.model_seconds
        trees = self.drafter.propose([request.view for request in running], self.shape)
        self.stats.times.model_forward += self.drafter.model_seconds - before
        for request, tree in zip(running, trees, strict=True):
            assert tree.tokens[0] == request.view.tokens[-1], "a tree must grow from the last token"
            assert tree.topology.depth <= request.view.max_depth, "a tree is deeper than it may be"
        return trees

    def _verify(self, running: Sequence[Request], trees: Sequence[DraftTree]) -> Tensor:
        before = self.verifier.model_seconds
        logits = self.verifier.verify([request.handle for request in running], trees)
        self.stats.times.model_forward += self.verifier.model_seconds - before
        return logits

    def _commit(self, target: Target, verdict: Verdict) -> list[Emission]:
        request, tree = target.request, target.tree
        self.verifier.commit(request.handle, (0, *verdict.path))
        for stats in (request.stats, self.stats):
            stats.record_step(len(tree) - 1, len(verdict.path), tree.topology.depth)
        return _emit(target, verdict)

    def _retire(self) -> None:
        """Let go of the requests that are finished."""
        for request in self._running:
            if request.finished:
                self._release(request)
        self._running = [request for request in self._running if not request.finished]

    def _release(self, request: Request) -> None:
        self.verifier.release(request.handle)
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self.stats.num_generated_tokens += request.stats.num_generated_tokens

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        times = self.stats.times
        setattr(times, phase, getattr(times, phase) + time.perf_counter() - began)


class Target:
    """What the verifier wants behind the nodes of a request's tree, computed when a node is
    visited.

    Args:
        request: the request.
        tree: its tree.
        logits: raw logits ``(n, V)`` behind the tree's nodes.
    """

    def __init__(self, request: Request, tree: DraftTree, logits: Tensor) -> None:
        self.request = request
        self.tree = tree
        self.logits = logits
        self._scores: dict[int, Tensor] = {}

    def scores(self, node: int) -> Tensor:
        """Processed scores ``(V,)``, float32. The processors run once per node."""
        if node not in self._scores:
            self._scores[node] = self.request.node_scores(self.tree, node, self.logits[node])
        return self._scores[node]

    def distribution(self, node: int) -> Tensor:
        """Probabilities ``(V,)``. Nothing follows a token that ends the answer: no processor is
        asked.
        """
        if self._ends(node):
            return torch.nn.functional.one_hot(torch.tensor(0), self.logits.shape[-1]).float()
        return self.scores(node).softmax(-1)

    def argmax(self, node: int) -> int:
        """The most probable token; -1 behind a token that ends the answer."""
        return -1 if self._ends(node) else int(self.scores(node).argmax())

    def _ends(self, node: int) -> bool:
        return node > 0 and self.tree.tokens[node] in self.request.decoding.eos_token_ids


def _accept(target: Target) -> Verdict:
    decoding, tree = target.request.decoding, target.tree
    if decoding.do_sample:
        generator = decoding.generator
        device = None if generator is None else generator.device
        uniforms = torch.rand(
            uniforms_needed(tree), dtype=torch.float64, generator=generator, device=device
        ).tolist()
        return accept_sampled(tree, target.distribution, uniforms)
    if decoding.processor is None:
        return accept_greedy(tree, target.logits.argmax(-1).tolist())
    return accept_greedy(tree, target.argmax)


def _emit(target: Target, verdict: Verdict) -> list[Emission]:
    """Hand out the tokens of a verdict one by one, up to where the answer ends."""
    request, tree = target.request, target.tree
    emissions = []
    for node, following in zip((0, *verdict.path), (*verdict.path, None), strict=True):
        if request.decoding.keep_scores:
            request.scores.append(target.scores(node))
        if request.decoding.keep_logits:
            request.logits.append(target.logits[node].float())
        token = verdict.token if following is None else tree.tokens[following]
        request.emit(token)
        emissions.append(Emission(request.view.id, token, following is not None))
        if request.finished:
            break
    return emissions
