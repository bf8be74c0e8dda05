"""Several drafters whose proposals make one tree, each with as many nodes as it has earned.

A bandit shares the nodes out: of each member and request it keeps how many accepted tokens the
member's trees contained per node, and draws what that may be from a Beta distribution (Thompson
sampling), old counts fading. The shares are in proportion to the draws. What was accepted is read
off the text that follows. Knows its members as drafters only.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from specdec.identity import identity_of
from specdec.interfaces import (
    Drafter,
    DraftRequest,
    Reads,
    VerifierSpec,
    reads_of,
)
from specdec.tree import DraftTree, Dynamic, Shape, chain, topology

_KEEP = 0.95  # weight of a request's counts after the next proposal
_KEEP_SHARED = 0.99
_PRIOR = 8.0  # nodes that what other requests saw is worth to a request


class EnsembleDrafter:
    """Drafts with several drafters at once.

    The members are asked in this order, the cheap ones best first: what one leaves of its share
    goes to those behind it. Where the tree must be a chain, the best one by draw makes it, and the
    next best if it has nothing to say. The tree carries no q: its siblings are deterministic, which
    is exact whoever chose them, so members are asked as for greedy requests.

    Args:
        drafters: the members.
        seed: of the draws.

    Raises:
        ValueError: there are none, or two read different layers of the verifier.
    """

    def __init__(self, drafters: Sequence[Drafter], seed: int = 0) -> None:
        if not drafters:
            raise ValueError("an ensemble needs drafters, got none")
        self.drafters = tuple(drafters)
        self.reads = _union(self.drafters)
        self._rng = random.Random(seed)
        self._shared = [_Count(_KEEP_SHARED) for _ in self.drafters]
        self._states: dict[int, _State] = {}

    @property
    def name(self) -> str:
        """Those of the members."""
        return "+".join(drafter.name for drafter in self.drafters)

    @property
    def identity(self) -> Hashable:
        """That of the members."""
        return tuple(identity_of(drafter) for drafter in self.drafters)

    @property
    def model_seconds(self) -> float:
        """Seconds spent inside the members' models."""
        return sum(drafter.model_seconds for drafter in self.drafters)

    @property
    def bytes_taken(self) -> int:
        """What the members' own keys and values take now."""
        return sum(getattr(drafter, "bytes_taken", 0) for drafter in self.drafters)

    def check(self, verifier: VerifierSpec) -> None:
        """Raise ``ValueError`` if one of the members cannot serve ``verifier``."""
        for drafter in self.drafters:
            drafter.check(verifier)

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        """One tree per request: what the members propose, merged where beginnings are the same.
        Deterministic siblings, no q.
        """
        merges = [self._begin(request) for request in batch]
        for rank in range(len(self.drafters)):
            for member, drafter in enumerate(self.drafters):
                asked = [m for m in merges if m.order[rank] == member and m.share(member)]
                if asked:
                    trees = drafter.propose([merge.view(member) for merge in asked])
                    for merge, tree in zip(asked, trees, strict=True):
                        merge.add(member, tree)
        return [merge.tree() for merge in merges]

    def release(self, request_id: int) -> None:
        """Forget the request, as the members do."""
        self._states.pop(request_id, None)
        for drafter in self.drafters:
            drafter.release(request_id)

    def _begin(self, request: DraftRequest) -> _Merge:
        """Learn what became of the last proposal, hand out hidden states, draw the shares."""
        state = self._states.get(request.id)
        if state is None:
            state = self._states[request.id] = _State(
                [_Count(_KEEP) for _ in self.drafters], [[] for _ in self.drafters]
            )
        new = request.tokens[state.length :]
        for member, tree in state.trees.items():
            hits = sum(1 for _ in tree.follow(new))
            for count in (state.counts[member], self._shared[member]):
                count.see(hits, len(tree) - 1)
        state.trees, state.length = {}, len(request.tokens)
        readers = [m for m, drafter in enumerate(self.drafters) if reads_of(drafter).layers]
        for member in readers:
            state.states[member].extend(request.states)
        if readers:
            request.states.clear()
        pairs = zip(state.counts, self._shared, strict=True)
        draws = [count.draw(self._rng, shared) for count, shared in pairs]
        order = list(range(len(draws)))
        if request.shape.is_chain:
            order.sort(key=lambda member: -draws[member])
        return _Merge(request, state, draws, order)


