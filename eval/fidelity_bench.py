"""The answers that a fidelity measurement asks for, given and graded one question at a time.

Knows nothing of files that results go to.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specdec.acceptance import Rule
from specdec.demo import Demo, load
from specdec.eval import graded, suite
from specdec.eval.devset import similarity
from specdec.eval.graded import Graded
from specdec.eval.points import ORACLE, Point, points
from specdec.eval.policy_runs import Answer, Decoder, Inputs
from specdec.reliance import Divergence, Reliance
from specdec.saved_reliance import KINDS, load_reliance, read_facts
from specdec.training.counterfactual import blanked, swapped
from specdec.training.grading import score
from specdec.tree import chain
from specdec.verifiers.fingerprint import fingerprint

KV_BYTES = 1 << 29  # of each verifier: the answers of all policies at once


@dataclass(frozen=True)
class Plan:
    """What is measured. A run that goes on must have the plan it began with.

    Attributes:
        assets: folder of the embedded model, its drafter and its questions.
        reliance: folder of the trained estimators; ``None`` goes without.
        shipped: how many of the questions that come with it; ``None`` is all.
        generated: how many more from the generator.
        tree: a chain of so many tokens.
        temperatures: of the answers; 0 is greedy.
        samples: answers to each question where they are sampled.
        timed: how many questions are timed.
        families: see :func:`specdec.eval.points.points`.
        max_new_tokens: longest answer.
        dtype: of the verifier.
        seed: of everything that is drawn.
    """

    assets: str
    reliance: str | None
    shipped: int | None
    generated: int
    tree: int
    temperatures: tuple[float, ...]
    samples: int
    timed: int
    families: tuple[str, ...]
    max_new_tokens: int
    dtype: str
    seed: int

    def public(self) -> dict[str, Any]:
        """Without the names of this machine's folders."""
        return {k: v for k, v in asdict(self).items() if k not in ("assets", "reliance")}


class Turn(NamedTuple):
    """A question to be answered: which one, the temperature, and which of its samples."""

    place: int
    temperature: float
    sample: int


class Bench:
    """Everything that a plan speaks of, loaded.

    Raises:
        ValueError: something is not there, or does not go together.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        folder = Path(plan.assets)
        self.demo = _load(folder, plan.dtype)
        self.questions = graded.shipped(plan.shipped, folder)
        self.questions += graded.generated(plan.generated, graded.MEASURING)
        self.estimators = _estimators(plan, self.demo)
        asked = [question.asked for question in self.questions]
        watched = any(p.family == ORACLE for at in plan.temperatures for p in self.points(at))
        self._others = (swapped(asked), blanked(asked)) if watched else ()
        self._decoders: dict[float, Decoder] = {}
        self._rules: dict[float, dict[str, Rule | None]] = {}

    def points(self, temperature: float) -> list[Point]:
        """The policies that are compared at a temperature."""
        chosen = self.plan.families
        return points(self.estimators, sampled=temperature > 0, families=chosen)

    def answer(self, turn: Turn) -> dict[str, Any]:
        """A line of ``answers``."""
        question, decoder = self.questions[turn.place], self._decoder(turn.temperature)
        rules = self._rules[turn.temperature]
        seed = zlib.crc32(f"{self.plan.seed} {question.name} {turn.sample}".encode())
        others = [self._pixels(view[turn.place]) for view in self._others]
        said = decoder.answers(
            self._inputs(question), list(rules.values()), seed=seed, others=others
        )
        lossless = said[0]
        return {
            "question": question.name,
            "task": question.asked.task,
            "temperature": turn.temperature,
            "sample": turn.sample,
            "policies": {
                name: self._outcome(question, each, lossless)
                for name, each in zip(rules, said, strict=True)
            },
        }

    def time(self, turn: Turn) -> dict[str, Any]:
        """A line of ``times``."""
        question, decoder = self.questions[turn.place], self._decoder(turn.temperature)
        rules = {
            name: rule
            for name, rule in self._rules[turn.temperature].items()
            if not name.startswith(ORACLE)  # theirs mean nothing
        }
        times = decoder.times(self._inputs(question), rules, seed=self.plan.seed + turn.place)
        shown = {"question": question.name, "temperature": turn.temperature, "sample": turn.sample}
        return shown | {"ms_per_token": times}

    def _decoder(self, temperature: float) -> Decoder:
        if temperature not in self._decoders:
            model, processor, drafter = self.demo
            tokenizer: Any = processor
            self._decoders[temperature] = decoder = Decoder(
                model,
                tokenizer.tokenizer,
                drafter,
                chain(self.plan.tree),
                max_new_tokens=self.plan.max_new_tokens,
                temperature=temperature,
                kv_cache_bytes=KV_BYTES,
            )
            self._rules[temperature] = {
                point.name: decoder.rule(point.acceptance) for point in self.points(temperature)
            }
        return self._decoders[temperature]

    def _inputs(self, question: Graded) -> Inputs:
        return suite.model_inputs(self.demo.model, self.demo.processor, [question.asked])

    def _pixels(self, shown: suite.Asked) -> Inputs:
        inputs = suite.model_inputs(self.demo.model, self.demo.processor, [shown])
        return {"pixel_values": inputs["pixel_values"]}

    def _outcome(self, question: Graded, answer: Answer, lossless: Answer) -> dict[str, float]:
        text, theirs = (
            self.demo.processor.decode(each.tokens, skip_special_tokens=True)
            for each in (answer, lossless)
        )
        got = score(question.asked.task, dict(question.fields), text)
        # What was cut off states nothing: a policy must not gain by never coming to an end.
        right = got.right if answer.ended else 0
        stats = answer.stats
        return {
            "total": got.total,
            "right": right,
            "exact": int(right == got.total),
            "answers": 1,
            "ended": int(answer.ended),
            "same": int(answer.tokens == lossless.tokens),
            "similarity": round(similarity(text, theirs), 4),
            "tokens": len(answer.tokens),
            "relaxed": stats.num_relaxed_tokens,
            "steps": stats.num_spec_steps,
            "accepted": stats.num_accepted_draft_tokens,
            "spent": round(stats.bound_spent, 6),
        }


def _load(folder: Path, dtype: str) -> Demo:
    try:
        return load(folder, dtype=getattr(torch, dtype))
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _estimators(plan: Plan, loaded: Demo) -> dict[str, Reliance]:
    """Those that need no training, and those in the plan's folder."""
    found: dict[str, Reliance] = {}
    if plan.reliance is not None:
        mark, kinds = fingerprint(loaded.model), read_facts(plan.reliance)["kinds"]
        for kind in (kind for kind in KINDS if kind in kinds):
            found[kind] = load_reliance(plan.reliance, kind, fingerprint=mark)
    return found | {"divergence": Divergence()}
