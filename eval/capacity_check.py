"""Is what is expected of a replica under a load what comes of it? Asked where both can be had.

The demonstration model's questions, each about another image, come by chance to an engine in this
process, at shares of what it should keep up with: latencies are compared. At last all come at once:
what it then yields is compared with the capacity that replicas are sized by. Costs are measured
before and behind each load, so whatever slows the machine down hits what is expected and what is
measured alike; how long answers are and how many drafts are accepted is read off the load itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.engine import Limits
from specdec.eval import open_loop, suite
from specdec.eval.open_loop import Measured, Saturated
from specdec.eval.projection import Acceptance
from specdec.eval.queueing import Expected, Steps, Work, expected
from specdec.eval.serving_costs import ServingCosts, measure
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.serving import ThreadedEngine
from specdec.stats import AcceptanceStats

_COMPARED = ("running", "first_token", "between_tokens", "end_to_end")
_SAMPLE = 9  # questions that acceptance and prompts are measured on
_TURNS = 4  # times as many as run at once, for an engine that has enough to do


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


class Most(NamedTuple):
    """The most that a replica yields.

    Attributes:
        tokens_per_second: expected.
        measured: what came of it.
    """

    tokens_per_second: float
    measured: Saturated

    @property
    def error_percent(self) -> float:
        """How far the expectation was off; above 0 it is too high."""
        return 100 * (self.tokens_per_second / self.measured.tokens_per_second - 1)


class Checked(NamedTuple):
    """``costs``: as measured first. ``loads``: in order. ``saturated``: at last."""

    costs: ServingCosts
    loads: list[Load]
    saturated: Most

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
        saturated = {
            "expected": {"tokens_per_second": self.saturated.tokens_per_second},
            "measured": self.saturated.measured._asdict(),
            "error_percent": {"tokens_per_second": self.saturated.error_percent},
        }
        return {"costs": self.costs.to_dict(), "loads": loads, "saturated": saturated}


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

    Raises:
        ValueError: there are not as many images.
    """
    questions = one_an_image()
    if max(requests, 2 * most + 1) > (there := len(questions) - _SAMPLE):
        raise ValueError(
            f"{requests} requests, {most} at once: there are {there} images to ask about, and to "
            "saturate a replica takes more than twice as many as run at once"
        )
    questions = questions[: _SAMPLE + max(requests, _TURNS * most)]
    _, processor = suite.load_verifier(suite.MODEL)
    asked = [suite.model_inputs(model, processor, [each]) for each in questions]
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

    @contextmanager
    def warm() -> Iterator[ThreadedEngine]:
        limits = Limits(max_batch=most, max_waiting=len(asked))
        with ThreadedEngine(model, drafter, tree=depth, limits=limits) as engine:
            open_loop.run(engine, sample, 1e3, max_new_tokens=answer)
            yield engine

    before = [costs()]
    loads = []
    for number, share in enumerate(shares):
        rate = share * _work(before[-1:], length, before[-1].per_step, most).rate(most)
        with warm() as engine:
            load = rest[:requests]
            said = open_loop.run(engine, load, rate, max_new_tokens=answer, seed=number)
        before.append(costs())
        work = _work(before[-2:], said.tokens, said.mean_acceptance_length, most)
        fits = said.rate < work.rate(most)
        found = expected(work, said.rate) if fits else None
        loads.append(Load(share, work.rate(most), found, said))
    with warm() as engine:
        full = open_loop.saturate(engine, rest, most=most, max_new_tokens=answer)
    before.append(costs())
    work = _work(before[-2:], full.tokens, full.mean_acceptance_length, most)
    return Checked(before[0], loads, Most(work.rate(most) * work.tokens, full))


def one_an_image() -> list[suite.Asked]:
    """Questions of the suite about one image, which none of the others is about."""
    alone = (each for each in suite.load_questions() if len(each.images) == 1)
    return list({each.images[0].tobytes(): each for each in alone}.values())


def _work(costs: Sequence[ServingCosts], answer: float, per_step: float, most: int) -> Work:
    """Of costs that were measured one after the other: their means. No image is known before."""
    sizes = [size for size, _ in costs[0].drafted.measured]
    steps = [
        (size, statistics.mean(each.drafted.seconds(size) for each in costs)) for size in sizes
    ]
    mean = replace(
        costs[0],
        prompt=statistics.mean(each.prompt for each in costs),
        drafted=Steps(tuple(steps)),
        per_step=per_step,
    )
    return mean.work(answer=answer, shared=0.0, most=most)
