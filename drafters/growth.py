"""How a drafter's model grows trees: level by level, one forward a level for the whole batch.

Knows the model as a :class:`Network` only. What is done once a node is done in tensors; Python runs
once a level and request.

A request's *candidates* are the tokens that were looked at, numbered as they come up, the root
first; its *frontier* are those that the next forward runs. A static shape names both beforehand, a
dynamic one chooses them by path probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from specdec.drafters.calibration import Calibration
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
        start, nexts = 0, list[_Next | None]()
        children = _children(logits, rows, counts, calibration)
        for growth, drawn, count in zip(rows, children, counts, strict=True):
            if names is not None:
                known = names[drawn.tokens.clamp_min(0)]
                drawn = drawn._replace(tokens=torch.where(drawn.tokens < 0, -1, known))
            nexts.append(growth.advance(drawn, start))
            start += count
        alive = [(member, n) for member, n in zip(members, nexts, strict=True) if n is not None]
        depth += 1
        members, counts = [m for m, _ in alive], [len(n.tokens) for _, n in alive]
        if alive:
            wave = Wave(
                members,
                counts,
                torch.cat([n.tokens for _, n in alive]),
                torch.cat([n.parents for _, n in alive]),
                [n.visible for _, n in alive],
                depth,
            )
            logits = network.run(wave)
    return [growth.finish(names) for growth in growths]


class _Next(NamedTuple):
    """The part of one request in the next wave."""

    tokens: Tensor
    parents: Tensor
    visible: Tensor | None


class _Drawn(NamedTuple):
    """On the CPU. ``tokens``: int64 ``(m, k)``, -1 where there is no child. ``log_accepted``:
    logarithms of how probably they are accepted; ``None`` where nobody asks.
    """

    tokens: Tensor
    log_accepted: Tensor | None


def _children(
    logits: Tensor, rows: Sequence[_Growth], counts: Sequence[int], calibration: Calibration
) -> Sequence[_Drawn]:
    """The children of every request's frontier; those that keep their distributions do so."""
    temperatures = {growth.request.temperature or 1.0 for growth in rows}
    if len(temperatures) > 1 or not all(growth.plain for growth in rows):
        parts = logits.split(list(counts))
        pairs = zip(rows, parts, strict=True)
        return [growth.draw(part.float(), calibration) for growth, part in pairs]
    widest = min(max(growth.widest for growth in rows), logits.shape[-1])
    if any(growth.scored for growth in rows):
        scaled = logits.float() / temperatures.pop()
        found = scaled.log_softmax(-1).topk(widest)
        log_q = found.values.cpu()
        tokens = found.indices.cpu().masked_fill_(log_q == -math.inf, -1)
        accepted = calibration.log_accepted(log_q)  # once for all: few numbers each
        each = zip(tokens.split(list(counts)), accepted.split(list(counts)), strict=True)
        return [_Drawn(*pair) for pair in each]
    if widest == 1:
        tokens = logits.argmax(-1, keepdim=True).cpu()
    else:
        best = logits.topk(widest)
        tokens = best.indices.masked_fill(best.values == -math.inf, -1).cpu()
    return [_Drawn(part, None) for part in tokens.split(list(counts))]


