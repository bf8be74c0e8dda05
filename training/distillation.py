"""Distilling a drafter from a verifier's own answers, stage by stage.

The verifier answers prompts (`answers`), and is read while it does (`features`) if the drafter is
to see more than text; the drafter learns from that (`kinds`, `trainer`); and the engine measures on
held-out prompts what it is worth. Everything unfinished lies in ``OUT/unfinished``; the drafter
appears in OUT when it is done.

Importing this imports no model code, so that a command line can be registered for free.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec.training.claims import claim_answers, claim_run

if TYPE_CHECKING:
    from specdec.training.answers import Teacher
    from specdec.training.kinds import Geometry, Kind, KindName
    from specdec.training.options import Training
    from specdec.training.prompts import Prompts
    from specdec.training.shards import AnswerShards

ANSWERING = 0.45  # share of the time in which the verifier may answer
MEASURING = 0.05  # share that is left for the measurement at the end
REPORT_EVERY = 10.0  # seconds
DEMO = "demo"  # the embedded LVLM


@dataclass(frozen=True)
class Plan:
    """What one distillation does. A run that goes on must have the plan it began with.

    Attributes:
        verifier: folder or hub id of the verifier.
        data: what :func:`specdec.training.sources.open_prompts` takes.
        answers_in: folder of answers that runs share; ``None`` is one of its own.
        tasks: which of that generator's tasks; none is those that the shipped one answers well.
        minutes: wall time in all.
        answers: most answers.
        asking: prompts that are answered together.
        max_new_tokens: longest answer.
        held_out: prompts to measure on.
        dtype: of the verifier; ``auto`` is that of its weights. Batches of prompts are mostly
            matrix products, which many CPUs do several times faster in float32 than in bfloat16.
        device: where verifier and drafter are.
        kind: of the drafter.
        geometry: of the drafter.
        loss: weights of the losses; none is what suits the kind.
        test_steps: of training-time test (EAGLE).
        noise: on the verifier's states (EAGLE).
        visual_weight: of tokens that depend on the image (EAGLE).
        training: how it is trained; its minutes are settled when the data are there.
        measure_every: steps between measurements while it trains; 0 measures at the end only.
        patience: measurements without a better one after which training stops.
    """

    verifier: str
    data: str | None
    answers_in: str | None
    tasks: tuple[str, ...]
    minutes: float
    answers: int
    asking: int
    max_new_tokens: int
    held_out: int
    dtype: str
    device: str
    kind: KindName
    geometry: Geometry
    loss: dict[str, float]
    test_steps: int
    noise: float
    visual_weight: float
    training: Training
    measure_every: int
    patience: int

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        return asdict(self)


@dataclass
class _Voice:
    """Prints progress, but not more often than every few seconds."""

    last: float = field(default_factory=lambda: -REPORT_EVERY)

    def __call__(self, line: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if always or now - self.last >= REPORT_EVERY:
            self.last = now
            print(line, flush=True)


def run(plan: Plan, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Distil a drafter into ``out``.

    Returns:
        what was recorded in its ``drafter.json``.

    Raises:
        ValueError: the folder is taken, the plan is another one than before, or the verifier or the
            prompts cannot be used; before any work is done.
    """
    from specdec.training import kinds, worth
    from specdec.training.card import card
    from specdec.training.sources import open_prompts

    work, say = out / "unfinished", _Voice()
    claim_run(plan.to_dict(), out, work, resume=resume)
    teacher, prompts = _teacher(plan), open_prompts(plan.data, tasks=plan.tasks)
    _check_embedded(plan, teacher)
    teacher.check(prompts)
    kind = kinds.make(
        plan.kind,
        teacher,
        plan.geometry,
        plan.training.seed,
        plan.loss or None,
        steps=plan.test_steps,
        noise=plan.noise,
        visual_weight=plan.visual_weight,
    )
    shards = _answered(plan, teacher, prompts, work, say)
    held_out = prompts.held_out(plan.held_out)
    began = time.monotonic()
    examples = kind.prepare(shards, say)
    preparing = time.monotonic() - began
    texts = [shards.numbers(*shards.place(number)) for number in range(len(shards))]
    lengths = [len(text.tokens) for text in texts]
    tokens = sum(len(text.top_ids) for text in texts)
    answering = shards.seconds / 60
    say(f"{len(lengths)} answers of {tokens} tokens in {answering:.1f} min", always=True)
    how = _settled(plan, shards.seconds + preparing)

    def tau(_: Any) -> float:
        [row] = worth.acceptance(teacher, held_out, kind.drafter(), worth.CHAINS[:1])
        found: float = row["mean_acceptance_length"]
        return found

    trained = _trained(plan, kind, examples, lengths, how, work, tau, say)
    watched = worth.watch(teacher, held_out, kind.drafter())
    facts: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in kind.student.parameters()),
        "plan": replace(
            plan,
            verifier=_name(plan.verifier),
            data=_public(plan.data),
            answers_in=_public(plan.answers_in),
            training=how,
        ).to_dict(),
        "answers": len(lengths),
        "answer_tokens": tokens,
        "answer_minutes": round(answering, 2),
        **trained,
        "acceptance": worth.acceptance(teacher, held_out, kind.drafter()),
        "acceptance_by_modality": worth.by_modality(watched),
        "calibration": worth.calibrate(watched).to_dict(),
    }
    for row in facts["acceptance"]:
        say(
            f"chain of {row['chain']}: {row['mean_acceptance_length']:.2f} tokens a step, "
            f"{row['draft_acceptance_rate']:.0%} of the drafts accepted",
            always=True,
        )
    fresh = work / "drafter"
    kind.save(fresh, _name(plan.verifier), facts)
    (fresh / "README.md").write_text(card(_name(plan.verifier), facts), encoding="utf-8")
    # drafter.json comes last: where it lies, the rest is complete.
    for file in sorted(fresh.iterdir(), key=lambda file: file.name == "drafter.json"):
        os.replace(file, out / file.name)
    say(f"the drafter is in {out}", always=True)
    return facts


