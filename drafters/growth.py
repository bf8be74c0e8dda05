"""How a drafter's model grows trees: level by level, one forward a level for the whole batch.

Knows the model as a :class:`Network` only. What is done over the vocabulary is done in tensors,
once a level; the few numbers that come of it are Python's: a tensor operation takes longer than
what is done to them.

A request's *candidates* are the tokens that were looked at, numbered as they come up, the root
first; its *frontier* are those that the next forward runs. A static shape names both beforehand, a
dynamic one chooses them by path probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specdec.drafters.calibration import Calibration
from specdec.drafters.levels import Levels, levels_of
from specdec.interfaces import DraftRequest
from specdec.sampling import sample_children
from specdec.tree import DraftTree, Dynamic, Shape, Siblings, Topology, topology


class Wave(NamedTuple):
    """Nodes of one depth to run next, those of each request together.

    Attributes:
        members: requests, by their place in the batch.
        counts: nodes of each of them.
        tokens: int64 ``(N,)``.
        parents: int64 ``(N,)``: of each node, the row of its parent in the last wave's logits.
        visible: per member bool ``(m, s + m)`` on the CPU: which of the s nodes it ran before and
            of these each sees, itself included; ``None`` where every node sees all before it.
        depth: of the nodes; 1 is a child of the root.
    """

    members: list[int]
    counts: list[int]
    tokens: Tensor
    parents: Tensor
    visible: list[Tensor | None]
    depth: int


class Network(Protocol):
    """A drafter's model, with keys of its own for every request."""

    @property
    def vocabulary(self) -> Tensor | None:
        """int64 ``(V,)``: the token that each column of the logits stands for; ``None``: itself."""

    def begin(self, requests: Sequence[DraftRequest]) -> Tensor:
        """Take in what is new in the requests' texts; logits ``(len(requests), V)`` behind them.
        Tokens that must not be drafted have -inf.
        """

    def run(self, wave: Wave) -> Tensor:
        """Run these nodes, behind those of the waves before; logits ``(N, V)``."""


class Grown(NamedTuple):
    """``ran``: for each node that was run, in order, its number in the tree, -1 if it is not part
    of it.
    """

    tree: DraftTree
    ran: list[int]


def grow(
    network: Network,
    requests: Sequence[DraftRequest],
    siblings: Siblings = "without_replacement",
    calibration: Calibration = Calibration(),  # noqa: B008  # frozen
) -> list[Grown]:
    """A tree for each of these requests, whose shapes have room for a node each.

    Args:
        network: the model.
        requests: in the order that its ``begin`` is given them.
        siblings: how the children of sampled requests are chosen; dynamic trees that branch always
            take the most probable ones.
        calibration: of path probabilities.
    """
    growths = [_Growth(request, siblings) for request in requests]
    names = None if network.vocabulary is None else network.vocabulary.cpu()
    logits = network.begin(requests)
    members, counts, depth = list(range(len(requests))), [1] * len(requests), 0
    while members:
        rows = [growths[member] for member in members]
        children = _children(logits, rows, counts, calibration, names)
        starts = accumulate(counts[:-1], initial=0)
        each = zip(members, rows, children, starts, strict=True)
        alive = [
            (member, part)
            for member, growth, drawn, start in each
            if (part := growth.advance(drawn, start)) is not None
        ]
        depth += 1
        members, counts = [member for member, _ in alive], [len(part.tokens) for _, part in alive]
        if alive:
            wave = Wave(
                members,
                counts,
                torch.tensor([token for _, part in alive for token in part.tokens]),
                torch.tensor([parent for _, part in alive for parent in part.parents]),
                [part.visible for _, part in alive],
                depth,
            )
            logits = network.run(wave)
    return [growth.finish(names) for growth in growths]


class _Next(NamedTuple):
    """The part of one request in the next wave."""

    tokens: list[int]
    parents: list[int]
    visible: Tensor | None


class _Drawn(NamedTuple):
    """The children of each node of a frontier. ``tokens``: -1 where there is no child.
    ``log_accepted``: logarithms of how probably they are accepted; ``None`` where nobody asks.
    """

    tokens: list[list[int]]
    log_accepted: list[list[float]] | None


