"""Does a server under load keep its promises? `python -m specdec.eval.serve_load`.

`specdec serve` runs in a process of its own, with the shipped model in fp32, so that answers are
exact. Clients ask, read, and ask again; a share of them hang up at some point. Then: not one wrong
answer, with what was received of an abandoned one a beginning of the right one, and ties of the
verifier's own counted apart; no page of keys left behind, no 5xx, memory that does not grow. At
last it is told to stop while answers run, which still have to end, and to end with exit code 0.
Exit code 1 if a gate fails.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import torch
import typer
from rich.console import Console

from specdec.eval import load_summary as summary
from specdec.eval import suite
from specdec.eval.load_client import Client
from specdec.eval.load_orders import Order, Outcome, orders
from specdec.eval.load_prompts import Reference, Spoken, prompts, reference
from specdec.eval.load_server import ServerProcess
from specdec.eval.record import machine, write

# Any, below: JSON values.

TIE = 1e-3  # logits; what ragged batches move them by in fp32 is far less
_SAMPLES = 240  # of the server's memory and pages, over a run
_LAST = 8  # answers that run when it is told to stop
_HEADROOM = 16  # requests that may wait: fewer than come, so that some are refused


def options(limits: dict[str, Any], drafter: str | None) -> list[str]:
    """Of `specdec serve`."""
    given = ["--dtype", "fp32"]
    for name, value in limits.items():
        given += [f"--{name.replace('_', '-')}", str(value)]
    return given if drafter is None else [*given, "--drafter", drafter]


class Watch:
    """Looks at a server's memory and pages every now and then, in a thread of its own."""

    def __init__(self, server: ServerProcess, every: float) -> None:
        self.samples: list[summary.Sample] = []
        self.pages = 0.0
        self._server, self._every = server, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.perf_counter()
        while not self._ended.wait(self._every):
            resident = self._server.resident_bytes()
            if resident is not None:
                self.samples.append(summary.Sample(time.perf_counter() - began, resident))
            try:
                self.pages = max(self.pages, self._server.metrics()["kv_cache_usage_perc"])
            except httpx.HTTPError:  # too busy to say; there are other times
                continue


