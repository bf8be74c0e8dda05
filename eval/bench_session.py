"""A benchmark from its plan to its record: loads, measures, sums up. Knows no command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from specdec.choice import resolve_tree
from specdec.eval import bench_run, suite
from specdec.eval.bench_methods import Inputs, Methods
from specdec.eval.bench_plan import REFERENCE, Contender, Plan
from specdec.eval.bench_run import WARM_UP, Group
from specdec.eval.bench_summary import Texts, entry, shown
from specdec.eval.efficiency import Times, bare_forwards, summed_up
from specdec.eval.questions import load
from specdec.eval.record import machine
from specdec.training import worth
from specdec.training.answers import Teacher
from specdec.training.claims import claim_run
from specdec.tree import Topology

_WATCHED = 20  # questions on which it is told what tokens depend on


class Session:
    """A benchmark that is ready to run.

    Args:
        plan: what to measure.
        out: folder of the results, which is this run's alone.
        work: folder in which every batch is written down.
        resume: go on with what it holds.

    Raises:
        ValueError: something that the plan names cannot be had, or does not go together.
    """

    def __init__(self, plan: Plan, out: Path, work: Path, *, resume: bool) -> None:
        self.machine = machine()
        self.plan = plan
        self.work = work
        folder = suite.MODEL if plan.model == "demo" else Path(plan.model)
        self.model, self.processor = suite.load_verifier(folder, suite.DTYPES[plan.dtype])
        moved: Any = self.model  # `to` is not declared as it is
        moved.to(plan.device)
        self.questions = load(plan.data, count=plan.count, seed=plan.seed, tasks=plan.tasks)
        self.methods = Methods(self.model, plan)
        self._inputs: dict[tuple[int, ...], Inputs] = {}
        claim_run(plan.public(), out, work, resume=resume)

    def encode(self, numbers: Sequence[int]) -> Inputs:
        """What the model takes for these questions."""
        key = tuple(numbers)
        if key not in self._inputs:
            asked = [self.questions.asked[number] for number in numbers]
            self._inputs[key] = suite.model_inputs(self.model, self.processor, asked)
        return self._inputs[key]

    def measure(self, told: Callable[[int, int], None]) -> dict[str, Any]:  # Any: JSON values
        """The record, but for when and by which command it was made.

        Raises:
            GateError: tokens of a lossless greedy method are not the reference's.
        """
        plan, asked = self.plan, self.questions.asked
        groups, times = bench_run.measure(
            self.methods, plan, asked, self.encode, self.work, self._bare, told
        )
        forwards = summed_up(times)
        texts, modalities = Texts(self.processor.tokenizer), self._modalities()
        return {
            "machine": self.machine,
            "model": {
                "name": "demo" if plan.model == "demo" else Path(plan.model).name,
                "architecture": type(self.model).__name__,
                "parameters": sum(weight.numel() for weight in self.model.parameters()),
                "dtype": plan.dtype,
                "device": str(self.model.device),
            },
            "questions": {
                "source": _public(self.questions.source),
                "count": len(asked),
                "seed": plan.seed,
                "tasks": self.questions.tasks,
                "skipped": [each._asdict() for each in self.questions.skipped],
            },
            "settings": {
                "max_new_tokens": plan.max_new_tokens,
                "rounds": plan.rounds,
                "warm_up": WARM_UP,
                "tie_bound_logits": plan.bound,
                "bootstrap": {"resamples": 2000, "seed": plan.seed},
            },
            "forwards": None if forwards is None else forwards.to_dict(self.methods.labels),
            "reference": REFERENCE,
            "methods": [
                entry(
                    group,
                    each,
                    self.questions,
                    texts,
                    plan,
                    drafter=self.methods.labels.get(each.drafter or ""),
                    forwards=forwards,
                    modalities=modalities.get(each.drafter or ""),
                    memory=self._memory(group, each),
                )
                for group in groups
                for each in group.contenders
            ],
            "answers": shown(groups, self.questions, texts, plan.shown),
        }

    def _bare(self, question: int) -> Times:
        """Bare forwards over as many tokens as the plan's trees have."""
        shapes = [resolve_tree(tree) for tree in self.plan.trees]
        nodes = {len(shape) for shape in shapes if isinstance(shape, Topology)} - {1}
        inputs = self.encode([question])
        return bare_forwards(self.model, self.methods.drafters, inputs, sorted(nodes))

    def _modalities(self) -> Mapping[str, Any]:
        """By drafter how many of its first choices were right, of tokens that depend on the image
        and of others.
        """
        if 0.0 not in self.plan.temperatures:
            return {}
        teacher = Teacher(self.model, self.processor, self.plan.max_new_tokens)
        every = self.questions.asked
        asked = [each for each in every[:: max(1, len(every) // _WATCHED)] if each.images]
        found = {}
        for name, drafter in self.methods.drafters.items() if asked else ():
            kinds = worth.by_modality(worth.watch(teacher, asked, drafter))
            names = {"visual": "image", "language": "words"}
            found[name] = {
                names[kind]: {
                    "drafted": counts["num_draft_tokens"],
                    "accepted": round(counts["num_draft_tokens"] * counts["draft_acceptance_rate"]),
                }
                for kind, counts in kinds.items()
            } or None
        return found

    def _memory(self, group: Group, each: Contender) -> dict[str, int | None] | None:
        if each.name in group.refused:
            return None
        return self.methods.memory(each, self.encode(group.batches[0]))


def _public(source: str) -> str:
    """A source without the folders that it lies in."""
    return Path(source).name if Path(source).exists() else source
