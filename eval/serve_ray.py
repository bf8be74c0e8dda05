"""What routing by image is worth, and what replicas that end cost: `python -m
specdec.eval.serve_ray`.

Two replicas of the embedded model are served on this machine. Questions about several images are
asked one after another, and the share of their prompts that was in a cache is compared with that of
as many about others where the less loaded of two random replicas is asked. Between the two, under
load: one image is asked about by many at once, a replica is killed, and all are replaced.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import httpx
import ray
import torch
import typer
from fastapi import FastAPI
from ray import serve
from rich.console import Console

from specdec import AsyncEngine
from specdec.demo import load
from specdec.engine import Limits
from specdec.eval.record import machine, write
from specdec.eval.serve_ray_load import Load, bodies, by_replica, hit_rate
from specdec.serving.app import create_app
from specdec.serving.ray_app import NAME, Scale, application, deploy
from specdec.serving.settings import Settings

# Any, below: JSON values, and what Ray gives.

MODEL = "demo"
_BATCH, _WAITING = 4, 64
_PATIENCE = 240.0  # seconds for a replica to start


def build(settings: Settings) -> FastAPI:
    """A replica's application: the embedded model in fp32, chains of 4, one thread."""
    torch.set_num_threads(1)
    model, processor, drafter = load()
    engine = AsyncEngine(model, drafter, tree=4, limits=Limits(max_batch=_BATCH))
    return create_app(engine, processor, settings)


def start(port: int, *, affine: bool = True, settings: Settings | None = None) -> None:
    """Serve two replicas, or replace those that there are."""
    scale = Scale(replicas=2, requests=_BATCH + _WAITING, busy=_BATCH, affine=affine, cpus=0.5)
    deploy(application(build, settings or Settings(model=MODEL), scale), "127.0.0.1", port)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def replicas() -> dict[str, int]:
    """Process ids of the replicas that there are, by name."""
    found: dict[str, int] = {}
    for told in ray.util.list_named_actors(all_namespaces=True):
        if told["name"].startswith(f"SERVE_REPLICA::{NAME}#replica#"):
            try:
                actor = ray.get_actor(told["name"], namespace=told["namespace"])
                pid: Any = actor.__ray_call__.remote(lambda _: os.getpid())
                found[told["name"].rpartition("#")[2]] = ray.get(pid, timeout=30)
            except (ray.exceptions.RayError, ValueError):
                continue  # on its way out, or not there yet
    return found


async def overflow(client: httpx.AsyncClient, hot: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Ask all of these, about one image, at once; how many answers each replica gave."""
    before = by_replica((await client.get("/metrics")).text)
    answers = await asyncio.gather(
        *(client.post("/v1/chat/completions", json=body) for body in hot)
    )
    assert all(answer.status_code == 200 for answer in answers), [a.text for a in answers]
    after = by_replica((await client.get("/metrics")).text)
    return {name: count - before.get(name, 0) for name, count in after.items()}


async def kill_one(client: httpx.AsyncClient, load: Load) -> dict[str, Any]:
    """Kill a replica while `load` runs, and wait for the next."""
    before = await asyncio.to_thread(replicas)
    await load.answered(8)
    began = time.monotonic()
    os.kill(min(before.values()), signal.SIGKILL)
    while len(await _there(client) - set(before)) < 1:
        if time.monotonic() - began > _PATIENCE:
            raise TimeoutError("no replica came up in the place of the one that was killed")
        await asyncio.sleep(0.5)
    seconds = time.monotonic() - began
    await load.answered(8)
    return {"seconds_to_new_replica": seconds}


async def _there(client: httpx.AsyncClient) -> set[str]:
    """Replicas that take requests."""
    return set(by_replica((await client.get("/metrics")).text))


async def measure(port: int, images: int, rounds: int, settings: Settings) -> dict[str, Any]:
    """All of it; the cluster runs, and nobody has asked it anything yet."""
    asked = bodies(images, rounds)
    url = f"http://127.0.0.1:{port}"
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE, limits=limits) as client:
        affine = await hit_rate(client, asked)
        hot = await overflow(client, bodies(1, 4 * _BATCH))
        async with Load(client, asked, 6) as load:
            killed = await kill_one(client, load)
        killed |= load.outcome()
        async with Load(client, asked, 6) as load:
            await load.answered(8)
            began = time.monotonic()
            random = partial(start, affine=False, settings=settings)
            await asyncio.to_thread(random, port)
            seconds = time.monotonic() - began
            await load.answered(8)
        rolled = {"seconds": seconds} | load.outcome()
        # Nobody has the pages of other images than those above.
        unknown = bodies(images, rounds, skip=images)
        return {
            "cached_share": {"affine": affine, "random": await hit_rate(client, unknown)},
            "one_hot_image": sorted(hot.values(), reverse=True),
            "killed_under_load": killed,
            "rolling_restart_under_load": rolled,
        }


def main(
    images: Annotated[int, typer.Option(min=2, help="Different images.")] = 8,
    rounds: Annotated[int, typer.Option(min=2, help="Questions about each.")] = 6,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure two replicas of the embedded model."""
    console = Console()
    told = machine()
    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        began = time.monotonic()
        start(port)
        up = time.monotonic() - began
        figures = asyncio.run(measure(port, images, rounds, Settings(model=MODEL)))
    finally:
        serve.shutdown()
        ray.shutdown()
    record = {"machine": told, "ray": ray.__version__, "model": MODEL, "replicas": 2}
    record |= {"images": images, "questions_per_image": rounds, "seconds_to_start": up} | figures
    console.print(record)
    if out is not None:
        write(out, record)


if __name__ == "__main__":
    typer.run(main)
