"""Which trees are worth their time: expected tokens per second over a batch that shares its steps.

All times are in plain steps. Knows neither how the expectations were come by nor what a tree is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from specdec.engine.costs import Cost

_PASSES = 2  # Dinkelbach's iteration is at its end, to a per cent, after these


class Plan(NamedTuple):
    """The shape to ask for: one of the shapes that there are, and how deep; depth 0 is none."""

    shape: int
    depth: int


PLAIN = Plan(0, 0)


class Option(NamedTuple):
    """A plan for a request, with the tokens to expect of a step, and what they take: work, as
    :class:`Drafts` counts it, and levels.
    """

    plan: Plan
    tokens: float
    work: float
    levels: float


NOTHING = Option(PLAIN, 1.0, 0.0, 0.0)


def speed(options: Sequence[Option], cost: Cost, elsewhere: float = 0.0) -> float:
    """Tokens per plain step's time if every request goes by its option, and in every step that time
    would yield so many more ``elsewhere``.
    """
    tokens = elsewhere + sum(option.tokens for option in options)
    drafting = [option for option in options if option.plan.depth]
    if not drafting:
        return tokens
    # Of many trees that may end early one is as deep as it may be.
    many = len(drafting)
    levels = max(each.plan.depth - (each.plan.depth - each.levels) / many for each in drafting)
    return tokens / cost.step(sum(option.work for option in drafting), levels)


def best(
    ladders: Sequence[Sequence[Option]], cost: Cost, elsewhere: float = 0.0
) -> tuple[list[Option], float]:
    """An option for each request, for the greatest speed.

    At a speed R a node takes the time of R · cost.node tokens, whoever drafts it: so each request
    takes what brings it most beyond that, under each limit on levels, which all share; R is then
    the speed of the best limit, and so on (Dinkelbach 1967). Drafts then pay where they yield more
    than their time would ``elsewhere``.

    Args:
        ladders: per request its options by depth, :data:`NOTHING` first.
        cost: of a step.
        elsewhere: tokens that the time of a plain step is worth, beyond one for each request.

    Returns:
        The options, and the speed in tokens per plain step's time.
    """
    chosen, found = [ladder[0] for ladder in ladders], len(ladders) + elsewhere
    limits = sorted({option.plan.depth for ladder in ladders for option in ladder})
    for _ in range(_PASSES):
        price = found * cost.node
        by_limit = zip(*(_under(ladder, limits, price) for ladder in ladders), strict=True)
        for picked in by_limit:
            if (reached := speed(picked, cost, elsewhere)) > found:
                chosen, found = list(picked), reached
    return chosen, found


def _under(ladder: Sequence[Option], limits: Sequence[int], price: float) -> list[Option]:
    """Under each of the limits the option that brings most beyond the price of its nodes."""
    found, place, top = list[Option](), 0, ladder[0]
    for limit in limits:
        while place < len(ladder) and ladder[place].plan.depth <= limit:
            option = ladder[place]
            if option.tokens - price * option.work > top.tokens - price * top.work:
                top = option
            place += 1
        found.append(top)
    return found
