"""How long does one wait for a first token where others decode, and who waits?
`python -m specdec.eval.serve_waiting`.

Prompts arrive at random times while answers of others grow: how long until their first token, and
how long the others pause meanwhile, with prompts run piece by piece in steps of several sizes. And
of a crowd that comes at once with different priorities: how long each of them waits, and whether
anybody waits longer than :class:`Limits` lets them.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedModel

from specdec import AsyncEngine
from specdec.engine import Limits
from specdec.eval import suite
from specdec.eval.load_summary import percentiles
from specdec.eval.plan import drafter_of, numbers_of
from specdec.eval.record import machine, write
from specdec.eval.timing import Inputs
from specdec.interfaces import Drafter

_PRIORITIES = (0, -5, -10)


@dataclass(slots=True)
class Seen:
    """An answer's time: seconds at which pieces of it arrived, after it was asked for."""

    priority: int = 0
    arrived: list[float] = field(default_factory=list)

    @property
    def gaps(self) -> list[float]:
        """Between pieces."""
        return [b - a for a, b in pairwise(self.arrived)]


async def ask(engine: AsyncEngine, inputs: Inputs, tokens: int, priority: int = 0) -> Seen:
    """One greedy answer."""
    seen, began = Seen(priority), time.perf_counter()
    how: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "priority": priority}
    stream = await engine.submit(**inputs, **how)
    while await stream.step():
        seen.arrived.append(time.perf_counter() - began)
    return seen


