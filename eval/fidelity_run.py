"""A fidelity measurement as a folder that fills up, and goes on where it was cut off.

``plan.json`` says what is measured; ``answers-*.jsonl`` hold a line per question, temperature and
sample with what each policy's answer came to, ``times-*.jsonl`` a line per timed question. Lines
that are not complete do not count.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from specdec.eval.fidelity_bench import Bench, Plan, Turn
from specdec.files import write_json


def begin(folder: Path, plan: Plan) -> None:
    """Claim the folder for a plan.

    Raises:
        ValueError: it holds another one.
    """
    file = folder / "plan.json"
    wanted = json.loads(json.dumps(asdict(plan)))
    if file.is_file():
        held = json.loads(file.read_text(encoding="utf-8"))
        if held != wanted:
            names = ", ".join(k for k in wanted if held.get(k) != wanted[k])
            raise ValueError(
                f"{folder} holds a measurement with another {names}; say another --run"
            )
    else:
        write_json(file, wanted)


def turns(plan: Plan, questions: int) -> list[Turn]:
    """All answers that a plan asks for: a question at all temperatures before the next one."""
    return [
        Turn(index, temperature, sample)
        for index in range(questions)
        for temperature in plan.temperatures
        for sample in range(plan.samples if temperature > 0 else 1)
    ]


def lines(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The complete lines of a kind."""
    for file in sorted(folder.glob(f"{kind}-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def key(line: Mapping[str, Any]) -> tuple[str, float, int]:
    """What a line is about."""
    return line["question"], line["temperature"], line["sample"]


def work(
    bench: Bench, folder: Path, kind: str, part: int, parts: int, told: Callable[[int, int], None]
) -> None:
    """Do what is not done yet of every ``parts``-th turn, and write it down line by line."""
    plan = bench.plan
    asked: Sequence[Turn] = turns(plan, len(bench.questions))
    if kind == "times":
        # Spread over all questions, so that each task is among them.
        every = max(1, len(bench.questions) // max(plan.timed, 1))
        chosen = range(0, len(bench.questions), every)[: plan.timed]
        asked = [turn for turn in asked if turn.place in chosen and turn.sample == 0]
    done = {key(line) for line in lines(folder, kind)}
    asked = [t for t in asked if (bench.questions[t.place].name, *t[1:]) not in done]
    mine = asked[part::parts]
    ask = bench.time if kind == "times" else bench.answer
    path = folder / f"{kind}-{part}.jsonl"
    _drop_unfinished(path)
    with path.open("a", encoding="utf-8") as file:
        for number, turn in enumerate(mine, 1):
            file.write(json.dumps(ask(turn)) + "\n")
            file.flush()
            told(number, len(mine))


def work_apart(plan: Plan, folder: Path, parts: int) -> None:
    """Let ``parts`` processes answer, the cores divided among them.

    Raises:
        RuntimeError: one of them failed.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // parts)
    workers = [
        context.Process(target=_worker, args=(plan, folder, part, parts, threads))
        for part in range(parts)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process that answered questions failed; see above")


def _worker(plan: Plan, folder: Path, part: int, parts: int, threads: int) -> None:
    torch.set_num_threads(threads)
    work(Bench(plan), folder, "answers", part, parts, _tell if part == 0 else lambda *_: None)


def _tell(number: int, count: int) -> None:
    if number % 10 == 0 or number == count:
        print(f"{number} of {count}", flush=True)


def _drop_unfinished(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    if path.is_file():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            path.write_bytes(whole)
