"""The step: schedule → draft → verify → accept → commit, for a ragged batch of requests.

There is no other decode loop: ``generate`` and everything else that produces tokens drives this
one. Knows verifiers, drafters and acceptance rules through their interfaces only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from specdec.acceptance import Verdict, accept_greedy, accept_sampled, uniforms_needed
from specdec.cache import OutOfPages
from specdec.engine.request import Decoding, Emission, Request
from specdec.interfaces import Drafter, Prompt, Verifier
from specdec.stats import AcceptanceStats
from specdec.tree import DraftTree, Topology, chain, root_only

DEFAULT_SHAPE = chain(4)


class Engine:
    """Runs requests through one verifier and one drafter.

    Args:
        verifier: the model that decides.
        drafter: the model that proposes; ``None`` decodes plainly.
        shape: the largest tree to propose.

    Raises:
        ValueError: the drafter does not fit the verifier, or the shape does not.
    """

    def __init__(
        self, verifier: Verifier, drafter: Drafter | None, shape: Topology = DEFAULT_SHAPE
    ) -> None:
        if drafter is not None:
            drafter.check(verifier.spec)
        if verifier.spec.chains_only and not shape.is_chain:
            raise ValueError(
                f"verifier {verifier.spec.name} keeps a state that cannot branch, and the tree of "
                f"{len(shape)} nodes does: pass tree=k, a chain of k tokens"
            )
        self.verifier = verifier
        self.drafter = drafter
        self.shape = shape
        self.stats = AcceptanceStats()
        self._waiting: list[list[Request]] = []  # rows of one prompt each
        self._full = False  # the pages do not suffice for those who wait
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
        self._waiting.append(requests)
        return requests

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @torch.no_grad()
    def step(self) -> list[Emission]:
        """Prefill what waits, or else advance every running request by one tree.

        Where the pages do not suffice, those who wait wait on, and the youngest of those who run
        give theirs up; they are computed again when there is room.

        Returns:
            The new tokens, in order within each request.

        Raises:
            OutOfPages: not even a single request fits.
        """
        if self._waiting and not self._full:
            emissions = self._admit(self._waiting.pop(0))
            if emissions is not None:
                return emissions
        with self._timed("draft"):
            trees = self._draft(self._running)
        with self._timed("verify"):
            logits = self._verify(trees)
        running = self._running
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

    def _admit(self, requests: list[Request]) -> list[Emission] | None:
        """Let these requests run, or some of them if the pages do not suffice; ``None`` if it is
        none.
        """
        began = time.perf_counter()
        try:
            emissions = self._prefill(requests)
        except OutOfPages:
            half = len(requests) // 2
            self._waiting[:0] = [part for part in (requests[:half], requests[half:]) if part]
            self._full = half == 0
            if self._full and not self._running:
                raise
            return [] if half else None
        finally:
            self.stats.times.prefill += time.perf_counter() - began
        return emissions

    def _prefill(self, requests: list[Request]) -> list[Emission]:
        room = requests[0].decoding.max_length + len(self.shape)
        rows = [request.row for request in requests]
        handles, logits, cached = self.verifier.prefill(requests[0].prompt, room, rows)
        try:
            for request, handle in zip(requests, handles, strict=True):
                self._catch_up(request, handle)
        except BaseException:
            for handle in handles:
                self.verifier.release(handle)
            raise
        emissions = []
        for request, handle, row, count in zip(requests, handles, logits, cached, strict=True):
            request.handle = handle
            self._running.append(request)
            for stats in (request.stats, self.stats):
                stats.num_prompt_tokens += request.view.prompt_length
                stats.num_cached_tokens += count
            if not request.output:
                target = Target(request, root_only(request.view.tokens[-1]), row[None])
                emissions += _emit(target, _accept(target))
        self._retire()
        return emissions

    def _catch_up(self, request: Request, handle: Any) -> None:
        """Compute the keys of what the request had said before it was preempted, its last token
        excepted.
        """
        said = request.output[:-1]
        if said:
            tree = DraftTree(chain(len(said) - 1), tuple(said))
            self.verifier.verify([handle], [tree])
            self.verifier.commit(handle, range(len(said)))

    def _preempt(self) -> None:
        """The youngest running request gives up its keys and waits."""
        request = self._running.pop()
        self.verifier.release(request.handle)
        request.handle = None
        if self.drafter is not None:
            self.drafter.release(request.view.id)
        self._waiting.insert(0, [request])
        self._full = True
        for stats in (request.stats, self.stats):
            stats.num_preemptions += 1

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

    def _verify(self, trees: list[DraftTree]) -> Tensor:
        """Logits of all nodes; requests that are preempted for it take their trees along."""
        before = self.verifier.model_seconds
        while True:
            try:
                handles = [request.handle for request in self._running]
                logits = self.verifier.verify(handles, trees)
                break
            except OutOfPages:
                if len(self._running) == 1:
                    raise
                self._preempt()
                trees.pop()
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
                self._full = False
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
