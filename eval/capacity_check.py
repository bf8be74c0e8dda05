"""Is what is expected of a replica under a load what comes of it? Asked where both can be had.

The demonstration model's questions come by chance to an engine in this process, at shares of what
it should keep up with. Costs are measured before and behind each load, so whatever slows the
machine down hits what is expected and what is measured alike; how long answers are and how many
drafts are accepted is read off the load itself.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.engine import Limits
from specdec.eval import open_loop, suite
from specdec.eval.open_loop import Measured
from specdec.eval.projection import Acceptance
from specdec.eval.queueing import Expected, Steps, Work, expected
from specdec.eval.serving_costs import ServingCosts, measure
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.serving import ThreadedEngine
from specdec.stats import AcceptanceStats

_COMPARED = ("running", "first_token", "between_tokens", "end_to_end", "tokens_per_second")
_SAMPLE = 8  # questions that acceptance and prompts are measured on


class Load(NamedTuple):
    """One load.

    Attributes:
        share: of what a replica should keep up with.
        capacity: requests a second that it should keep up with.
        expected: ``None`` if more came than that.
        measured: what came of it.
    """

    share: float
    capacity: float
    expected: Expected | None
    measured: Measured

    @property
    def error_percent(self) -> dict[str, float]:
        """How far expectations were off; above 0 they are too high."""
        if self.expected is None:
            return {}
        both = ((n, getattr(self.expected, n), getattr(self.measured, n)) for n in _COMPARED)
        return {name: 100 * (hoped / said - 1) for name, hoped, said in both}


class Checked(NamedTuple):
    """``costs``: as measured first. ``loads``: in order."""

    costs: ServingCosts
    loads: list[Load]

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Ready for ``json.dumps``."""
        loads = [
            {
                "share_of_capacity": load.share,
                "capacity": load.capacity,
                "expected": load.expected and load.expected._asdict(),
                "measured": load.measured._asdict(),
                "error_percent": load.error_percent,
            }
            for load in self.loads
        ]
        return {"costs": self.costs.to_dict(), "loads": loads}


def check(
    model: PreTrainedModel,
    drafter: Drafter,
    *,
    batches: Sequence[int],
    depth: int,
    shares: Sequence[float],
    requests: int,
    answer: int,
    most: int,
) -> Checked:
    """Compare under loads of these shares of a replica's capacity.

    Args:
        model: the demonstration model.
        drafter: who drafts for it.
        batches: as for :func:`specdec.eval.serving_costs.measure`.
        depth: of the chains.
        shares: of capacity, each a load.
        requests: of each load.
        answer: longest answer.
        most: requests that run at once.
    """
    _, processor = suite.load_verifier(suite.MODEL)
    asked = [suite.model_inputs(model, processor, [each]) for each in suite.load_questions()]
    sample, rest = asked[:_SAMPLE], asked[_SAMPLE:]
    stats = AcceptanceStats()
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": answer, "tree": depth}
    for inputs in sample:
        stats.merge(generate(model, drafter=drafter, **inputs, **how).stats)
    length = stats.num_generated_tokens / len(sample)

    def costs() -> ServingCosts:
        return measure(
            model,
            drafter,
            Acceptance.measured(stats, f"{drafter.name}, chain of {depth}"),
            [(inputs, inputs) for inputs in sample],
            batches=batches,
            depth=depth,
            tokens=round(length),
        )

    before = [costs()]
    loads = []
    for number, share in enumerate(shares):
        hoped = _work(before[-1:], length, before[-1].per_step, most)
        limits = Limits(max_batch=most, max_waiting=requests + _SAMPLE)
        with ThreadedEngine(model, drafter, tree=depth, limits=limits) as engine:
            open_loop.run(engine, sample, 1e3, max_new_tokens=answer)  # warm-up
            load = list(itertools.islice(itertools.cycle(rest), requests))
            rate = share * hoped.rate(most)
            said = open_loop.run(engine, load, rate, max_new_tokens=answer, seed=number)
        before.append(costs())
        work = _work(before[-2:], said.tokens, said.mean_acceptance_length, most)
        fits = said.rate < work.rate(most)
        found = expected(work, said.rate) if fits else None
        loads.append(Load(share, work.rate(most), found, said))
    return Checked(before[0], loads)


def _work(costs: Sequence[ServingCosts], answer: float, per_step: float, most: int) -> Work:
    """Of costs that were measured one after the other: their means. No image is known before."""
    sizes = [size for size, _ in costs[0].drafted.measured]
    steps = [
        (size, statistics.mean(each.drafted.seconds(size) for each in costs)) for size in sizes
    ]
    prompt = statistics.mean(each.prompt for each in costs)
    return Work(prompt, answer, per_step, Steps(tuple(steps)), most)