def _answered(
    plan: Plan, teacher: Teacher, prompts: Prompts, work: Path, say: _Voice
) -> AnswerShards:
    """The verifier's answers, as many as were asked for or there is time for."""
    from specdec.training import answers
    from specdec.training.shards import AnswerShards
    from specdec.training.skipped import write_skipped

    folder = work / "answers" if plan.answers_in is None else Path(plan.answers_in)
    names = ("data", "tasks", "asking", "max_new_tokens", "dtype")
    asked = {name: getattr(plan, name) for name in names}
    claim_answers(asked | {"verifier": _name(plan.verifier), "seed": plan.training.seed}, folder)
    shards = AnswerShards(folder)
    allowed = ANSWERING * plan.minutes
    try:
        for count, spent in answers.collect(
            teacher,
            prompts,
            shards,
            wanted=plan.answers,
            batch=plan.asking,
            minutes=allowed,
            seed=plan.training.seed,
            avoid=prompts.held_out(plan.held_out),
        ):
            left = min(allowed, spent * plan.answers / max(count, 1)) - spent
            say(f"answers {count} of {plan.answers}, {spent:.1f} min, {max(left, 0):.1f} left")
    finally:
        skipped = write_skipped(work / "skipped.jsonl", [*prompts.skipped, *shards.skipped])
    if skipped:
        say(f"{skipped} left out: see {work / 'skipped.jsonl'}", always=True)
    return shards


def _trained(
    plan: Plan,
    kind: Kind,
    examples: Any,  # a dataset of answers
    lengths: list[int],
    how: Training,
    work: Path,
    tau: Callable[[Any], float],
    say: _Voice,
) -> dict[str, Any]:
    """Train, or go on training; what is to be recorded of it."""
    from transformers import TrainerCallback

    from specdec.training.trainer import DistillTrainer
    from specdec.training.truth import Truth

    class Told(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            logs = rest["logs"]
            share = max(how.spent(state.global_step, logs["seconds"]), 1e-9)
            left = logs["seconds"] * max(1 / share - 1, 0) / 60
            say(
                f"training {share:4.0%}, step {state.global_step}, loss {logs['loss']:.3f}, "
                f"{left:.1f} min left"
            )

    truth = None
    if plan.measure_every:
        truth = Truth(plan.measure_every, tau, plan.patience or None)
    trainer = DistillTrainer(
        kind.student, examples, lengths, kind.collate, how, work, truth, [Told()]
    )
    trainer.run()
    last = json.loads((work / "log.jsonl").read_text().splitlines()[-1])
    found = {"training_steps": last["step"]}
    if truth is not None:
        found |= {"best_step": truth.best_step, "best_measured": truth.best}
    say(f"{last['step']} steps in {trainer.seconds / 60:.1f} min", always=True)
    return {**found, "training_minutes": round(trainer.seconds / 60, 2)}


def _settled(plan: Plan, spent: float) -> Training:
    """How to train in the time that ``spent`` seconds left."""
    left = max(plan.minutes * (1 - MEASURING) - spent / 60, 0.1 * plan.minutes)
    return replace(plan.training, minutes=round(left, 2))


def _teacher(plan: Plan) -> Teacher:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from specdec.training.answers import Teacher

    folder = _folder(plan.verifier)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=plan.dtype, use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no verifier could be loaded from {plan.verifier}: {error}") from error
    mover: Any = model  # transformers wraps .to() in a way that loses its types
    return Teacher(mover.to(plan.device).eval(), processor, plan.max_new_tokens)


def _check_embedded(plan: Plan, teacher: Teacher) -> None:
    from specdec.training import lvlm

    vocabulary = teacher.model.config.get_text_config(decoder=True).vocab_size
    if plan.data is None and vocabulary != lvlm.VOCABULARY:
        raise ValueError(
            f"{plan.verifier} has a vocabulary of {vocabulary}, the embedded LVLM one of "
            f"{lvlm.VOCABULARY}; give prompts for it with --data FOLDER"
        )


def _folder(verifier: str) -> str:
    """Where the verifier lies."""
    from specdec import demo

    return str(demo.ASSETS / "lvlm") if verifier == DEMO else verifier


def _name(verifier: str) -> str:
    """A name to record: a hub id as it is, of a folder its own name only."""
    folder = Path(_folder(verifier))
    return folder.resolve().name if folder.exists() else verifier


def _public(data: str | None) -> str | None:
    """The same for data."""
    return "own" if data is not None and Path(data).exists() else data