@dataclass(slots=True, eq=False)
class _Growth:
    """One request's tree while it grows."""

    request: DraftRequest
    siblings: Siblings
    shape: Shape = field(init=False)
    tokens: list[Tensor] = field(default_factory=list)  # of each level's candidates
    parents: list[Tensor] = field(default_factory=list)  # numbers of candidates
    scores: list[Tensor] = field(default_factory=list)
    q: list[Tensor] = field(default_factory=list)  # behind each node that was run
    ran: list[Tensor] = field(default_factory=list)  # candidates that were run, level by level
    _frontier: Tensor = field(init=False)  # candidates whose logits come next
    _seen: Tensor | None = None  # what the frontier sees of what was run
    _paths: Tensor = field(init=False)  # scores of the frontier
    _lost: Tensor | None = None  # which of the frontier there are not, if any
    _count: int = 1

    def __post_init__(self) -> None:
        self.shape = self.request.shape
        drawn = self.request.temperature > 0 and (
            isinstance(self.shape, Topology) or self.shape.is_chain
        )
        if not drawn:
            self.siblings = "deterministic"
        self._frontier = torch.zeros(1, dtype=torch.long)
        self._paths = torch.zeros(1)

    @property
    def widest(self) -> int:
        """Most children of a node."""
        return self.shape.width if isinstance(self.shape, Dynamic) else _levels(self.shape).widest

    @property
    def scored(self) -> bool:
        """Whether it goes by probabilities."""
        return isinstance(self.shape, Dynamic)

    @property
    def plain(self) -> bool:
        """Whether the most probable tokens are all that it needs."""
        return self.siblings == "deterministic" and not self.request.wants_q

    def draw(self, logits: Tensor, calibration: Calibration) -> _Drawn:
        """Children of its rows ``(m, V)``; keeps the distributions, if they are of use."""
        q = (logits / (self.request.temperature or 1.0)).softmax(-1)
        if not self.plain:  # it may yet go on among others that are
            self.q.append(q)
        children = sample_children(q, self.widest, self.siblings, self.request.generator)
        if not self.scored:
            return _Drawn(children.cpu(), None)
        log_q = q.gather(1, children.clamp_min(0)).log().cpu()
        return _Drawn(children.cpu(), calibration.log_accepted(log_q))

    def advance(self, drawn: _Drawn, start: int) -> _Next | None:
        """Take in the children of the frontier; what to run next, ``None`` for nothing.

        ``start``: the frontier's first row in the logits.
        """
        if isinstance(self.shape, Dynamic):
            chosen, slots = self._choose(drawn, self.shape)
        else:
            chosen, slots = self._name(drawn, _levels(self.shape))
        if not len(chosen):
            return None
        self._frontier = self._count + chosen
        self._count += len(self.tokens[-1])
        self.ran.append(self._frontier)
        visible = None
        if self._seen is not None or len(slots) > 1:
            seen = torch.ones(1, len(self.ran) - 1).bool() if self._seen is None else self._seen
            visible = torch.cat([seen[slots], torch.eye(len(slots)).bool()], 1)
            self._seen = visible
        return _Next(self.tokens[-1][chosen].clamp_min(0), start + slots, visible)

    def _name(self, drawn: _Drawn, levels: _Levels) -> tuple[Tensor, Tensor]:
        """The next level of a static shape: which of its candidates to run, and the rows of their
        parents in the frontier.
        """
        level = levels.each[len(self.tokens)]
        tokens = drawn.tokens
        if self._lost is not None:
            tokens = tokens.masked_fill(self._lost[:, None], -1)
        named = tokens[level.slots, level.ranks]
        self.tokens.append(named)
        self.parents.append(self._frontier[level.slots])
        lost = named[level.inner] < 0
        self._lost = lost if bool(lost.any()) else None
        return level.inner, level.slots[level.inner]

    def _choose(self, drawn: _Drawn, shape: Dynamic) -> tuple[Tensor, Tensor]:
        """The same for a dynamic one."""
        assert drawn.log_accepted is not None
        tokens = drawn.tokens[:, : shape.width]
        paths = self._paths[:, None] + drawn.log_accepted[:, : shape.width]
        scores = torch.where(tokens >= 0, paths, -math.inf).flatten()
        self.tokens.append(tokens.flatten())
        self.parents.append(self._frontier.repeat_interleave(tokens.shape[1]))
        self.scores.append(scores)
        if len(self.tokens) == shape.depth:
            none = torch.zeros(0, dtype=torch.long)
            return none, none
        enough = math.log(shape.least) if shape.least > 0 else -math.inf
        if self._count - 1 + len(scores) >= shape.budget:
            every = torch.cat(self.scores)
            enough = max(enough, float(every.topk(shape.budget).values[-1]))
        best = scores.topk(min(shape.width, len(scores)))
        # A child is never more probable than its parent.
        chosen = best.indices[best.values > enough]
        self._paths = scores[chosen]
        return chosen, chosen // tokens.shape[1]

    def finish(self, names: Tensor | None) -> Grown:
        """The tree, its candidates in order; ``names``: tokens of the distributions' columns."""
        tokens = torch.cat(self.tokens) if self.tokens else torch.zeros(0, dtype=torch.long)
        kept = tokens >= 0
        if isinstance(self.shape, Dynamic) and len(tokens) and self.siblings == "deterministic":
            scores = torch.cat(self.scores)
            if self.shape.least > 0:
                kept &= scores >= math.log(self.shape.least)
            if int(kept.sum()) > self.shape.budget:
                # Stable, and elders come first: no child without its parent.
                order = scores.masked_fill(~kept, -math.inf).sort(descending=True, stable=True)
                kept = torch.zeros_like(kept)
                kept[order.indices[: self.shape.budget]] = True
        number = torch.full((len(tokens) + 1,), -1)
        number[0] = 0
        number[1:][kept] = torch.arange(1, int(kept.sum()) + 1)
        above = number[torch.cat(self.parents)[kept]].tolist() if len(tokens) else []
        tree = DraftTree(
            topology((-1, *above)),
            (self.request.tokens[-1], *tokens[kept].tolist()),
            self._distributions(number, 1 + len(above), names),
            self.siblings,
        )
        return Grown(tree, number[torch.cat(self.ran)].tolist() if self.ran else [])

    def _distributions(self, number: Tensor, nodes: int, names: Tensor | None) -> Tensor | None:
        """What the children of each node were chosen from, ``(nodes, V)``."""
        if not self.q:
            return None
        ran = number[torch.cat([torch.zeros(1, dtype=torch.long), *self.ran])]
        q = torch.cat(self.q)
        there = ran >= 0
        if names is not None:
            columns = names.to(q.device).expand(len(q), -1)
            q = q.new_zeros(len(q), int(names.max()) + 1).scatter_(1, columns, q)
        found = q.new_zeros(nodes, q.shape[1])
        found[ran[there].to(q.device)] = q[there.to(q.device)]
        return found


class _Level(NamedTuple):
    """Candidates of one depth of a static shape: rows of their parents in the frontier, which child
    each is, and which of them have children.
    """

    slots: Tensor
    ranks: Tensor
    inner: Tensor


class _Levels(NamedTuple):
    each: list[_Level]
    widest: int


@lru_cache(maxsize=256)
def _levels(shape: Topology) -> _Levels:
    """A static shape by levels. Candidates are numbered level by level, as siblings come."""
    each, frontier = list[_Level](), [0]
    while frontier:
        nodes = [child for node in frontier for child in shape.children[node]]
        slots = [i for i, node in enumerate(frontier) for _ in shape.children[node]]
        ranks = [rank for node in frontier for rank in range(len(shape.children[node]))]
        inner = [i for i, node in enumerate(nodes) if shape.children[node]]
        each.append(_Level(torch.tensor(slots), torch.tensor(ranks), torch.tensor(inner).long()))
        frontier = [nodes[i] for i in inner]
    return _Levels(each, max(map(len, shape.children)))
