"""Distil a text-only drafter from a verifier's own answers: `specdec distill`.

Three parts: the verifier answers prompts (`answers`), a small language model learns from them
(`student`), and the engine measures on held-out prompts what the drafter is worth. Everything
unfinished lies in ``OUT/unfinished``; the drafter appears in OUT when it is done.

Importing this imports no model code, so that a command line can register :func:`distill` for free.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from specdec.stats import AcceptanceStats
    from specdec.training.answers import Teacher
    from specdec.training.prompts import Prompts
    from specdec.training.student import Recipe, Size

ANSWERING = 0.45  # share of the time in which the verifier may answer
MEASURING = 0.05  # share that is left for the measurement at the end
CHAINS = (4, 8)  # draft lengths that are measured
REPORT_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Plan:
    """What one distillation does. A run that goes on must have the plan it began with.

    Attributes:
        verifier: folder or hub id of the verifier.
        data: folder of prompts; ``None`` is the embedded LVLM's generator.
        tasks: which of that generator's tasks; none is those that the shipped one answers well.
        minutes: wall time in all.
        answers: most answers.
        asking: prompts that are answered together.
        max_new_tokens: longest answer.
        held_out: prompts to measure on.
        dtype: of the verifier; ``auto`` is that of its weights. Batches of prompts are mostly
            matrix products, which many CPUs do several times faster in float32 than in bfloat16.
        size: the drafter's geometry.
        recipe: how it is trained; its minutes are settled when the answers are there.
    """

    verifier: str
    data: str | None
    tasks: tuple[str, ...]
    minutes: float
    answers: int
    asking: int
    max_new_tokens: int
    held_out: int
    dtype: str
    size: Size
    recipe: Recipe

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
    from specdec.drafters.loading import save_drafter
    from specdec.training import answers, student
    from specdec.training.examples import Examples, without_visual
    from specdec.training.shards import AnswerShards
    from specdec.training.skipped import write_skipped
    from specdec.training.sources import open_prompts
    from specdec.verifiers.spec import read_spec

    work, say = out / "unfinished", _Voice()
    _claim(plan, out, work, resume)
    teacher, prompts = _teacher(plan), open_prompts(plan.data, tasks=plan.tasks)
    _check_embedded(plan, teacher)
    teacher.check(prompts)
    shards = AnswerShards(work / "answers")
    allowed = ANSWERING * plan.minutes
    try:
        for count, spent in answers.collect(
            teacher,
            prompts,
            shards,
            wanted=plan.answers,
            batch=plan.asking,
            minutes=allowed,
            seed=plan.recipe.seed,
            avoid=prompts.held_out(plan.held_out),
        ):
            left = min(allowed, spent * plan.answers / max(count, 1)) - spent
            say(f"answers {count} of {plan.answers}, {spent:.1f} min, {max(left, 0):.1f} left")
    finally:
        skipped = write_skipped(work / "skipped.jsonl", [*prompts.skipped, *shards.skipped])
    if skipped:
        say(f"{skipped} left out: see {work / 'skipped.jsonl'}", always=True)
    seconds, visual = shards.seconds, read_spec(teacher.model).visual_token_ids
    examples = [without_visual(example) for example in Examples(shards, visual)]
    tokens = sum(len(e.top_ids) for e in examples)
    say(f"{len(examples)} answers of {tokens} tokens in {seconds / 60:.1f} min", always=True)

    recipe = _settled(plan, seconds)
    model = student.build(teacher.model, plan.size, recipe.seed)

    def told(state: student.State) -> None:
        share = recipe.spent(state.step, state.seconds)
        left = state.seconds * (1 / share - 1) / 60
        say(f"training {share:4.0%}, step {state.step}, loss {state.loss:.3f}, {left:.1f} min left")

    state = student.train(model, examples, recipe, work / "training.safetensors", report=told)
    say(f"{state.step} steps in {state.seconds / 60:.1f} min, loss {state.loss:.3f}", always=True)

    facts: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "plan": replace(
            plan, verifier=_name(plan.verifier), data=plan.data and "own", recipe=recipe
        ).to_dict(),
        "answers": len(examples),
        "answer_tokens": tokens,
        "answer_minutes": round(seconds / 60, 2),
        "training_steps": state.step,
        "training_minutes": round(state.seconds / 60, 2),
        "acceptance": measure(teacher, prompts, model, plan),
    }
    for row in facts["acceptance"]:
        say(
            f"chain of {row['chain']}: {row['mean_acceptance_length']:.2f} tokens a step, "
            f"{row['draft_acceptance_rate']:.0%} of the drafts accepted",
            always=True,
        )
    fresh = work / "drafter"
    save_drafter(model, fresh, verifier=_name(plan.verifier), **facts)
    # drafter.json comes last: where it lies, the rest is complete.
    for file in sorted(fresh.iterdir(), key=lambda file: file.name == "drafter.json"):
        os.replace(file, out / file.name)
    say(f"the drafter is in {out}", always=True)
    return facts


def measure(
    teacher: Teacher, prompts: Prompts, drafter: PreTrainedModel, plan: Plan
) -> list[dict[str, Any]]:
    """Acceptance on held-out prompts, by running the engine: greedy, one prompt at a time."""
    from specdec.drafters import TextOnlyDrafter
    from specdec.generation import generate
    from specdec.stats import AcceptanceStats

    asked = [teacher.inputs([each]) for each in prompts.held_out(plan.held_out)]
    rows = []
    for depth in CHAINS:
        stats: AcceptanceStats = AcceptanceStats()
        for inputs in asked:
            out = generate(
                teacher.model,
                drafter=TextOnlyDrafter(drafter),
                tree=depth,
                **inputs,
                do_sample=False,
                max_new_tokens=plan.max_new_tokens,
            )
            stats.merge(out.stats)
        counts = stats.to_dict()
        del counts["times"]  # of a run that was not set up to be timed
        rows.append({"chain": depth, "questions": len(asked), **counts})
    return rows


def _claim(plan: Plan, out: Path, work: Path, resume: bool) -> None:
    """Take the folder, or go on in it."""
    file, current = work / "plan.json", json.loads(json.dumps(plan.to_dict()))
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; go on with --resume or choose another folder")
    elif file.is_file():
        before = json.loads(file.read_text())
        changed = {name for name in current if before.get(name) != current[name]}
        if changed:
            name = min(changed)
            raise ValueError(
                f"{out} was begun with {name}={before.get(name)!r}, now it is {current[name]!r}; "
                "give the same options, or choose another folder"
            )
    else:
        raise ValueError(f"there is nothing to resume in {out}")
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(current, indent=2) + "\n")
        unfinished.replace(file)


def _settled(plan: Plan, answering: float) -> Recipe:
    """The recipe with the time that ``answering`` seconds left for training."""
    left = max(plan.minutes * (1 - MEASURING) - answering / 60, 0.1 * plan.minutes)
    return replace(plan.recipe, minutes=round(left, 2))


def _teacher(plan: Plan) -> Teacher:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from specdec.training.answers import Teacher

    try:
        model = AutoModelForImageTextToText.from_pretrained(
            plan.verifier, dtype=plan.dtype, use_safetensors=True
        )
        processor = AutoProcessor.from_pretrained(plan.verifier)
    except (OSError, ValueError) as error:
        raise ValueError(f"no verifier could be loaded from {plan.verifier}: {error}") from error
    return Teacher(model.eval(), processor, plan.max_new_tokens)


def _check_embedded(plan: Plan, teacher: Teacher) -> None:
    from specdec.training import lvlm

    vocabulary = teacher.model.config.get_text_config(decoder=True).vocab_size
    if plan.data is None and vocabulary != lvlm.VOCABULARY:
        raise ValueError(
            f"{plan.verifier} has a vocabulary of {vocabulary}, the embedded LVLM one of "
            f"{lvlm.VOCABULARY}; give prompts for it with --data FOLDER"
        )


def _name(verifier: str) -> str:
    """A name to record: a hub id as it is, of a folder its own name only."""
    return Path(verifier).resolve().name if Path(verifier).exists() else verifier


def distill(
    verifier: Annotated[str, typer.Option(help="Folder or hub id of the verifier.")],
    out: Annotated[Path, typer.Option(help="Folder for the drafter.")],
    data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help='Folder of images and *.jsonl lines {"image": file, "prompt": text}. Without it, '
            "the embedded model's own generator.",
        ),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Of the embedded model's generator, by commas.")] = "",
    minutes: Annotated[float, typer.Option(min=0.01, help="Wall time in all.")] = 12.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where --out stopped.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="Most answers to learn from.")] = 4096,
    asking: Annotated[int, typer.Option(min=1, help="Prompts answered together.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    held_out: Annotated[int, typer.Option(min=1, help="Prompts to measure on.")] = 34,
    dtype: Annotated[str, typer.Option(help="Of the verifier: auto, float32, …")] = "float32",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the drafter.")] = 1,
    hidden: Annotated[int, typer.Option(min=8, help="Its width.")] = 192,
    intermediate: Annotated[int, typer.Option(min=8, help="Width of its MLP.")] = 512,
    heads: Annotated[int, typer.Option(min=1, help="Its query heads.")] = 4,
    kv_heads: Annotated[int, typer.Option(min=1, help="Its key and value heads.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="Answers per training step.")] = 32,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-3,
    soft: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the verifier's probabilities.")
    ] = 0.5,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train this many steps, whatever the time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train a small text-only drafter on a verifier's own answers."""
    import torch

    from specdec.training.student import Recipe, Size

    if threads is not None:
        torch.set_num_threads(threads)
    plan = Plan(
        verifier=verifier,
        data=None if data is None else str(data),
        tasks=tuple(filter(None, tasks.split(","))),
        minutes=minutes,
        answers=answers,
        asking=asking,
        max_new_tokens=max_new_tokens,
        held_out=held_out,
        dtype=dtype,
        size=Size(layers, hidden, intermediate, heads, kv_heads),
        recipe=Recipe(batch=batch, rate=rate, soft=soft, seed=seed, steps=steps),
    )
    try:
        run(plan, out, resume=resume)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    shutil.rmtree(out / "unfinished" / "drafter", ignore_errors=True)


if __name__ == "__main__":
    typer.run(distill)