def _children(
    logits: Tensor,
    rows: Sequence[_Growth],
    counts: Sequence[int],
    calibration: Calibration,
    names: Tensor | None,
) -> list[_Drawn]:
    """The children of every request's frontier; those that keep their distributions do so."""
    temperatures = {growth.request.temperature or 1.0 for growth in rows}
    if len(temperatures) > 1 or not all(growth.plain for growth in rows):
        parts = zip(rows, logits.split(list(counts)), strict=True)
        return [growth.draw(part.float(), calibration, names) for growth, part in parts]
    widest = min(max(growth.widest for growth in rows), logits.shape[-1])
    log_accepted: list[list[float]] | None = None
    if any(growth.scored for growth in rows):
        scaled = logits.float() / temperatures.pop()
        found = scaled.log_softmax(-1).topk(widest)
        log_q = found.values.cpu()
        tokens = found.indices.cpu().masked_fill_(log_q == -math.inf, -1)
        log_accepted = calibration.log_accepted(log_q).tolist()
    elif widest == 1:
        tokens = logits.argmax(-1, keepdim=True).cpu()
    else:
        best = logits.topk(widest)
        tokens = best.indices.masked_fill(best.values == -math.inf, -1).cpu()
    named = _named(tokens, names)
    bounds = pairwise(accumulate(counts, initial=0))
    if log_accepted is None:
        return [_Drawn(named[start:end], None) for start, end in bounds]
    return [_Drawn(named[start:end], log_accepted[start:end]) for start, end in bounds]


def _named(tokens: Tensor, names: Tensor | None) -> list[list[int]]:
    """What the drafter's tokens ``(m, k)``, on the CPU, are called by the verifier."""
    if names is not None:
        tokens = torch.where(tokens < 0, -1, names[tokens.clamp_min(0)])
    named: list[list[int]] = tokens.tolist()
    return named