@dataclass(slots=True)
class _Count:
    """Accepted tokens that trees contained, and nodes they had, both fading."""

    keep: float
    hits: float = 0.0
    nodes: float = 0.0

    def see(self, hits: int, nodes: int) -> None:
        self.hits = self.keep * self.hits + hits
        self.nodes = self.keep * self.nodes + nodes

    def draw(self, rng: random.Random, prior: _Count) -> float:
        """What a node may yield."""
        mean = (1.0 + prior.hits) / (2.0 + prior.nodes)
        misses = self.nodes - self.hits
        return rng.betavariate(_PRIOR * mean + self.hits, _PRIOR * (1 - mean) + misses)


@dataclass(slots=True, eq=False)
class _State:
    """What is kept of a request: counts and hidden states by member, and the last trees of those
    that had something to say, at a text of ``length`` tokens.
    """

    counts: list[_Count]
    states: list[list[Tensor]]
    trees: dict[int, DraftTree] = field(default_factory=dict)
    length: int = 0


@dataclass(slots=True, eq=False)
class _Merge:
    """One request's tree while members add to it. ``order``: whom to ask first."""

    request: DraftRequest
    state: _State
    draws: list[float]
    order: list[int]
    tokens: list[int] = field(init=False)
    parents: list[int] = field(default_factory=lambda: [-1])
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = [self.request.tokens[-1]]

    def share(self, member: int) -> int:
        """The nodes that the member may add."""
        shape = self.request.shape
        if shape.is_chain:
            return len(shape) - 1 if len(self.tokens) == 1 else 0
        left = len(shape) - len(self.tokens)
        later = self.draws[member + 1 :]
        part = self.draws[member] / (self.draws[member] + sum(later))
        return min(left, max(1, round(left * part)))

    def view(self, member: int) -> DraftRequest:
        """The request as the member sees it."""
        shape = _part(self.request.shape, self.share(member))
        states = self.state.states[member]
        return replace(
            self.request,
            shape=shape,
            temperature=0.0,
            generator=None,
            wants_q=False,
            states=states,
        )

    def add(self, member: int, tree: DraftTree) -> None:
        """Merge in what the member proposes."""
        if len(tree) > 1:
            self.state.trees[member] = tree
        places = [0]
        for token, parent in zip(tree.tokens[1:], tree.topology.parents[1:], strict=True):
            key = places[parent], token
            if key not in self.children:
                self.children[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(key[0])
            places.append(self.children[key])

    def tree(self) -> DraftTree:
        """What has come of it."""
        return DraftTree(topology(tuple(self.parents)), tuple(self.tokens))


def _part(shape: Shape, nodes: int) -> Shape:
    """A shape of so many drafted nodes at most, and no larger than this one."""
    if isinstance(shape, Dynamic):
        return replace(shape, budget=min(nodes, shape.budget))
    if shape.is_chain:
        return chain(nodes)
    return Dynamic(nodes, shape.depth, width=max(map(len, shape.children)))


def _union(drafters: Sequence[Drafter]) -> Reads:
    """All that the members read."""
    readers = [drafter for drafter in drafters if reads_of(drafter).layers]
    for other in readers[1:]:
        theirs, ours = reads_of(other).layers, reads_of(readers[0]).layers
        if theirs != ours:
            raise ValueError(
                f"drafter {readers[0].name} reads the inputs of layers {ours}, drafter "
                f"{other.name} those of {theirs}: one verifier gives the same to all"
            )
    each = [reads_of(drafter) for drafter in drafters]
    return Reads(
        layers=reads_of(readers[0]).layers if readers else (),
        pages=any(reads.pages for reads in each),
        gaze=any(reads.gaze for reads in each),
    )
