"""Everything that only a GPU can say, in one file: `python -m specdec.eval.gpu_suite`.

Nothing is downloaded. First the tests that need a GPU, and whether the engine over the Triton
kernels gives the answers of transformers' `generate` in fp32; if not, nothing is timed. Then the
kernels against others, forwards over pages against transformers' own, and models of real size with
random weights: steps, batches, memory. What the time does not suffice for is listed as skipped.

With `--toy --device cpu --no-tests` the same code runs in a minute without a GPU, its kernels in
Triton's interpreter (`TRITON_INTERPRET=1`); the times then say nothing.
"""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from specdec.drafters import load_drafter
from specdec.eval import attention, suite
from specdec.eval.budget import Deadline, Red, Session
from specdec.eval.filled import milliseconds
from specdec.eval.gpu_models import FULL, TOY, Sizes, Subject
from specdec.eval.gpu_tests import run_tests
from specdec.eval.kernels import Grid, device_attention, device_timer, forwards
from specdec.eval.known_configs import NAMES, known_config
from specdec.eval.plan import acceptance_of
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import random_eagle, random_model, toy
from specdec.eval.record import machine
from specdec.generation import generate

SCHEMA = "specdec.gpu/1"
ROOT = Path(__file__).resolve().parents[1]
_WHOLE = 9.0  # minutes that the parts' seconds below are meant for
_SECONDS = {
    "tests": 150.0,
    "answers": 40.0,
    "attention": 70.0,
    "forwards": 30.0,
    "facts": 15.0,
    "steps": 35.0,
    "throughput": 25.0,
    "one image": 10.0,
}
_GRID = Grid((4096, 1024, 16384), (1, 8, 64), (5, 16, 1, 64))
_TOY_SIZES = {"heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": torch.float32}
_TOY_GRID = Grid((48,), (2,), (3,), prefix=0, beside=0, sizes=_TOY_SIZES)


def same_answers(device: torch.device, questions: int, longest: int = 160) -> dict[str, Any]:
    """How many tokens of greedy fp32 answers were compared with ``generate``'s.

    Raises:
        ValueError: an answer differs.
    """
    # In full precision on both sides: products in tf32 would differ by shape.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    loaded, processor = suite.load_verifier(suite.MODEL, "float32")
    model: Any = loaded  # generate and to are not declared as they are
    model.to(device)
    drafter = load_drafter(suite.DRAFTER, model)
    tokens = 0
    for question in suite.load_questions(suite.QUESTIONS, questions):
        inputs = suite.model_inputs(model, processor, [question])
        limits: dict[str, Any] = {"do_sample": False, "max_new_tokens": longest}
        plain = model.generate(**inputs, **limits)
        ours = generate(model, drafter=drafter, **inputs, **limits)
        if not torch.equal(plain, ours):
            raise ValueError(f"an answer about {question.task} is not that of generate")
        tokens += ours.shape[1] - inputs["input_ids"].shape[1]
    return {"questions": questions, "tokens": tokens, "mismatches": 0}


class GpuSuite:
    """The parts, on a device and within a session.

    Args:
        session: where results go.
        device: a CUDA device, or a CPU.
        small: at toy size.
        minutes: for everything.
        despite: go on where a gate is red.
    """

    def __init__(
        self, session: Session, device: torch.device, small: bool, minutes: float, despite: bool
    ) -> None:
        self._session = session
        self._device = device
        self._small = small
        self._scale = minutes / _WHOLE
        self._despite = despite
        self._bandwidth = 0.0

    def gates(self, tests: bool, questions: int) -> None:
        """Tests, and answers.

        Raises:
            Red: one of them failed, or there was no time for it, and that is not to be passed
                over.
        """
        if tests:
            self._gate("tests", self._tests)
        longest = 12 if self._small else 160
        self._gate("answers", lambda _: same_answers(self._device, questions, longest))

    def kernels(self, rounds: int) -> None:
        """Tree attention, and forwards of the demonstration model."""
        self._run("attention", "attention", self._attention)
        if self._small:
            how: tuple[Any, ...] = (["float32"], [24], [1, 3], 2)
        else:
            how = (["float32", "bfloat16"], [160, 800], [1, 5, 16], rounds)
        self._run(
            "forwards",
            "forwards",
            lambda _: {"cases": forwards(suite.MODEL, self._device, *how)},
        )

    def model(self, name: str, sizes: Sizes, acceptance: Acceptance) -> None:
        """All that is to be known of one geometry; its weights are gone afterwards."""
        config = known_config(name)
        dtype = torch.float32 if self._small else torch.bfloat16
        if not self._bandwidth:
            timer = _timer(self._device)
            self._bandwidth = attention.copy_bandwidth(self._device, timer, sizes.copied)
            self._session.record["copy_bytes_per_second"] = self._bandwidth
        found: list[Subject] = []

        def facts(deadline: Deadline) -> dict[str, Any]:
            model = random_model(toy(config) if self._small else config, dtype, self._device)
            eagle = random_eagle(model)
            found.append(Subject(model, eagle, sizes, self._bandwidth, acceptance))
            return found[0].facts(deadline)

        self._run(name, "facts", facts)
        for subject in found:
            self._run(f"{name}: steps", "steps", subject.steps)
            self._run(f"{name}: throughput", "throughput", subject.throughput)
            self._run(f"{name}: one image", "one image", subject.one_image)

    def _run(self, name: str, kind: str, part: Callable[[Deadline], Any]) -> Any:
        # What earlier parts used is free for this one.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._session.run(name, _SECONDS[kind] * self._scale, part)

    def _gate(self, name: str, part: Callable[[Deadline], Any]) -> None:
        try:
            if self._run(name, name, partial(_or_red, part)) is None:
                raise Red(f"there was no time for the gate {name!r}")
        except Red:
            if not self._despite:
                raise
            self._session.record["despite_red"] = True

    def _tests(self, deadline: Deadline) -> dict[str, Any]:
        found = run_tests(ROOT, deadline.left)
        if found["ran"] and (found["exit_code"] != 0 or not found["passed"]):
            self._session.record["test_failures"] = found["failures"] or [found["tail"]]
            ended = "time ran out" if found["timed_out"] else f"exit code {found['exit_code']}"
            counts = f"{found['failed'] + found['error']} failed, {found['passed']} passed"
            raise Red(f"tests: {counts}; {ended}")
        return found

    def _attention(self, deadline: Deadline) -> dict[str, Any]:
        on_gpu = self._device.type == "cuda"
        if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            return {"ran": False, "why": "without a GPU, kernels run with TRITON_INTERPRET=1 only"}
        everybody = attention.contestants(self._device)
        # Compiling it takes longer than all the rest; specdec.eval.kernels has it.
        entries = {name: run for name, run in everybody.items() if name != "flex attention"}
        return device_attention(
            self._device,
            _TOY_GRID if self._small else _GRID,
            device_timer if on_gpu else _timer(self._device),
            entries=entries,
            wanted=deadline.wanted,
            copy_size=TOY.copied if self._small else FULL.copied,
        )


