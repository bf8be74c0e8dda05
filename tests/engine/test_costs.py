"""What drafting costs, and which trees are worth it: figures without a clock."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specdec.engine import Adaptive
from specdec.engine.costs import Cost, Costs, Drafts
from specdec.engine.fit import Fit
from specdec.engine.measured import Measured
from specdec.engine.planner import Outcome, ran_for
from specdec.engine.worth import NOTHING, PLAIN, Option, Plan, best, speed
from specdec.tree import Dynamic, chain, static


def test_best_is_the_best_of_all_combinations() -> None:
    """Against trying every combination for three requests. The choice is by a common price of
    nodes, so a combination may be missed; never by more than 2 %.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ladders = []
        for _ in range(3):
            rate = float(torch.rand((), generator=generator))
            tokens = [sum(rate**i for i in range(depth + 1)) for depth in range(5)]
            ladder = [NOTHING]
            ladder += [Option(Plan(0, d), tokens[d], d, d) for d in range(1, 5)]
            ladders.append(ladder)
        draws = torch.rand(3, generator=generator).tolist()
        cost = Cost(0.3 * draws[0], 0.1 * draws[1], 0.3 * draws[2])
        found, reached = best(ladders, cost)
        assert speed(found, cost) == pytest.approx(reached)
        assert reached > 0.98 * max(speed(each, cost) for each in product(*ladders))


def test_costs_are_those_of_steps() -> None:
    """Nodes taken for levels, or absolute times for those of another batch size."""
    costs = Costs()
    assert costs.plain(1) is None
    for _ in range(5):
        costs.see_plain(1, 2.0)
        costs.see_plain(4, 3.0)
    costs.see_plain(1, 70.0)
    assert costs.plain(1) == 2.0
    for nodes, levels in [(1, 1), (8, 2), (4, 4), (16, 4), (2, 2)] * 40:
        drafting = 2.0 * (0.15 + 0.2 * levels)
        seconds = drafting + 2.0 * (1.05 + 0.05 * nodes)
        costs.see_drafted(1, Drafts(nodes, 0, levels), seconds, drafting)
    assert costs.of(1) == pytest.approx((0.2, 0.05, 0.2), rel=0.05)
    # Nothing was drafted by four yet, or more: levels grow as plain steps do, nodes weigh less.
    assert costs.of(4) == costs.of(1)
    assert costs.of(32) == pytest.approx((0.2, 0.05 / 8, 0.2), rel=0.05)
    assert costs.plain(4) == 3.0
    before = costs.of(1).step(4, 4)
    costs.see_drafted(1, Drafts(4, 0, 4), 2000.0, 1000.0)
    assert costs.of(1).step(4, 4) == pytest.approx(before, rel=0.1)


def test_batches_of_about_one_size_differ() -> None:
    """A server's batch grows and shrinks at every step: times of 17 requests taken for those of 32
    make drafting look cheap or dear by chance.
    """
    costs = Costs()
    for batch in (17, 32, 20, 30, 8, 7):
        costs.see_plain(batch, 0.1 * batch)
    for batch in (18, 24, 32):
        assert costs.plain(batch) == pytest.approx(0.1 * batch, rel=0.05)
    other = Costs()
    for batch in (17, 32, 20, 30, 8, 7):
        other.see_plain(batch, 2.0)
    assert other.plain(24) == pytest.approx(2.0)
    # Beside a long step a node more is little.
    assert Costs().of(32).node < Costs().of(1).node / 4


def test_what_is_larger_takes_no_less() -> None:
    """A slope below nothing, out of noise: the largest tree would seem to pay."""
    fit = Fit((1.0, 1.0))
    fit.guess(0.0, 0.1)
    assert fit.found == (0.0, 0.1)
    for size, y in ((1, 2.0), (2, 1.0), (4, 0.5)) * 20:
        fit.learn(size, y)
    at_all, more = fit.found
    assert more == 0
    assert at_all == pytest.approx(7 / 6, rel=0.1)


