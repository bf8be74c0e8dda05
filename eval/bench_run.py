"""Runs a benchmark: gate, then every method on every batch of questions in turn, written down after
each batch so that it can be gone on with. Knows nothing of figures or tables.

In the folder of a run lies ``runs.jsonl`` with a line for each batch that all methods of a group
have answered.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from specdec.eval.bench_methods import Answer, Inputs, Methods, Ran
from specdec.eval.bench_plan import Contender, Plan
from specdec.eval.comparison import GateError
from specdec.eval.efficiency import Times
from specdec.eval.timing import Check, Said, check
from specdec.files import replacing
from specdec.stats import AcceptanceStats
from specdec.training.prompts import Asked

WARM_UP = 2  # batches


@dataclass
class Group:
    """Contenders that take turns, the reference first, and what came of them.

    Attributes:
        batches: numbers of the questions that are answered together.
        refused: the error of each that cannot do it.
        checks: how the answers of those that can be compared compare.
        runs: by name a list of ``(batch number, run)``.
    """

    contenders: list[Contender]
    batches: list[list[int]]
    refused: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    runs: dict[str, list[tuple[int, Ran]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def able(self) -> list[Contender]:
        """Those that do not refuse."""
        return [each for each in self.contenders if each.name not in self.refused]


def batches_of(asked: Sequence[Asked], size: int) -> list[list[int]]:
    """Questions that are answered together: of one task, with equally many images. The last batch
    of a task is filled up with its first questions.
    """
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for number, each in enumerate(asked):
        alike[each.task, len(each.images)].append(number)
    found = []
    for numbers in alike.values():
        ring = numbers * (1 + size)
        found += [ring[start : start + size] for start in range(0, len(numbers), size)]
    return sorted(found)


def measure(
    methods: Methods,
    plan: Plan,
    asked: Sequence[Asked],
    encode: Callable[[Sequence[int]], Inputs],
    folder: Path,
    bare: Callable[[int], Times],
    told: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[Group], list[Times]]:
    """All groups, those batches that ``folder`` holds taken from there, and what bare forwards take
    behind single questions, timed beside these.

    Args:
        encode: what the model takes for these questions.
        bare: times forwards behind a question.
        told: called with how many batches of how many are done.

    Raises:
        GateError: tokens of a lossless greedy method are not the reference's; no times are given.
    """
    groups = [
        Group(contenders, batches_of(asked, contenders[0].batch))
        for contenders in plan.contenders(methods.labels)
    ]
    kept = _kept(folder / "runs.jsonl")
    total = sum(plan.rounds * len(group.batches) for group in groups)
    single = next((i for i, each in enumerate(groups) if each.contenders[0].batch == 1), None)
    done = 0
    for place, group in enumerate(groups):
        _warm_up(methods, plan, group, encode)
        for turn in range(plan.rounds):
            for number in range(len(group.batches)):
                cell = f"{place}.{turn}.{number}"
                if cell not in kept:
                    runs = dict(_answered(methods, plan, group, encode, turn, number))
                    beside = place == single and turn == 0
                    kept[cell] = Cell(runs, bare(group.batches[number][0]) if beside else {})
                    _append(folder / "runs.jsonl", cell, kept[cell])
                for name, ran in kept[cell].runs.items():
                    group.runs[name].append((number, ran))
                done += 1
                told(done, total)
        _gate(methods, plan, group, encode, group.runs)
    return groups, [cell.forwards for cell in kept.values() if cell.forwards]


def _answered(
    methods: Methods,
    plan: Plan,
    group: Group,
    encode: Callable[[Sequence[int]], Inputs],
    turn: int,
    number: int,
) -> Iterator[tuple[str, Ran]]:
    """All methods of a group on a batch, forwards and backwards in turn, so that whatever drifts
    hits all of them alike.
    """
    inputs = encode(group.batches[number])
    order = group.able if (turn + number) % 2 == 0 else group.able[::-1]
    for each in order:
        yield each.name, methods.run(each, inputs, plan.seed + 1000 * turn + number)


def _warm_up(
    methods: Methods, plan: Plan, group: Group, encode: Callable[[Sequence[int]], Inputs]
) -> None:
    """Find out who refuses, and gate the others, before anything is timed."""
    runs: dict[str, list[tuple[int, Ran]]] = defaultdict(list)
    for number in range(min(WARM_UP, len(group.batches))):
        inputs = encode(group.batches[number])
        for each in group.able:
            try:
                runs[each.name].append((number, methods.run(each, inputs, plan.seed)))
            except Exception as error:  # whatever another library raises is what the table says
                if each.ours:
                    raise
                reason = (str(error).splitlines() or [""])[0]
                group.refused[each.name] = f"{type(error).__name__}: {reason}"
    _gate(methods, plan, group, encode, runs)


def _gate(
    methods: Methods,
    plan: Plan,
    group: Group,
    encode: Callable[[Sequence[int]], Inputs],
    runs: dict[str, list[tuple[int, Ran]]],
) -> None:
    """Compare the answers of all that can be compared with the reference's.

    Raises:
        GateError: those of one that is ours are others.
    """
    reference = runs[group.contenders[0].name]
    for each in group.able:
        if not each.comparable or each.kind == "reference":
            continue
        found = runs[each.name]
        inputs, plain, said = list[Inputs](), list[Said](), list[Said]()
        for (number, right), (_, other) in zip(reference, found, strict=True):
            rows = zip(group.batches[number], right.answers, other.answers, strict=True)
            for question, theirs, ours in rows:
                if theirs.tokens != ours.tokens:
                    inputs.append(encode([question]))
                    plain.append(Said(theirs.tokens))
                    said.append(Said(ours.tokens))
        result = check(methods.model, inputs, plain, said, plan.bound)
        answers = [answer for _, ran in found for answer in ran.answers]
        result.answers = len(answers)
        result.tokens = sum(len(answer.tokens) for answer in answers)
        group.checks[each.name] = result
        if each.ours and result.wrong:
            raise GateError(
                f"{each.name}, batch of {each.batch}: {result.wrong} of {result.answers} answers "
                f"are not those of model.generate (widest gap {result.widest:.3g} logits, allowed "
                f"{plan.bound}); no speeds are reported"
            )


class Cell(NamedTuple):
    """A batch that all methods of a group have answered, and bare forwards behind its question."""

    runs: dict[str, Ran]
    forwards: Times


def _append(file: Path, name: str, cell: Cell) -> None:
    """Write a batch down, at once and for good."""
    values = {
        method: {
            "answers": [answer._asdict() for answer in ran.answers],
            "seconds": ran.seconds,
            "stats": None if ran.stats is None else ran.stats.to_dict(),
        }
        for method, ran in cell.runs.items()
    }
    line = {"cell": name, "runs": values, "forwards": cell.forwards}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())


def _kept(file: Path) -> dict[str, Cell]:
    """What was written down; a last line that was cut short is not there."""
    found: dict[str, Cell] = {}
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if len(whole) < len(lines):
        with replacing(file) as unfinished:
            unfinished.write_bytes(b"".join(whole))
    for line in whole:
        values = json.loads(line)
        runs = {name: _ran(value) for name, value in values["runs"].items()}
        found[values["cell"]] = Cell(runs, values["forwards"])
    return found


def _ran(values: dict[str, Any]) -> Ran:  # Any: JSON values
    stats = values["stats"]
    return Ran(
        [Answer(**answer) for answer in values["answers"]],
        values["seconds"],
        None if stats is None else AcceptanceStats.from_dict(stats),
    )
