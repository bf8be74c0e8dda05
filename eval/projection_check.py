"""Is a projected speedup what the engine then reaches? Asked where both can be measured.

Questions are answered plainly and with chains, by the same engine; between two questions the costs
of steps are measured at that question's length. So whatever slows the machine down hits what is
projected and what is measured alike. Speedups are of decoding: prompts are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.eval.projection import Acceptance, Projection, Tree, project
from specdec.eval.step_costs import DraftTime, StepCosts, StepTime, measure_costs
from specdec.eval.timing import Inputs
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats
from specdec.verifiers.spec import read_spec

_NOWHERE = 0  # the context of costs that are means over texts of different lengths


class Checked(NamedTuple):
    """A chain's projection and what the engine reached."""

    projection: Projection
    speedup: float

    @property
    def error_percent(self) -> float:
        """How far the projection is off; above 0 it promises too much."""
        return 100 * (self.projection.speedup / self.speedup - 1)

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Both and the error, ready for ``json.dumps``."""
        error = {"measured_speedup": self.speedup, "error_percent": self.error_percent}
        return {**self.projection.to_dict(), **error}


def check(
    model: PreTrainedModel,
    drafter: Drafter,
    asked: Sequence[Inputs],
    depths: Sequence[int],
    *,
    rounds: int = 6,
    max_new_tokens: int = 160,
) -> list[Checked]:
    """Compare for chains of each of the depths.

    Args:
        model: the verifier.
        drafter: who drafts.
        asked: the questions, one row each.
        depths: of the chains.
        rounds: times each cost is measured between two questions.
        max_new_tokens: longest answer.
    """
    visual = read_spec(model).visual_token_ids
    totals = {depth: AcceptanceStats() for depth in (0, *depths)}
    costs: list[StepCosts] = []
    for number, inputs in enumerate([asked[0], *asked]):
        answers = {
            depth: _answer(model, drafter if depth else None, inputs, depth, max_new_tokens)
            for depth in totals
        }
        if not number:  # warm-up
            continue
        for depth, stats in answers.items():
            totals[depth].merge(stats)
        prompt = inputs["input_ids"][0].tolist()
        costs.append(
            measure_costs(
                model,
                contexts=[len(prompt) + answers[0].num_generated_tokens // 2],
                nodes=[depth + 1 for depth in depths],
                batches=[1],
                rounds=rounds,
                drafter=drafter,
                depths=depths,
                visual=sum(token in visual for token in prompt),
            )
        )
    mean = _mean(costs)
    plain = _seconds_per_token(totals[0], len(asked))
    return [
        Checked(
            project(
                mean,
                Acceptance.measured(totals[depth], f"{drafter.name}, chain of {depth}"),
                1,
                _NOWHERE,
                Tree(depth, depth + 1),
            ),
            plain / _seconds_per_token(totals[depth], len(asked)),
        )
        for depth in depths
    ]


def _answer(
    model: PreTrainedModel, drafter: Drafter | None, inputs: Inputs, depth: int, limit: int
) -> AcceptanceStats:
    how: Mapping[str, Any] = {"do_sample": False, "max_new_tokens": limit, "tree": depth}
    stats: AcceptanceStats = generate(model, drafter=drafter, **inputs, **how).stats
    return stats


def _seconds_per_token(stats: AcceptanceStats, answers: int) -> float:
    """Of decoding: the first token of each answer is the prompt's."""
    return stats.times.step / (stats.num_generated_tokens - answers)


def _mean(costs: Sequence[StepCosts]) -> StepCosts:
    """Means over texts, as one text of no length."""
    nodes, depths = ([s.nodes for s in costs[0].steps], [d.depth for d in costs[0].drafts])
    steps = [statistics.mean(each.steps[place].ms for each in costs) for place in range(len(nodes))]
    drafts = [
        statistics.mean(each.drafts[place].ms for each in costs) for place in range(len(depths))
    ]
    return StepCosts(
        costs[0].model,
        costs[0].drafter,
        costs[0].kv_bytes_per_token,
        tuple(StepTime(1, _NOWHERE, n, ms) for n, ms in zip(nodes, steps, strict=True)),
        tuple(DraftTime(1, _NOWHERE, depth, ms) for depth, ms in zip(depths, drafts, strict=True)),
    )
