"""What the parts of a step cost on this machine: plain steps, verifying, drafting.

For models of any size with any weights. A step here is a forward over pages with its result read
back; what the engine does around it is not in it. Knows nothing of acceptance.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.eval.draft_times import Drafting
from specdec.eval.filled import Filled, milliseconds
from specdec.interfaces import Drafter
from specdec.verifiers.spec import read_spec

WARM_UP = 2  # forwards of each kind: kernels are compiled and chosen in the first


class StepTime(NamedTuple):
    """Median of a step of ``batch`` requests with ``nodes`` nodes each, their roots included."""

    batch: int
    context: int
    nodes: int
    ms: float


class DraftTime(NamedTuple):
    """Median of proposing a chain of ``depth`` to each of ``batch`` requests."""

    batch: int
    context: int
    depth: int
    ms: float


@dataclass(frozen=True)
class StepCosts:
    """Medians in milliseconds.

    Attributes:
        model: whose steps.
        drafter: who drafts; ``None``: nobody, or for nothing.
        kv_bytes_per_token: what a token's keys and values take in all layers.
        steps: by batch, context and nodes; those with one node are plain steps.
        drafts: by batch, context and depth.
    """

    model: str
    drafter: str | None
    kv_bytes_per_token: int
    steps: tuple[StepTime, ...]
    drafts: tuple[DraftTime, ...] = ()

    def step_ms(self, batch: int, context: int, nodes: int) -> float:
        """Of a step with ``nodes`` nodes a request; in a line between those measured.

        Raises:
            ValueError: that lies beyond what was measured.
        """
        known = {s.nodes: s.ms for s in self.steps if (s.batch, s.context) == (batch, context)}
        return _between(known, nodes, f"steps of {batch} requests with {context} tokens", "nodes")

    def draft_ms(self, batch: int, context: int, depth: int) -> float:
        """Of proposing chains of ``depth``; 0 where nobody drafts.

        Raises:
            ValueError: that lies beyond what was measured.
        """
        if not self.drafts or not depth:
            return 0.0
        known = {d.depth: d.ms for d in self.drafts if (d.batch, d.context) == (batch, context)}
        return _between(known, depth, f"drafts for {batch} requests with {context} tokens", "depth")

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """All of it, ready for ``json.dumps``."""
        steps = [each._asdict() for each in self.steps]
        return {**asdict(self), "steps": steps, "drafts": [d._asdict() for d in self.drafts]}


def _between(known: dict[int, float], at: int, what: str, unit: str) -> float:
    if at in known:
        return known[at]
    for low, high in pairwise(sorted(known)):
        if low < at < high:
            share = (at - low) / (high - low)
            return known[low] + share * (known[high] - known[low])
    there = f"{min(known)} to {max(known)}" if known else "none"
    raise ValueError(f"{what}: {unit} {at} is wanted, {unit} {there} measured; measure that too")


def measure_costs(
    model: PreTrainedModel,
    *,
    contexts: Sequence[int],
    nodes: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    drafter: Drafter | None = None,
    depths: Sequence[int] = (1, 4),
    visual: int = 0,
) -> StepCosts:
    """Time steps and drafts; kinds take turns, so that whatever drifts hits all of them alike.

    Args:
        model: the verifier, with any weights.
        contexts: tokens a request has already.
        nodes: nodes of a tree, the root included; plain steps are measured in any case.
        batches: requests that share a step.
        rounds: how often each is timed.
        drafter: whose proposals are to be timed.
        depths: of its chains.
        visual: how many tokens of each context are visual, for drafters that skip them.

    Raises:
        ValueError: keys that do not fit into memory, or a drafter that does not fit the model.
    """
    steps: list[StepTime] = []
    drafts: list[DraftTime] = []
    kv_bytes = 0
    for context in contexts:
        for batch in batches:
            filled = Filled(model, context, batch)
            kv_bytes = filled.kv_bytes_per_token
            drafting = None
            if drafter is not None:
                drafting = Drafting(filled, drafter, read_spec(model), min(visual, context))
            taken = _take_turns(filled, sorted({1, *nodes}), drafting, sorted(depths), rounds)
            steps += [StepTime(batch, context, n, ms) for n, ms in taken[0].items()]
            drafts += [DraftTime(batch, context, depth, ms) for depth, ms in taken[1].items()]
    name = type(model).__name__
    who = None if drafter is None else drafter.name
    return StepCosts(name, who, kv_bytes, tuple(steps), tuple(drafts))


def _take_turns(
    filled: Filled,
    nodes: Sequence[int],
    drafting: Drafting | None,
    depths: Sequence[int],
    rounds: int,
) -> tuple[dict[int, float], dict[int, float]]:
    """Medians by nodes and by depth.

    Each comes behind what it comes behind in decoding, a plain step behind another one, and a tree
    is verified behind drafts: what a model leaves in the caches of a CPU tells in the next step.
    """
    device = filled.model.device
    steps: dict[int, list[float]] = {count: [] for count in nodes}
    drafts: dict[int, list[float]] = {depth: [] for depth in depths if drafting is not None}

    def draft(depth: int) -> None:
        if drafting is not None:
            drafting.prepare(depth)
            drafts[depth].append(milliseconds(device, drafting.propose))

    def step(count: int) -> None:
        steps[count].append(milliseconds(device, partial(filled.step, filled.nodes(count))))

    trees = [count for count in nodes if count > 1]
    for _ in range(WARM_UP + rounds):
        filled.step(filled.nodes(1))
        step(1)
        for place in range(max(len(trees), len(drafts))):
            draft(depths[place % len(depths)])
            if trees:
                step(trees[place % len(trees)])
    if drafting is not None:
        drafting.close()
    return _medians(steps), _medians(drafts)


def _medians(times: dict[int, list[float]]) -> dict[int, float]:
    return {key: statistics.median(taken[WARM_UP:]) for key, taken in times.items() if taken}