def _or_red(part: Callable[[Deadline], dict[str, Any]], deadline: Deadline) -> dict[str, Any]:
    try:
        return part(deadline)
    except Red:
        raise
    except Exception as error:  # whatever a driver or a compiler raises
        raise Red(f"{type(error).__name__}: {error}") from error


def _median_ms(device: torch.device, run: attention.Run) -> float:
    return statistics.median(milliseconds(device, run) for _ in range(5))


def _timer(device: torch.device) -> attention.Timer:
    return partial(_median_ms, device)


def _device_facts(device: torch.device) -> dict[str, Any]:
    """What it is.

    Raises:
        ValueError: there is no such device.
    """
    if device.type != "cuda":
        return {"gpu": None}
    if not torch.cuda.is_available():
        raise ValueError("torch sees no CUDA device here")
    properties = torch.cuda.get_device_properties(device)
    memory, cuda = properties.total_memory, torch.version.cuda
    return {"gpu": {"name": properties.name, "memory": memory, "cuda": cuda}}


def gpu_suite(
    device: Annotated[str, typer.Option(help="As torch names it.")] = "cuda",
    small: Annotated[bool, typer.Option("--toy", help="Tiny models, to try the suite.")] = False,
    minutes: Annotated[float, typer.Option(min=0.01, help="For everything.")] = _WHOLE,
    models: Annotated[str, typer.Option(help="Geometries, by commas.")] = ",".join(NAMES),
    tests: Annotated[bool, typer.Option(help="Run the tests that need a GPU.")] = True,
    despite: Annotated[
        bool, typer.Option("--despite-failures", help="Time things that failed their tests.")
    ] = False,
    questions: Annotated[int, typer.Option(min=1, help="Answers to compare.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Forwards of each kind.")] = 50,
    acceptance: Annotated[float, typer.Option(min=0, max=1, help="To replay.")] = 0.8,
    profile: Annotated[
        Path | None, typer.Option(help="Benchmark's record to replay acceptance from instead.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Method of that record.")] = None,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("gpu.json"),
) -> None:
    """Check and measure on this machine's CUDA device."""
    console, on = Console(), torch.device(device)
    try:
        facts = machine() | _device_facts(on)
        replayed = acceptance_of(acceptance, profile, method)
        chosen = models.split(",")
        for name in chosen:
            known_config(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    session = Session(out, {"schema": SCHEMA, "toy": small, "machine": facts}, 60 * minutes)
    every = GpuSuite(session, on, small, minutes, despite)
    try:
        every.gates(tests, questions)
        every.kernels(rounds)
        for name in chosen:
            every.model(name, TOY if small else FULL, replayed)
    except Red as red:
        console.print(f"[bold red]{red}; nothing was timed")
        raise typer.Exit(1) from red
    finally:
        session.write()
        _sum_up(session, console)


def _sum_up(session: Session, console: Console) -> None:
    for name, part in session.record["parts"].items():
        how = part.get("red") or part.get("failed") or "done"
        console.print(f"{name}: {how}, {part['seconds']:.0f} s")
    for each in session.record["skipped"]:
        case = "" if each["case"] is None else f", {each['case']}"
        console.print(f"skipped for want of time: {each['part']}{case}")


if __name__ == "__main__":
    typer.run(gpu_suite)
