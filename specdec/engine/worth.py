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
    """A plan for a request, with the tokens, drafted nodes and levels to expect of a step."""

    plan: Plan
    tokens: float
    nodes: float
    levels: float


NOTHING = Option(PLAIN, 1.0, 0.0, 0.0)


def speed(options: Sequence[Option], cost: Cost) -> float:
    """Tokens per plain step's time if every request goes by its option."""
    tokens = sum(option.tokens for option in options)
    if not any(option.plan.depth for option in options):
        return tokens
    levels = max(option.levels for option in options)
    return tokens / cost.step(sum(option.nodes for option in options), levels)


def best(ladders: Sequence[Sequence[Option]], cost: Cost) -> tuple[list[Option], float]:
    """An option for each request, for the greatest speed.

    At a speed R a node is worth R · cost.node tokens, whoever drafts it: so each request takes what
    brings it most beyond that, under each limit on levels, which all share; R is then the speed of
    the best limit, and so on (Dinkelbach 1967).

    Args:
        ladders: per request its options by depth, :data:`NOTHING` first.
        cost: of a step.

    Returns:
        The options, and the speed in tokens per plain step's time.
    """
    chosen, found = [ladder[0] for ladder in ladders], float(len(ladders))
    limits = sorted({option.plan.depth for ladder in ladders for option in ladder})
    for _ in range(_PASSES):
        price = found * cost.node
        by_limit = zip(*(_under(ladder, limits, price) for ladder in ladders), strict=True)
        for picked in by_limit:
            if (reached := speed(picked, cost)) > found:
                chosen, found = list(picked), reached
    return chosen, found


def _under(ladder: Sequence[Option], limits: Sequence[int], price: float) -> list[Option]:
    """Under each of the limits the option that brings most beyond the price of its nodes."""
    found, place, top = list[Option](), 0, ladder[0]
    for limit in limits:
        while place < len(ladder) and ladder[place].plan.depth <= limit:
            option = ladder[place]
            if option.tokens - price * option.nodes > top.tokens - price * top.nodes:
                top = option
            place += 1
        found.append(top)
    return found