async def load(
    address: str, messages: Sequence[Any], clients: int, seconds: float, cancel: float, longest: int
) -> list[Outcome]:
    """What so many clients get to see in that time; client i draws from seed i."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, limits=limits) as http:
        until = time.perf_counter() + seconds
        asking = [
            Client(http, "demo", messages, until).run(orders(seed, len(messages), cancel, longest))
            for seed in range(clients)
        ]
        return [each for seen in await asyncio.gather(*asking) for each in seen]


class Stopped(NamedTuple):
    """A server that was told to stop while it answered.

    Attributes:
        outcomes: of everything that was asked for that.
        running: answers that had not ended when it was told.
        exit_code: its own.
    """

    outcomes: list[Outcome]
    running: int
    exit_code: int | None


async def stop_amid(
    server: ServerProcess, messages: Sequence[Any], longest: int, count: int
) -> Stopped:
    """Ask for ``count`` answers at once, for which there is room, and stop the server amid them;
    ask again if they were faster.
    """
    async with httpx.AsyncClient(base_url=server.address()) as http:
        client, outcomes = Client(http, "demo", messages), list[Outcome]()
        deadline = time.monotonic() + 60
        while True:
            asking = [
                asyncio.ensure_future(client.ask(Order(number % len(messages), longest)))
                for number in range(count)
            ]
            while not all(task.done() for task in asking):
                seen = await asyncio.to_thread(server.metrics)
                if seen["num_requests_running"] + seen["num_requests_waiting"] >= count:
                    break
            running = sum(not task.done() for task in asking)
            if running or time.monotonic() > deadline:
                break
            outcomes += await asyncio.gather(*asking)
        server.terminate()
        outcomes += await asyncio.gather(*asking)
    return Stopped(outcomes, running, await asyncio.to_thread(server.exit_code))


def measure(
    server: ServerProcess,
    asked: Sequence[Spoken],
    references: Sequence[Reference],
    *,
    clients: int,
    seconds: float,
    cancel: float,
    longest: int,
    last: int,
) -> dict[str, Any]:
    """Load a server that has started, stop it amid ``last`` answers, and say what was seen."""
    address, messages = server.address(), [each.messages for each in asked]
    began = time.perf_counter()
    with Watch(server, max(0.25, seconds / _SAMPLES)) as watch:
        outcomes = asyncio.run(load(address, messages, clients, seconds, cancel, longest))
    took = time.perf_counter() - began
    after = server.settled()
    stopped = asyncio.run(stop_amid(server, messages, longest, last))
    judged = summary.judge(outcomes, references)
    drained = summary.judge(stopped.outcomes, references)
    record = {
        "seconds": took,
        "answers": judged.to_dict(),
        "traffic": summary.traffic(outcomes, took),
        "latency": summary.latencies(outcomes),
        "speculation": summary.speculation(outcomes),
        "memory": summary.memory(watch.samples),
        "server": {
            "pages_most": watch.pages,
            "pages_after": after["kv_cache_usage_perc"],
            "preemptions": after["num_preemptions_total"],
            "generated_tokens": after["generation_tokens_total"],
            "tracebacks": server.tracebacks,
            "log": server.log[-5:],
        },
        "drain": {
            "asked": len(stopped.outcomes),
            "running": stopped.running,
            "whole": sum(each.end == "whole" for each in stopped.outcomes),
            "wrong": len(drained.wrong),
            "exit_code": stopped.exit_code,
        },
        "failures": [each.detail for each in outcomes if each.end == "failed"][:5],
    }
    return {**record, "gates": summary.gates(record)}


def report(console: Console, record: dict[str, Any]) -> None:
    """The main figures, and every gate."""
    traffic, latency, answers = record["traffic"], record["latency"], record["answers"]
    console.print(
        f"{traffic['requests']} requests in {record['seconds']:.0f} s: {traffic['ends']}, "
        f"{traffic['refusals']} refusals; {traffic['tokens_per_second']:.0f} tokens/s, "
        f"{traffic['answered_per_second']:.1f} answers/s"
    )
    console.print(
        f"compared {answers['compared_whole']} answers and {answers['compared_beginnings']} "
        f"beginnings: {answers['wrong']} wrong, {answers['ties']} ties of the verifier's own"
    )
    for name in ("first_token_ms", "inter_token_ms", "end_to_end_ms"):
        console.print(f"{name}: {latency[name]}")
    if record["memory"] is not None:
        console.print(
            f"memory: {record['memory']['median_mib']:.0f} MiB, "
            f"{record['memory']['slope_kib_per_minute']:+.0f} KiB a minute"
        )
    for name, kept in record["gates"].items():
        console.print(f"{'ok  ' if kept else 'FAIL'} {name}", markup=False)
    for line in [*answers["wrong_examples"], *record["failures"], *record["server"]["log"]]:
        console.print(line, markup=False)


def serve_load(
    clients: Annotated[int, typer.Option(min=1, help="That ask at once.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="For which they begin requests.")] = 1200,
    cancel: Annotated[float, typer.Option(min=0, max=1, help="Share that hangs up.")] = 0.25,
    distinct: Annotated[int, typer.Option(min=1, help="Different prompts.")] = 96,
    longest: Annotated[int, typer.Option(min=8, help="Tokens of the longest answer.")] = 128,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="That may wait.")] = _HEADROOM,
    kv_cache_gib: Annotated[
        float, typer.Option(help="For keys; little, so that pages are used again and again.")
    ] = 0.125,
    drafter: Annotated[str | None, typer.Option(help="As for specdec serve.")] = None,
    seed: Annotated[int, typer.Option(help="Of the prompts.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Load a server and see whether it keeps its promises."""
    ran = machine()
    limits = {"max_batch": max_batch, "max_waiting": max_waiting, "kv_cache_gib": kv_cache_gib}
    with ServerProcess(options(limits, drafter)) as server:
        # One thread: the server starts meanwhile.
        torch.set_num_threads(1)
        model, processor = suite.load_verifier(suite.MODEL, torch.float32)
        asked = prompts(distinct, seed)
        references = [reference(model, processor, each.asked, longest, TIE) for each in asked]
        for each in references:
            _ = each.tokens  # now, not while the server is measured
        given: dict[str, Any] = {"clients": clients, "cancel": cancel, "longest": longest}
        last = min(_LAST, max_batch)
        record = measure(server, asked, references, seconds=seconds, last=last, **given)
    drawn = {"distinct": distinct, "seed": seed}
    result = {"machine": ran, **given, **drawn, **limits, "drafter": drafter, **record}
    report(Console(), result)
    if out is not None:
        write(out, result)
    if not all(record["gates"].values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(serve_load)