async def arrivals(
    engine: AsyncEngine,
    asked: Sequence[Inputs],
    *,
    background: int,
    newcomers: int,
    pause: float,
    tokens: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Milliseconds until the first token of newcomers, and between pieces of the others.

    Args:
        engine: runs nothing else.
        asked: prompts, used in turn.
        background: answers that grow all the time; 0: newcomers find nobody.
        newcomers: prompts that arrive.
        pause: mean seconds between them; they come by a Poisson process.
        tokens: of every answer of the background; newcomers ask for an eighth.
        seed: of their times.
    """
    rng, prompts = random.Random(seed), itertools.cycle(asked)
    ended = False

    async def decode() -> list[Seen]:
        found = []
        while not ended:
            found.append(await ask(engine, next(prompts), tokens))
        return found

    others = [asyncio.ensure_future(decode()) for _ in range(background)]
    while engine.stats.running < background:
        await asyncio.sleep(0.01)
    coming = []
    for _ in range(newcomers):
        await asyncio.sleep(rng.expovariate(1 / pause))
        coming.append(asyncio.ensure_future(ask(engine, next(prompts), max(1, tokens // 8))))
    came = await asyncio.gather(*coming)
    ended = True
    grown = [seen for found in await asyncio.gather(*others) for seen in found]
    return {
        "first_token_ms": percentiles(seen.arrived[0] for seen in came),
        "between_pieces_ms": percentiles(gap for seen in grown for gap in seen.gaps),
    }


async def crowd(engine: AsyncEngine, asked: Sequence[Inputs], *, size: int, tokens: int) -> Any:
    """Who waits how long where ``size`` come at once, in turn with each priority. Any: JSON.

    Nobody is let in later than :class:`Limits` says: after `turn` · (n + 1) others, where n came
    before. First tokens are what is seen, and as many as run together may overtake each other.
    """
    levels = itertools.cycle(_PRIORITIES)
    some = itertools.islice(zip(itertools.cycle(asked), levels, strict=False), size)
    seen = await asyncio.gather(*(ask(engine, inputs, tokens, level) for inputs, level in some))
    ranked = sorted(range(size), key=lambda number: seen[number].arrived[0])
    slack = engine.threaded.limits.max_batch
    late = [
        number
        for rank, number in enumerate(ranked)
        if rank >= engine.threaded.limits.turn * (number + 1) + slack
    ]
    return {
        "size": size,
        "waits_ms": {
            str(level): percentiles(each.arrived[0] for each in seen if each.priority == level)
            for level in _PRIORITIES
        },
        "longest_ms": 1000 * max(each.arrived[0] for each in seen),
        "later_than_limits": len(late),
    }


async def measure(
    model: PreTrainedModel,
    drafter: Drafter | None,
    asked: Sequence[Inputs],
    *,
    background: int,
    newcomers: int,
    step_tokens: Sequence[int],
    tokens: int,
) -> dict[str, Any]:
    """Arrivals with steps of every size, alone and among others, and a crowd."""
    found: dict[str, Any] = {"arrivals": []}
    for most, many in itertools.product(step_tokens, (0, background)):
        limits = Limits(max_batch=background + newcomers, max_step_tokens=most)
        async with _engine(model, drafter, limits) as engine:
            await asyncio.gather(*(ask(engine, each, tokens) for each in asked[: background or 1]))
            pause = await _pause(engine, asked[0], tokens)
            how = {"background": many, "newcomers": newcomers}
            seen = await arrivals(engine, asked, **how, pause=pause, tokens=tokens)
            found["arrivals"].append({"max_step_tokens": most, **how, "pause_s": pause, **seen})
    async with _engine(model, drafter, Limits(max_batch=4)) as engine:
        found["crowd"] = await crowd(engine, asked, size=3 * newcomers, tokens=max(1, tokens // 4))
    return found


async def _pause(engine: AsyncEngine, inputs: Inputs, tokens: int) -> float:
    """Seconds between newcomers: what one takes alone, so that they are a load, but not a queue."""
    began = time.perf_counter()
    await ask(engine, inputs, max(1, tokens // 8))
    return time.perf_counter() - began


def _engine(model: PreTrainedModel, drafter: Drafter | None, limits: Limits) -> AsyncEngine:
    engine = AsyncEngine(model, drafter, limits=limits)
    engine.threaded.verifier.shares = False  # every prompt is run anew
    return engine


def _lines(found: dict[str, Any]) -> Iterator[str]:
    for each in found["arrivals"]:
        yield (
            f"steps of {each['max_step_tokens']} tokens, {each['background']} others: first token "
            f"{each['first_token_ms']} ms, the others' pauses {each['between_pieces_ms']} ms"
        )
    for level, waits in found["crowd"]["waits_ms"].items():
        yield f"{found['crowd']['size']} at once, priority {level}: first token {waits} ms"
    yield f"{found['crowd']['later_than_limits']} were let in later than the limits say"


def serve_waiting(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    drafter: Annotated[str, typer.Option(help="A saved drafter, demo, or none.")] = "demo",
    background: Annotated[int, typer.Option(min=1, help="Answers that grow meanwhile.")] = 12,
    newcomers: Annotated[int, typer.Option(min=2, help="Prompts that arrive.")] = 40,
    step_tokens: Annotated[str, typer.Option(help="Sizes of steps, comma-separated.")] = "64,512",
    tokens: Annotated[int, typer.Option(min=8, help="Of a growing answer.")] = 96,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure how long first tokens take under load, and who waits."""
    if threads is not None:
        torch.set_num_threads(threads)
    ran_on = machine()
    try:
        verifier, processor = suite.load_verifier(model, torch.float32)
        loaded = drafter_of(drafter, verifier)
        asked = suite.load_questions(count=background + newcomers)
        inputs = [suite.model_inputs(verifier, processor, [each]) for each in asked]
        sizes = numbers_of(step_tokens, "step tokens")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    how: dict[str, Any] = {"background": background, "newcomers": newcomers, "tokens": tokens}
    found = asyncio.run(measure(verifier, loaded, inputs, step_tokens=sizes, **how))
    for line in _lines(found):
        Console().print(line, markup=False)
    if out is not None:
        write(out, {"machine": ran_on, **how, **found})
    if found["crowd"]["later_than_limits"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(serve_waiting)