@dataclass(slots=True, eq=False)
class _Growth:
    """One request's tree while it grows."""

    request: DraftRequest
    siblings: Siblings
    shape: Shape = field(init=False)
    tokens: list[int] = field(default_factory=list)  # of the candidates behind the root
    parents: list[int] = field(default_factory=list)  # candidates
    scores: list[float] = field(default_factory=list)  # of dynamic shapes
    q: list[Tensor] = field(default_factory=list)  # behind each node that was run
    ran: list[int] = field(default_factory=list)  # candidates that were run, in order
    _frontier: list[int] = field(default_factory=lambda: [0])  # candidates whose logits come next
    _paths: list[float] = field(default_factory=lambda: [0.0])  # scores of the frontier
    _lost: set[int] = field(default_factory=set)  # which of the frontier there are not
    _seen: NDArray[np.bool_] | None = None  # what the frontier sees of what was run
    _depth: int = 0  # of the frontier

    def __post_init__(self) -> None:
        self.shape = self.request.shape
        drawn = self.request.temperature > 0 and (
            isinstance(self.shape, Topology) or self.shape.is_chain
        )
        if not drawn:
            self.siblings = "deterministic"

    @property
    def widest(self) -> int:
        """Most children of a node."""
        return self.shape.width if isinstance(self.shape, Dynamic) else levels_of(self.shape).widest

    @property
    def scored(self) -> bool:
        """Whether it goes by probabilities."""
        return isinstance(self.shape, Dynamic)

    @property
    def plain(self) -> bool:
        """Whether the most probable tokens are all that it needs."""
        return self.siblings == "deterministic" and not self.request.wants_q

    def draw(self, logits: Tensor, calibration: Calibration, names: Tensor | None) -> _Drawn:
        """Children of its rows ``(m, V)``; keeps the distributions, if they are of use."""
        q = (logits / (self.request.temperature or 1.0)).softmax(-1)
        if not self.plain:  # it may yet go on among others that are
            self.q.append(q)
        children = sample_children(q, self.widest, self.siblings, self.request.generator)
        named = _named(children.cpu(), names)
        if not self.scored:
            return _Drawn(named, None)
        log_q = q.gather(1, children.clamp_min(0)).log().cpu()
        return _Drawn(named, calibration.log_accepted(log_q).tolist())

    def advance(self, drawn: _Drawn, start: int) -> _Next | None:
        """Take in the children of the frontier; what to run next, ``None`` for nothing.

        ``start``: the frontier's first row in the logits.
        """
        before = len(self.tokens)
        if isinstance(self.shape, Dynamic):
            chosen, slots = self._choose(drawn, self.shape)
        else:
            chosen, slots = self._name(drawn, levels_of(self.shape))
        if not chosen:
            return None
        self._depth += 1
        self._frontier = [1 + before + new for new in chosen]
        visible = None
        if self._seen is not None or len(slots) > 1:
            seen = np.ones((1, len(self.ran)), bool) if self._seen is None else self._seen
            self._seen = np.concatenate([seen[slots], np.eye(len(slots), dtype=bool)], 1)
            visible = torch.from_numpy(self._seen)
        self.ran += self._frontier
        tokens = [max(self.tokens[before + new], 0) for new in chosen]
        return _Next(tokens, [start + slot for slot in slots], visible)

    def _name(self, drawn: _Drawn, levels: Levels) -> tuple[Sequence[int], Sequence[int]]:
        """The next level of a static shape: which of its candidates to run, and the rows of their
        parents in the frontier.
        """
        level, tokens = levels.each[self._depth], drawn.tokens
        named = [
            -1 if slot in self._lost else tokens[slot][rank]
            for slot, rank in zip(level.slots, level.ranks, strict=True)
        ]
        self.tokens += named
        self.parents += [self._frontier[slot] for slot in level.slots]
        self._lost = {place for place, node in enumerate(level.inner) if named[node] < 0}
        return level.inner, [level.slots[node] for node in level.inner]

    def _choose(self, drawn: _Drawn, shape: Dynamic) -> tuple[Sequence[int], Sequence[int]]:
        """The same for a dynamic one."""
        assert drawn.log_accepted is not None
        width = min(shape.width, len(drawn.tokens[0]))
        scores = list[float]()
        each = zip(self._frontier, self._paths, drawn.tokens, drawn.log_accepted, strict=True)
        for parent, path, tokens, log_accepted in each:
            self.tokens += tokens[:width]
            self.parents += [parent] * width
            pairs = zip(tokens[:width], log_accepted[:width], strict=True)
            scores += [path + more if token >= 0 else -math.inf for token, more in pairs]
        self.scores += scores
        if self._depth + 1 == shape.depth:
            return [], []
        enough = math.log(shape.least) if shape.least > 0 else -math.inf
        if len(self.scores) >= shape.budget:
            enough = max(enough, sorted(self.scores, reverse=True)[shape.budget - 1])
        best = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:width]
        # A child is never more probable than its parent.
        chosen = [place for place in best if scores[place] > enough]
        self._paths = [scores[place] for place in chosen]
        return chosen, [place // width for place in chosen]

    def finish(self, names: Tensor | None) -> Grown:
        """The tree, its candidates in order; ``names``: tokens of the distributions' columns."""
        kept = [place for place, token in enumerate(self.tokens) if token >= 0]
        if isinstance(self.shape, Dynamic) and self.siblings == "deterministic":
            if self.shape.least > 0:
                least = math.log(self.shape.least)
                kept = [place for place in kept if self.scores[place] >= least]
            # Stable, and elders come first: no child without its parent.
            best = sorted(kept, key=self.scores.__getitem__, reverse=True)
            kept = sorted(best[: self.shape.budget])
        number = [0] + [-1] * len(self.tokens)
        for new, place in enumerate(kept, start=1):
            number[1 + place] = new
        ran = [number[candidate] for candidate in self.ran]
        tree = DraftTree(
            topology((-1, *(number[self.parents[place]] for place in kept))),
            (self.request.tokens[-1], *(self.tokens[place] for place in kept)),
            self._distributions([0, *ran], 1 + len(kept), names),
            self.siblings,
        )
        return Grown(tree, ran)

    def _distributions(self, ran: Sequence[int], nodes: int, names: Tensor | None) -> Tensor | None:
        """What the children of each node were chosen from, ``(nodes, V)``; ``ran``: the tree's
        nodes that were run, -1 for those that are not part of it.
        """
        if not self.q:
            return None
        q = torch.cat(self.q)
        rows = [row for row, node in enumerate(ran) if node >= 0]
        if names is not None:
            columns = names.to(q.device).expand(len(q), -1)
            q = q.new_zeros(len(q), int(names.max()) + 1).scatter_(1, columns, q)
        found = q.new_zeros(nodes, q.shape[1])
        found[[ran[row] for row in rows]] = q[rows]
        return found
