"""What each drafter is worth, task by task.

The gate comes first: in fp32 every token must be that of ``model.generate``. Every question is
answered by all methods in turn, forwards and backwards; ratios are taken per question. *Decode*
leaves the prompt out: the time of an answer minus that of its first token alone, for both
sides. Knows nothing of command lines, files or tables.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track
from transformers import PreTrainedModel

from specdec.choice import OneDrafter, resolve_drafter
from specdec.drafters import EnsembleDrafter
from specdec.drafters.eagle import EagleDrafter
from specdec.engine import Adaptive
from specdec.eval.bench_plan import REFERENCE
from specdec.eval.comparison import gate
from specdec.eval.drafter_goals import ALL
from specdec.eval.timing import Inputs, Method, Run, Said, interleaved, ratio
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats
from specdec.tree import Dynamic, Shape, chain


class Contender(NamedTuple):
    """A drafter with a tree."""

    name: str
    drafter: Drafter
    shape: Shape | Adaptive


def shapes(nodes: int) -> dict[str, Callable[[], Shape | Adaptive]]:
    """The trees that are compared, by name: none has more nodes."""
    tree = Dynamic(nodes, nodes, 4)
    return {
        f"chain of {nodes // 2}": lambda: chain(nodes // 2),
        f"chain of {nodes}": lambda: chain(nodes),
        f"dynamic, {nodes} nodes": lambda: tree,
        "adaptive": lambda: Adaptive(tree),
    }


def contenders(model: PreTrainedModel, names: Sequence[str], nodes: int) -> list[Contender]:
    """Every drafter with every tree. Two of one kind are told apart by their folders' names.

    Raises:
        ValueError: a drafter that cannot be loaded, or does not fit.
    """
    drafters: dict[str, Drafter] = {}
    for name in names:
        members: list[OneDrafter] = list(name.split("+"))
        drafter = resolve_drafter(members if len(members) > 1 else name, model)
        assert drafter is not None
        short = label(drafter)
        if short in drafters:
            short += f" ({'+'.join(Path(part).name for part in name.split('+'))})"
        drafters[short] = drafter
    return [
        Contender(f"{name}, {tree}", drafter, make())
        for name, drafter in drafters.items()
        for tree, make in shapes(nodes).items()
    ]


def label(drafter: Drafter) -> str:
    """What a drafter is called in a table: its kind, of an EAGLE head also how it sees images."""
    if isinstance(drafter, EnsembleDrafter):
        return "+".join(map(label, drafter.drafters))
    if isinstance(drafter, EagleDrafter):
        return f"{drafter.name}-{drafter.head.config.vision}"
    return drafter.name


def methods(
    model: PreTrainedModel, each: Sequence[Contender], max_new_tokens: int
) -> tuple[list[Method], list[Method]]:
    """The reference and the contenders; and the same for the first token only."""

    def theirs(limit: int) -> Callable[[Inputs], Said]:
        generator: Any = model  # generate comes from a mixin that PreTrainedModel does not declare

        def run(inputs: Inputs) -> Said:
            ids = generator.generate(**inputs, do_sample=False, max_new_tokens=limit)
            return Said(ids[0, inputs["input_ids"].shape[1] :].tolist())

        return run

    def ours(contender: Contender, limit: int) -> Callable[[Inputs], Said]:
        def run(inputs: Inputs) -> Said:
            ids = generate(
                model,
                drafter=contender.drafter,
                tree=contender.shape,
                **inputs,
                do_sample=False,
                max_new_tokens=limit,
            )
            return Said(ids[0, inputs["input_ids"].shape[1] :].tolist(), ids.stats)

        return run

    whole, first = [
        [
            Method(REFERENCE, theirs(limit)),
            *(Method(c.name, ours(c, limit), ours=True) for c in each),
        ]
        for limit in (max_new_tokens, 1)
    ]
    return whole, first


def most_bytes(model: PreTrainedModel, contender: Contender, inputs: Inputs, limit: int) -> int:
    """Most bytes of keys and values of its own that the drafter held during an answer; 0 if it
    keeps none.
    """
    most = 0

    def look(_: Any) -> None:
        nonlocal most
        most = max(most, getattr(contender.drafter, "bytes_taken", 0))

    generate(
        model,
        drafter=contender.drafter,
        tree=contender.shape,
        **inputs,
        do_sample=False,
        max_new_tokens=limit,
        on_emission=look,
    )
    return most


def summary(
    numbers: Sequence[int],
    whole: dict[str, list[Run]],
    first: dict[str, list[Run]],
    name: str,
) -> dict[str, Any]:
    """What a contender did on these questions."""
    stats = AcceptanceStats()
    for number in numbers:
        said = whole[name][number].said
        assert said.stats is not None
        stats.merge(said.stats)
    steps = max(stats.num_spec_steps, 1)

    def decode(method: str, number: int) -> float:
        rest = max(len(whole[method][number].said.tokens) - 1, 1)
        return (whole[method][number].seconds - first[method][number].seconds) / rest

    def all_of_it(method: str, number: int) -> float:
        return whole[method][number].ms_per_token

    def speedup(seconds: Callable[[str, int], float]) -> dict[str, float]:
        plain = [seconds(REFERENCE, number) for number in numbers]
        return ratio(plain, [seconds(name, number) for number in numbers])._asdict()

    return {
        "questions": len(numbers),
        "tokens": stats.num_generated_tokens,
        "mean_acceptance_length": stats.mean_acceptance_length,
        "acceptance_per_position": [n / steps for n in stats.num_accepted_tokens_per_pos],
        "draft_acceptance_rate": stats.draft_acceptance_rate,
        "num_spec_steps": stats.num_spec_steps,
        "num_draft_tokens": stats.num_draft_tokens,
        "draft_ms_per_step": 1000 * stats.times.draft / steps,
        "verify_ms_per_step": 1000 * stats.times.verify / steps,
        "speedup_decode": speedup(decode),
        "speedup_end_to_end": speedup(all_of_it),
    }


def measure(
    model: PreTrainedModel,
    each: Sequence[Contender],
    asked: Sequence[Inputs],
    tasks: Sequence[str],
    *,
    bound: float,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Gate, then time, then sum up by task.

    Args:
        bound: gap in logits below which two tokens count as tied; 0 in fp32.

    Raises:
        GateError: tokens differ; no times are handed out.
    """
    whole, first = methods(model, each, max_new_tokens)
    for method in whole:  # warm-up
        method.run(asked[0])
    runs: list[dict[str, list[Run]]] = []
    for group in (whole, first):
        found: dict[str, list[Run]] = defaultdict(list)
        timed = interleaved(group, asked)
        for _, name, run in track(timed, "timing", len(group) * len(asked)):
            found[name].append(run)
        runs.append(found)
    said = {name: [run.said for run in found] for name, found in runs[0].items()}
    gate(model, whole, asked, said, bound)
    plain = [len(run.said.tokens) for run in runs[0][REFERENCE]]
    by_task: dict[str, list[int]] = {ALL: list(range(len(asked)))}
    for number, task in enumerate(tasks):
        by_task.setdefault(task, []).append(number)
    return {
        "reference": {
            "ms_per_token_median": statistics.median(
                run.ms_per_token for run in runs[0][REFERENCE]
            ),
            "tokens_per_answer": statistics.mean(plain),
        },
        "drafters": {
            contender.name: {
                "kv_bytes": most_bytes(model, contender, asked[0], max_new_tokens),
                "tasks": {
                    task: summary(numbers, runs[0], runs[1], contender.name)
                    for task, numbers in by_task.items()
                },
            }
            for contender in each
        },
    }
