"""How much to draft: as much as pays, down to nothing, by what drafting was seen to bring and cost.

Speculation must never be slower than plain decoding. So plain steps are timed first, then a few
small drafts; from there on the batch drafts what promises the most tokens per second, and where
nothing promises more than plain decoding, nothing. That is tried again rarely. Knows verifiers,
drafters and trees by what steps report only.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from specdec.engine.costs import Drafts
from specdec.engine.measured import Measured
from specdec.engine.planner import Fixed, Outcome, Planner
from specdec.engine.rates import Rates
from specdec.engine.worth import NOTHING, PLAIN, Option, Plan, best, speed
from specdec.identity import identity_of
from specdec.interfaces import Drafter, Verifier
from specdec.tree import Dynamic, Shape, chain

_LARGEST = Dynamic(budget=16, depth=8)
_PAIRS = 8  # whose measurements are kept
_GAIN = 1.03  # promised speed, over that of the plan in force, that is worth another plan
_STALE = 2.0  # observations that those of a request before a pause are worth after it
_HOPE = 1.0  # standard deviations that acceptance may be better than it looks
_PATIENCE = 4  # steps between two choices, once acceptance is known
_LOOK = 48  # steps: how often two are spent on trees a little shallower or deeper
_PLAIN_EVERY = 128  # steps: where drafting pays, how often a plain one is timed at least
_WARM = 4  # steps after which a drafter that was not asked has to catch up
_FEW = 0.25  # of those who draft: so many may be catching up in a step that is timed
_TIMED = 8  # drafted steps after which their cost is known well enough for short probes


class Adaptive:
    """Drafts as much as pays: for each request and step a smaller or larger tree, or none.

    It measures how far drafts are accepted and how long steps take, and keeps that from call to
    call: pass the same object again. What it measured is of one drafter and one verifier; with
    others it starts anew. Several threads may use it.

    Args:
        largest: the largest tree, an int for a chain of that many tokens; ``None`` is a dynamic
            tree of 16 nodes, 8 deep. Verifiers that take chains only get chains as deep.
    """

    def __init__(self, largest: Shape | int | None = None) -> None:
        shape = chain(largest) if isinstance(largest, int) else largest
        self.largest: Shape = _LARGEST if shape is None else shape
        self._pairs: OrderedDict[Hashable, Measured] = OrderedDict()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(up to {len(self.largest) - 1} nodes)"

    def planner(self, drafter: Drafter, verifier: Verifier) -> Planner:
        """One for an engine that runs these two."""
        largest = self.largest
        if verifier.spec.chains_only and not largest.is_chain:
            is_dynamic = isinstance(largest, Dynamic)
            largest = (
                Dynamic(largest.depth, largest.depth, 1) if is_dynamic else chain(largest.depth)
            )
        if len(largest) == 1:
            return Fixed(largest)
        key = (identity_of(drafter), identity_of(verifier), largest.is_chain)
        with self._lock:
            measured = self._pairs.get(key)
            if measured is None:
                measured = self._pairs[key] = Measured(largest)
            self._pairs.move_to_end(key)
            while len(self._pairs) > _PAIRS:
                self._pairs.popitem(last=False)
        return Controller(measured, self._lock)


@dataclass(slots=True)
class _Row:
    """A request: its own rates, what it drafts (``None``: not said yet), and the steps since it
    drafted.
    """

    rates: Rates
    option: Option | None = None
    idle: int = _WARM


@dataclass(slots=True)
class _Probe:
    """Drafting although it seems not to pay: by one request, for a step or two."""

    id: int
    steps: int = 0
    time: float = 0.0
    lost: float = 0.0
    hit: bool = False


Kind = Literal["plain", "draft", "probe"]


@dataclass(eq=False)
class Controller:
    """Plans the steps of one engine.

    Args:
        measured: what is known of its drafter and verifier, shared with other engines.
        lock: held while that is read or written.
    """

    learns = True

    measured: Measured
    lock: threading.RLock
    _rows: dict[int, _Row] = field(default_factory=dict)
    _plans: dict[int, Plan] = field(default_factory=dict)  # of the step in progress
    _kind: Kind = "plain"
    _speed: float = 1.0  # promised, in tokens per plain step's time
    _gain: float = 1.0  # that over plain decoding's
    _age: int = 0  # steps since the last choice
    _drafted: int = 0  # steps that drafted because that pays
    _since_plain: int = 0
    _elsewhere: float = 0.0  # tokens that a plain step's time is worth beyond one for each
    _probe: _Probe | None = None

    @property
    def largest(self) -> Shape:
        """No shape is larger."""
        return self.measured.shapes[0]

    def shapes(self, ids: Sequence[int], *, load: int = 0, timed: bool = True) -> list[Shape]:
        """The shapes for the requests of the next step; of depth 0 where drafting does not pay.

        Where others would run, too, if only their prompts had been run, time is worth more: the
        sooner they do, the more share the steps. Nothing is tried out in a step that is not
        ``timed``.
        """
        with self.lock:
            self._elsewhere = self._gain * self.measured.costs.elsewhere(len(ids), load)
            if self._rows.keys() != set(ids):
                self._renew(ids)
            self._plans = dict(zip(ids, self._next(ids, timed), strict=True))
            if self._kind == "plain":
                return [self.measured.nothing] * len(ids)
            cost = self.measured.cost(len(ids))
            plans = self._plans.values()
            return [self.measured.shape(p, self._speed, cost, len(ids)) for p in plans]

    def _renew(self, ids: Sequence[int]) -> None:
        """Requests have come or gone. Choosing for many takes time, so where some stay those who
        come do as most of them do, until it is time to choose anyway.
        """
        stay = {i: row for i in ids if (row := self._rows.get(i)) is not None}
        self._age += (not self.measured.drafts) if stay else _PATIENCE
        usual = Counter(row.option for row in stay.values()).most_common(1)
        for i in ids:
            if i not in stay:
                stay[i] = _Row(self.measured.rates(), usual[0][0] if usual else None)
        self._rows = stay

    def observe(self, outcomes: Sequence[Outcome], seconds: float | None, drafting: float) -> None:
        """Learn from a step."""
        with self.lock:
            self._learn(outcomes, seconds, drafting)
            for outcome in outcomes:
                row = self._rows[outcome.id]
                row.idle = 0 if outcome.asked else row.idle + 1

    def _next(self, ids: Sequence[int], timed: bool) -> list[Plan]:
        measured = self.measured
        nothing = [PLAIN] * len(ids)
        self._kind = "plain"
        if not measured.costs.knows(len(ids)):
            return nothing
        if self._probe is not None and self._probe.id not in self._rows:
            self._end_probe(self._probe)
        quick = measured.is_new and len(ids) <= _PATIENCE  # choosing for more takes long
        if self._probe is None and self._age >= (1 if quick else _PATIENCE):
            self._choose(ids)
        if measured.drafts:
            if timed and self._since_plain >= measured.costs.plain_every(len(ids), _PLAIN_EVERY):
                return nothing
            self._kind = "draft"
            plans = [(self._rows[i].option or NOTHING).plan for i in ids]
            turn, late = divmod(self._drafted, _LOOK)
            if late < _LOOK - 2 or not timed:
                return plans
            return [measured.beside(plan, 1 if turn % 2 else -1) for plan in plans]
        if not timed:
            return nothing
        if self._probe is None and measured.ledger.probe_is_due:
            measured.rest()
            for row in self._rows.values():
                row.rates.cap(_STALE)
            ladders = measured.ladders([row.rates for row in self._rows.values()])
            promises = {i: ladder[-1].tokens for i, ladder in zip(self._rows, ladders, strict=True)}
            self._probe = _Probe(max(ids, key=lambda i: promises[i]))
        if self._probe is None:
            return nothing
        self._kind = "probe"
        return [measured.probe if i == self._probe.id else PLAIN for i in ids]

    def _choose(self, ids: Sequence[int]) -> None:
        """Plans for all requests, if others than those in force promise enough more."""
        measured, rows = self.measured, [self._rows[i] for i in ids]
        self._age = 0
        cost, plain = measured.cost(len(ids)), len(ids) + self._elsewhere
        # What is not known to be bad may be good.
        hope = _HOPE if measured.ledger.has_room else 0.0
        deepest = max((row.option.plan.depth for row in rows if row.option is not None), default=0)
        ladders = measured.ladders([row.rates for row in rows], hope, beyond=deepest)
        found, promised = best(ladders, cost, self._elsewhere)
        if measured.ledger.is_overdrawn:
            found, promised = [NOTHING] * len(ids), plain
        now = [
            _now(row.option, ladder, option if measured.drafts else NOTHING)
            for row, ladder, option in zip(rows, ladders, found, strict=True)
        ]
        reached = speed(now, cost, self._elsewhere)
        if reached < plain or promised > _GAIN * reached or promised == plain:
            now, reached = found, promised
        for row, option in zip(rows, now, strict=True):
            row.option = option
        self._speed = max(reached, plain)
        self._gain = self._speed / plain
        drafts = any(option.plan.depth for option in now)
        if measured.drafts and not drafts:
            measured.ledger.stopped()
        measured.drafts = drafts

    def _learn(self, outcomes: Sequence[Outcome], seconds: float | None, drafting: float) -> None:
        measured, batch = self.measured, len(outcomes)
        measured.steps += 1
        drafted = [outcome for outcome in outcomes if outcome.asked]
        if not drafted:
            if seconds is not None:
                measured.costs.see_plain(batch, seconds)
                self._since_plain = 0
            measured.paused()
            if measured.drafts:  # its time may change what pays
                self._age = _PATIENCE
            if self._probe is not None and self._kind == "probe":
                self._end_probe(self._probe)  # nobody may draft
            return
        self._since_plain += 1
        plain = measured.costs.plain(batch)
        if plain is None:
            return  # others have left the batch, and it is of a size that is new
        drafts = Drafts(
            sum(o.nodes for o in drafted),
            sum(o.ran for o in drafted),
            max(o.levels for o in drafted),
        )
        # A drafter that has paused has to catch up: that is not what a draft takes.
        cold = sum(self._rows[o.id].idle >= _WARM for o in drafted)
        extra = measured.starting(cold, batch)
        usual = measured.costs.of(batch).step(drafts.work, drafts.levels)
        time = usual + extra
        if seconds is not None:
            time = measured.costs.relative(batch, drafts, seconds, extra)
        warm = drafting - min(extra * plain, 0.5 * drafting)
        if cold <= _FEW * len(drafted):
            if seconds is None:
                measured.costs.see_drafting(batch, drafts, warm)
            else:
                measured.costs.see_drafted(batch, drafts, seconds - drafting + warm, warm)
        elif seconds is not None:
            extra = time - usual
            measured.began(cold, batch, extra)
        for outcome in drafted:
            asked = min(outcome.asked, outcome.accepted) if outcome.ended else outcome.asked
            self._rows[outcome.id].rates.see(outcome.accepted, asked)
            plan = self._plans[outcome.id]
            own = Drafts(outcome.nodes, outcome.ran, outcome.levels)
            measured.saw(plan, asked, own, outcome.accepted)
        # In what they are worth: one for each is a plain step's time.
        more = sum(o.tokens for o in outcomes) - batch
        tokens = 1.0 + more / (batch + self._elsewhere)
        if self._kind == "draft":
            measured.paid(extra)
            measured.ledger.drafted(time, tokens)
            self._age += 1
            self._drafted += 1
            measured.went_on()
            measured.age({self._plans[o.id] for o in drafted})
            for outcome in outcomes:
                if not outcome.asked:
                    self._rows[outcome.id].rates.fade(0.98)
        elif self._probe is not None:
            self._probed(self._probe, time, time - tokens, any(o.accepted for o in drafted))

    def _probed(self, probe: _Probe, time: float, lost: float, hit: bool) -> None:
        probe.steps += 1
        probe.time += time
        probe.lost += lost
        probe.hit |= hit
        known = self.measured.costs.timed >= _TIMED
        if probe.steps == 2 or (known and not probe.hit):
            self._end_probe(probe)

    def _end_probe(self, probe: _Probe) -> None:
        self.measured.ledger.probed(probe.time, probe.lost, probe.hit)
        self._probe = None
        self._age = _PATIENCE


def _now(current: Option | None, ladder: Sequence[Option], fresh: Option) -> Option:
    """What the plan in force promises by now; ``fresh`` where none is."""
    if current is None:
        return fresh
    return next((option for option in ladder if option.plan == current.plan), NOTHING)


def planner_for(shape: Shape | Adaptive, drafter: Drafter | None, verifier: Verifier) -> Planner:
    """What an engine's ``shape`` means.

    Raises:
        ValueError: a fixed shape branches, and the verifier keeps a state that cannot.
    """
    if isinstance(shape, Adaptive):
        return Fixed(chain(0)) if drafter is None else shape.planner(drafter, verifier)
    if verifier.spec.chains_only and not shape.is_chain:
        raise ValueError(
            f"verifier {verifier.spec.name} keeps a state that cannot branch, and the tree of "
            f"{len(shape)} nodes does: pass tree=k, a chain of k tokens"
        )
    return Fixed(shape)
