"""A drafter, a verifier and a clock that are but numbers, for the controller's tests."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from specdec.engine import Adaptive
from specdec.engine.planner import Outcome, ran_for
from specdec.tree import Dynamic, Shape


@dataclass(eq=False)
class World:
    """Where a plain step takes a second.

    Attributes:
        accepts: by request id and step, how probable it is that a token at depth d is accepted once
            the one before it was; the last entry holds for what is deeper.
        fixed, node, level: seconds of drafting at all, of a drafted node, of a level.
        missed: seconds for each token that the drafter has to catch up with; ``prompt`` are there
            at first.
        noise: standard deviation of the logarithm of a step's seconds.
        hiccup: probability of a step that takes ten times as long.
        load: by step and the number of steps that drafted before, how many times as long a plain
            step takes, and what drafting adds to it.
    """

    accepts: Callable[[int, int], Sequence[float]]
    fixed: float = 0.05
    node: float = 0.02
    level: float = 0.15
    missed: float = 0.003
    prompt: int = 300
    noise: float = 0.05
    hiccup: float = 0.002
    load: Callable[[int, int], tuple[float, float]] = lambda step, drafted: (1.0, 1.0)
    seed: int = 0
    time: float = 0.0
    steps: int = 0
    tokens: int = 0
    drafted: list[bool] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        spec = SimpleNamespace(chains_only=False)
        self.drafter: Any = SimpleNamespace(identity="drafter")
        self.verifier: Any = SimpleNamespace(identity="verifier", spec=spec)

    @property
    def slowdown(self) -> float:
        """Time over that of plain decoding, in which every request yields a token a step."""
        return self.time / (self.tokens / self.batch) - 1.0

    @property
    def speed(self) -> float:
        """Tokens of a request per second."""
        return self.tokens / self.batch / self.time

    def serve(self, planner: Any, lengths: Sequence[int], first_id: int = 0) -> None:
        """Answer these requests together, until all are done; those that end go on as new ones so
        that the batch stays as large, which is how a server fares.
        """
        self.batch = len(lengths)
        ids = [first_id + i for i in range(self.batch)]
        missing = dict.fromkeys(ids, self.prompt)
        left = dict(zip(ids, lengths, strict=True))
        while any(n > 0 for n in left.values()):
            shapes: list[Shape] = planner.shapes(ids)
            outcomes, drafting, verifying = [], 0.0, 0.0
            for i, shape in zip(ids, shapes, strict=True):
                asked = shape.truncate(max(left[i] - 1, 0)).depth
                accepted, rates = 0, self.accepts(i, self.steps)
                while accepted < asked and self.rng.random() < rates[min(accepted, len(rates) - 1)]:
                    accepted += 1
                nodes = len(shape) - 1 if asked == shape.depth else asked
                if isinstance(shape, Dynamic):
                    nodes = min(shape.budget, shape.width * asked)
                tokens = min(accepted + 1, max(left[i], 1))
                left[i] -= tokens
                ran = ran_for(shape, asked)
                outcomes.append(
                    Outcome(
                        i, asked, nodes * (asked > 0), asked, accepted, tokens, left[i] <= 0, ran
                    )
                )
                self.tokens += tokens
                missing[i] += tokens
                if asked:
                    drafting += self.missed * (missing[i] - tokens)
                    missing[i] = tokens
            asked = max(o.asked for o in outcomes)
            if asked:
                drafting += self.fixed + self.level * asked
                verifying += self.node * sum(o.nodes for o in outcomes)
            whole, more = self.load(self.steps, sum(self.drafted))
            slow = whole * self.rng.lognormvariate(0.0, self.noise)
            if self.rng.random() < self.hiccup:
                slow *= 10
            drafting *= more * slow
            seconds = drafting + slow * (1.0 + more * verifying)
            self.time += seconds
            self.steps += 1
            self.drafted.append(asked > 0)
            self.depths.append(asked)
            planner.observe(outcomes, seconds, drafting)


def run(
    world: World,
    adaptive: Adaptive,
    answers: int = 1,
    length: int = 2000,
    batch: int = 1,
) -> World:
    """So many batches of answers of that length, one after the other, with an engine for each."""
    for number in range(answers):
        planner = adaptive.planner(world.drafter, world.verifier)
        world.serve(planner, [length] * batch, first_id=number * batch)
    return world