def test_the_drafters_part_is_learnt_from_every_step() -> None:
    """Under load seven steps of eight run pieces of prompts: by the eighth alone levels and what
    drafting takes at all are not told apart for long.
    """
    costs = Costs()
    for _ in range(5):
        costs.see_plain(32, 0.04)
    drafts = [Drafts(32 * depth, 32 * (depth - 1), depth) for depth in (1, 2, 4)]
    costs.see_drafted(32, drafts[2], 0.04 * (1.0 + 0.8 + 0.8), 0.04 * 0.8)
    for each in drafts * 30:
        ran = costs.of(32).node * 0.25 * each.ran
        costs.see_drafting(32, each, 0.04 * (0.2 * each.levels + ran))
    assert costs.of(32).level == pytest.approx(0.2, rel=0.05)
    # One that takes a hundred times as long is a pause of the machine's.
    costs.see_drafting(32, drafts[0], 4.0)
    assert costs.of(32).step(0, 4) == pytest.approx(1.8 + costs.of(32).fixed, abs=0.1)


def test_nodes_that_a_drafter_runs_take_time_too() -> None:
    """A level of four nodes taken for one of a single node: beside 31 others trees would seem to
    cost what chains do.
    """
    assert ran_for(Dynamic(16, 8, 4), 5) == 16
    assert ran_for(Dynamic(8, 8, 1), 5) == ran_for(chain(5), 5) == 4
    assert ran_for(static((2, 2, 3)), 3) == 2 + 4
    assert ran_for(static((2, 2, 3)), 2) == 2
    assert ran_for(Dynamic(16, 8), 0) == ran_for(chain(4), 0) == 0
    for largest in (Dynamic(16, 8), static((3, 2, 2))):
        wide, *_, narrow = Measured(largest).shapes
        assert narrow.is_chain
        assert not wide.is_chain
        assert narrow.depth == largest.depth


def test_time_is_worth_what_it_would_yield_elsewhere() -> None:
    """Twelve run and twenty wait for their prompts. Drafts that are but a little better than plain
    steps of twelve keep the others from sharing the steps.
    """
    costs = Costs()
    assert costs.elsewhere(12, 12) == 0.0
    assert costs.elsewhere(8, 32) == pytest.approx(8.0)  # by the square root, before it is known
    for _ in range(5):
        costs.see_plain(12, 0.03)
        costs.see_plain(32, 0.04)
    assert costs.elsewhere(12, 32) == pytest.approx(32 * 0.75 - 12)
    assert costs.elsewhere(12, 0) == 0.0
    ladder = [NOTHING, Option(Plan(0, 4), 3.0, 4.0, 4.0)]
    cost = Cost(0.0, 0.02, 0.15)
    alone, _ = best([ladder] * 12, cost)
    beside, promised = best([ladder] * 12, cost, costs.elsewhere(12, 32))
    assert all(option.plan.depth for option in alone)
    assert all(option.plan == PLAIN for option in beside)
    assert promised == pytest.approx(24.0)
    cheap, promised = best([ladder] * 12, Cost(0.0, 0.01, 0.1), costs.elsewhere(12, 32))
    assert all(option.plan.depth for option in cheap)
    assert promised == pytest.approx(48.0 / 1.88)


def test_of_many_trees_one_is_as_deep_as_it_may_be() -> None:
    """Each is two levels deep on average: alone that is what they cost, and beside 31 others all
    wait for the deepest.
    """
    option, cost = Option(Plan(0, 8), 3.0, 0.0, 2.0), Cost(0.0, 0.0, 0.5)
    assert speed([option], cost) == pytest.approx(3.0 / 2.0)
    assert speed([option] * 32, cost) == pytest.approx(96.0 / (1.0 + 0.5 * (8 - 6 / 32)))


def test_first_drafts_take_as_long_beside_others() -> None:
    """What one takes alone, in plain steps of one request, taken for as many of the longer ones of
    a batch: whoever comes would seem to cost several steps, and drafting would end.
    """
    measured = Measured(chain(4))
    for batch, seconds in ((1, 0.01), (16, 0.04)):
        for _ in range(3):
            measured.costs.see_plain(batch, seconds)
    assert measured.starting(4, 16) == 0.0
    measured.began(1, 1, 0.5)
    assert measured.starting(1, 1) == pytest.approx(0.5)
    assert measured.starting(4, 16) == pytest.approx(4 * 0.005 / 0.04)


def test_plain_steps_are_timed_often_at_first() -> None:
    """Two of the first steps, when much is slow, as the yardstick for all that come."""
    costs, waits = Costs(), []
    for _ in range(12):
        costs.see_plain(1, 1.0)
        waits.append(costs.plain_every(1, 128))
    assert waits == [16, 32, 48, 64, 80, 96, 112, 128, 128, 128, 128, 128]
    assert costs.plain_every(32, 128) == 0


