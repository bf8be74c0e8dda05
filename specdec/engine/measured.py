"""What is known of a drafter and a verifier together: acceptance, costs, and what drafting lost.

Filled by every engine that runs the pair, read by the choice of the next trees. Times are in plain
steps unless they say seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from specdec.engine.costs import Cost, Costs, Drafts
from specdec.engine.planner import ran_for
from specdec.engine.rates import Rates, Size
from specdec.engine.worth import NOTHING, PLAIN, Option, Plan
from specdec.tree import Dynamic, Shape, Topology, chain

_DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_FIRST = 0.6  # acceptance before anything is known, with the weight of one observation
_SHAPE_WEIGHT = 4.0  # how many observations the pair's rates are worth to a shape's
_REQUEST_WEIGHT = 4.0  # and a shape's to a request's
_UNUSED = 0.98  # what rates are trusted for that were not measured in a step in which others were
_STALE = 6.0  # observations that those before a pause are worth after it
_LOST = 0.008  # share of the time that may be lost to drafting
_PROBED = 0.006  # and to probes
_AT_ONCE = 4.0  # plain steps that may be lost besides, at the beginning
_CREDIT = 20.0  # plain steps gained that may be lost again before drafting stops
_SPREAD = 32.0  # steps over which the price of a first draft is spread before it is known


class Ledger:
    """What drafting gained and lost against plain decoding, and when to try it again.

    Where nothing is drafted, a few steps are, ever more rarely as long as they bring nothing: the
    *probes*. Neither they nor drafting that was thought to pay may lose more than a small share of
    the time.
    """

    _RARELY = 512  # steps
    _SELDOM = 128
    _OFTEN = 4

    def __init__(self) -> None:
        self.lost = 0.0
        self._time = 0.0
        self._probes = 0.0  # what they lost
        self._last = 0.0  # what the last one lost
        self._interval = 8
        self._left = 8

    @property
    def is_overdrawn(self) -> bool:
        """Whether drafting, probes left aside, has lost more than it may."""
        return self.lost > _AT_ONCE + _LOST * self._time

    @property
    def has_room(self) -> bool:
        """Whether it has lost less than half of that."""
        return 2 * self.lost < _AT_ONCE + _LOST * self._time

    @property
    def probe_is_due(self) -> bool:
        """Whether to draft although it seems not to pay. What drafting gained pays for it, too."""
        gained = max(0.0, -self.lost)
        return self._left <= 0 and self._probes + self._last <= 1.0 + _PROBED * self._time + gained

    def plain(self) -> None:
        """Count a plain step."""
        self._time += 1.0
        self._left -= 1

    def drafted(self, time: float, tokens: float) -> None:
        """Count a step that drafted, and yielded so many tokens a request."""
        self._time += time
        self.lost = max(-_CREDIT, self.lost + time - tokens)

    def probed(self, time: float, lost: float, hit: bool) -> None:
        """Count a probe: what it took, what it lost, and whether anything was accepted of it."""
        self._time += time
        self._last = max(0.0, lost)
        self._probes = max(0.0, self._probes + lost)
        self._interval = min(2 * self._interval, self._SELDOM if hit else self._RARELY)
        if hit and lost <= 0.0:
            self._interval = self._OFTEN
        self._left = self._interval

    def stopped(self) -> None:
        """Drafting ends."""
        self._interval = self._left = 2 * self._OFTEN


class Measured:
    """Everything measured of a pair.

    Args:
        largest: the largest shape that it is to draft.
    """

    def __init__(self, largest: Shape) -> None:
        self.shapes = _shapes(largest)
        self.costs = Costs()
        self.ledger = Ledger()
        self.drafts = False  # whether the last step's batch did
        self.steps = 0
        depth = largest.depth
        depths = [d for d in _DEPTHS if d < depth] + [depth] * (depth > 0)
        self._shared = Rates(depth, keep=0.98)
        self._rates = [Rates(depth, keep=0.97) for _ in self.shapes]
        self._cut = {
            Plan(index, d): shape.truncate(d)
            for d in depths
            for index, shape in enumerate(self.shapes)
        }
        self._leaving: dict[tuple[Plan, int], Shape] = {}
        self._sizes = {
            plan: Size(_most(shape, plan.depth).work, plan.depth)
            for plan, shape in self._cut.items()
        }
        self.nothing = self._cut[PLAIN] = largest.truncate(0)
        self._first = 0.0  # what first drafts took beyond others
        self._starts = 0  # how many those were
        self._start = 0.0  # seconds of one beyond another draft's: a running mean
        self._drafts = 0.0  # how many steps drafted, because that pays

    @property
    def is_new(self) -> bool:
        """Whether so little is known that every step may change the choice."""
        return self._shared.tries[0] < 8

    @property
    def probe(self) -> Plan:
        """The cheapest way to draft."""
        return Plan(len(self.shapes) - 1, min(1, self.shapes[0].depth))

    def beside(self, plan: Plan, step: int) -> Plan:
        """The same, a little deeper (1) or shallower (-1); as it is, if there is no such plan."""
        if not plan.depth:
            return plan
        depths = sorted({other.depth for other in self._sizes})
        place = depths.index(plan.depth) + step
        return Plan(plan.shape, depths[place]) if 0 <= place < len(depths) else plan

    def cost(self, batch: int) -> Cost:
        """Of a step, what requests' first drafts take spread over the others."""
        cost = self.costs.of(batch)
        return cost._replace(fixed=cost.fixed + self._first / (self._drafts + _SPREAD))

    def rates(self) -> Rates:
        """A request's own, to be filled."""
        return Rates(self.shapes[0].depth, keep=0.95)

    def ladders(
        self, requests: Sequence[Rates], hope: float = 0.0, beyond: int = 0
    ) -> list[list[Option]]:
        """Per request all its options, by depth; ``hope`` as in :meth:`Rates.alone`."""
        shared = self._shared.alone(_FIRST, hope, beyond)
        priors = [rates.given(shared, _SHAPE_WEIGHT) for rates in self._rates]
        # As far as nothing has ever been accepted there, twice as deep is deep enough to look.
        reached = sum(hits > 0.5 for hits in self._shared.hits)
        limit = max(1, 2 * reached)
        plans = [plan for plan in self._sizes if plan.depth <= limit]
        return [self._ladder(request, priors, plans) for request in requests]

    def shape(self, plan: Plan, speed: float, cost: Cost, batch: int) -> Shape:
        """The shape to ask for. A dynamic one leaves out nodes that are not worth their time: those
        whose probability is below what the time of a node yields elsewhere.

        Args:
            speed: tokens per plain step's time.
            cost: of a step.
            batch: requests that share a level.
        """
        shape = self._cut[plan]
        if isinstance(shape, Topology) or not plan.depth:
            return shape
        least = speed * (cost.node + (cost.level / batch if shape.is_chain else 0.0))
        if least < 0.01:
            return shape
        key = plan, round(2 * math.log2(least))
        if key not in self._leaving:
            self._leaving[key] = replace(shape, least=min(0.5, 2 ** (key[1] / 2)))
        return self._leaving[key]

    def saw(self, plan: Plan, asked: int, drafts: Drafts, accepted: int) -> None:
        """Take in a request's tree: ``asked`` levels, less where the answer ended earlier."""
        self._shared.see(accepted, asked)
        self._rates[plan.shape].see(accepted, asked)
        if asked >= plan.depth:
            self._sizes[plan].see(drafts.work, drafts.levels)

    def age(self, plans: set[Plan]) -> None:
        """A step has gone by in which these plans were measured, and others were not."""
        self._shared.fade(0.99, beyond=max(plan.depth for plan in plans))
        for index, rates in enumerate(self._rates):
            if all(plan.shape != index for plan in plans):
                rates.fade(_UNUSED)

    def rest(self) -> None:
        """Nothing has been measured for a while."""
        self.costs.rest()
        for rates in (self._shared, *self._rates):
            rates.cap(_STALE)

    def paused(self) -> None:
        """Count a step that drafted nothing."""
        self.ledger.plain()
        self._first *= 0.995

    def starting(self, cold: int, batch: int) -> float:
        """What it takes that so many requests of a batch draft for the first time. It takes as many
        seconds beside others as alone, which are fewer of the plain steps of a larger batch.
        """
        plain = self.costs.plain(batch)
        return cold * self._start / plain if plain else 0.0

    def began(self, cold: int, batch: int, extra: float) -> None:
        """Take in what a step took longer because ``cold`` requests drafted in it for the first
        time.
        """
        seconds = max(0.0, extra) * (self.costs.plain(batch) or 0.0)
        self._starts += 1
        self._start += max(0.2, 1 / self._starts) * (seconds / cold - self._start)

    def paid(self, extra: float) -> None:
        """Count what first drafts took that were made because that pays."""
        self._first += max(0.0, extra)

    def went_on(self) -> None:
        """Count a step that drafted, because that pays."""
        self._first *= 0.998
        self._drafts = 0.998 * self._drafts + 1

    def _ladder(
        self, request: Rates, priors: Sequence[Sequence[float]], plans: Sequence[Plan]
    ) -> list[Option]:
        expected = []
        for prior in priors:
            tokens, path = [1.0], 1.0
            for rate in request.given(prior, _REQUEST_WEIGHT):
                path *= rate
                tokens.append(tokens[-1] + path)
            expected.append(tokens)
        options = [NOTHING]
        for plan in plans:
            size = self._sizes[plan]
            options.append(Option(plan, expected[plan.shape][plan.depth], size.work, size.levels))
        return options


def _shapes(largest: Shape) -> tuple[Shape, ...]:
    """Shapes to choose among, none larger than this one, the cheapest last."""
    if isinstance(largest, Topology):
        return (largest,) if largest.is_chain else (largest, chain(largest.depth))
    if largest.is_chain:
        return (largest,)
    # A chain is all that pays where many share a step, or the drafter is dear.
    budgets = dict.fromkeys((largest.budget, largest.budget // 2))
    wide = tuple(replace(largest, budget=budget) for budget in budgets if budget)
    narrow = min(largest.budget, largest.depth)
    return *wide, Dynamic(narrow, narrow, 1, largest.least)


def _most(shape: Shape, depth: int) -> Drafts:
    """The largest tree."""
    nodes = len(shape) - 1
    if isinstance(shape, Dynamic):
        nodes = min(shape.budget, shape.width * (1 + shape.width * (shape.depth - 1)))
    return Drafts(nodes, ran_for(shape, depth), depth)