def test_a_level_is_shared_by_those_who_draft() -> None:
    """A chain beside 31 others ends where a node more is not worth a whole level of its own."""
    measured, cost = Measured(Dynamic(8, 8)), Cost(0.0, 0.005, 0.2)
    narrow = Plan(len(measured.shapes) - 1, 8)
    alone, beside = (measured.shape(narrow, speed, cost, n) for n, speed in ((1, 2.0), (32, 10.0)))
    assert isinstance(alone, Dynamic)
    assert isinstance(beside, Dynamic)
    assert alone.least == pytest.approx(0.41, rel=0.2)
    assert beside.least == pytest.approx(10.0 * (0.005 + 0.2 / 32), rel=0.2)


def planner_for_eight() -> Any:
    """One to which eight requests are new, their plain steps known."""
    verifier: Any = SimpleNamespace(identity="v", spec=SimpleNamespace(chains_only=False))
    drafter: Any = SimpleNamespace(identity="d")
    planner: Any = Adaptive(4).planner(drafter, verifier)
    for _ in range(3):
        planner.measured.costs.see_plain(8, 1.0)
    return planner


def drafts_of_eight(planner: Any, ids: list[int], new: int, load: int = 8) -> None:
    """A step in which levels take 0.2, nodes nothing, and what is new 0.3 each."""
    depths = [shape.depth for shape in planner.shapes(ids, load=load)]
    outcomes = [Outcome(i, d, d, d, d, d + 1, False) for i, d in zip(ids, depths, strict=True)]
    drafting = 0.2 * max(depths) + (0.3 * new if any(depths) else 0.0)
    planner.observe(outcomes, 1.0 + drafting, drafting)


def test_those_who_come_do_not_make_drafting_dear() -> None:
    """One in eight is new at every second step, and has its drafter read the prompt. Taken for what
    a draft costs, drafting would look a fifth dearer.
    """
    planner, ids = planner_for_eight(), list(range(8))
    drafts_of_eight(planner, ids, new=8)
    for number in range(200):
        if number % 2:
            ids = [*ids[1:], 8 + number]
        drafts_of_eight(planner, ids, new=number % 2)
    assert planner.measured.costs.of(8).step(0, 4) == pytest.approx(1.8, abs=0.06)


def test_time_elsewhere_is_worth_what_drafts_yield_there() -> None:
    """Those who wait will draft, too: by plain steps alone their time would be too cheap."""
    planner, ids = planner_for_eight(), list(range(8))
    for _ in range(60):
        drafts_of_eight(planner, ids, new=0, load=32)
    assert 1.3 * 8 < planner._elsewhere < 1.7 * 8


def test_steps_with_pieces_tell_what_drafting_takes() -> None:
    """Levels have become dearer, and hardly a step is timed as a whole."""
    planner, ids = planner_for_eight(), list(range(8))
    for _ in range(20):
        drafts_of_eight(planner, ids, new=0)
    before = planner.measured.costs.of(8).step(0, 4)
    outcomes = [Outcome(i, 4, 4, 4, 4, 5, False) for i in ids]
    for _ in range(60):
        planner.shapes(ids, timed=False)
        planner.observe(outcomes, None, 1.6)
    assert planner.measured.costs.of(8).step(0, 4) > before + 0.3


def test_a_pause_of_a_step_is_none() -> None:
    """A plain step is timed now and then: were all who draft taken to have to catch up after it,
    as those do who come, that would be a price nobody pays.
    """
    verifier: Any = SimpleNamespace(identity="v", spec=SimpleNamespace(chains_only=False))
    drafter: Any = SimpleNamespace(identity="d")
    planner: Any = Adaptive(4).planner(drafter, verifier)
    seen: list[int] = []
    starting = planner.measured.starting

    def watched(cold: int, batch: int) -> float:
        seen.append(cold)
        return float(starting(cold, batch))

    planner.measured.starting = watched
    for step in range(40):
        (shape,) = planner.shapes([0])
        asked = 0 if step == 30 else shape.depth
        outcome = Outcome(0, asked, asked, asked, asked, asked + 1, False)
        planner.observe([outcome], 1.0 + 0.05 * asked, 0.04 * asked)
    assert seen[0] == 1
    assert not any(seen[1:])
