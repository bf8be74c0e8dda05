"""`specdec serve`: a checkpoint on disk behind OpenAI's HTTP interface."""

from __future__ import annotations

import ipaddress
import logging
import os
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec.commands.asking import Loaded, load
from specdec.commands.checkpoint import DEMO, stored_config
from specdec.commands.errors import UserError, reason
from specdec.commands.options import (
    AcceptanceOption,
    DrafterOption,
    ModelOption,
    PixelsOption,
    Precision,
    PrecisionOption,
    TreeOption,
    check_acceptance,
    parse_tree,
)
from specdec.commands.serve_ray import (
    MaxReplicasOption,
    MinReplicasOption,
    OverflowOption,
    RayAddressOption,
    RayOption,
    RayOptions,
    ReplicaCpusOption,
    ReplicaGpusOption,
    ReplicasOption,
    note,
    run_on_ray,
)
from specdec.commands.serve_start import bound, check_origins, not_bound, report

if TYPE_CHECKING:
    from socket import socket

    from fastapi import FastAPI

    from specdec.serving.images import ImageLimits, ImageReader
    from specdec.serving.settings import Settings

_KEYS = "SPECDEC_API_KEY"
_OWN_NAMES = ("localhost", "127.0.0.1", "[::1]")


def serve(
    model: ModelOption = "demo",
    drafter: DrafterOption = None,
    tree: TreeOption = "auto",
    acceptance: AcceptanceOption = "lossless",
    dtype: PrecisionOption = Precision.AUTO,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="The model's name for clients; by default that of its folder."),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar=_KEYS,
            help="Key that requests must show; may be given several times.",
            show_default=False,
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Requests that run at once.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 256,
    kv_cache_gib: Annotated[
        float | None, typer.Option(min=0.0, help="Memory for keys and values, in GiB.")
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt; default: the model's context.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    image_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A host that images are fetched from, such as images.example; may be given "
            "several times. By default images come within requests only."
        ),
    ] = None,
    max_pixels: PixelsOption = 50_000_000,
    max_images: Annotated[int, typer.Option(min=0, help="Images of a request.")] = 8,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = 32,
    request_seconds: Annotated[
        float, typer.Option(min=1.0, help="Time after which an answer is cut off.")
    ] = 600.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for running answers when told to stop.")
    ] = 30.0,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="A web page's origin that may ask; may be given several times."),
    ] = None,
    ray: RayOption = False,
    replicas: ReplicasOption = None,
    min_replicas: MinReplicasOption = None,
    max_replicas: MaxReplicasOption = None,
    overflow_at: OverflowOption = None,
    replica_cpus: ReplicaCpusOption = None,
    replica_gpus: ReplicaGpusOption = None,
    ray_address: RayAddressOption = None,
) -> None:
    """Serve a checkpoint to OpenAI's clients, with text and images, streamed or not.

    Listens on this machine only, unless told otherwise. SIGTERM lets running answers end. Under
    torchrun its processes share the model, and the first of them serves.
    """
    wanted = RayOptions(
        replicas, min_replicas, max_replicas, overflow_at, replica_cpus, replica_gpus, ray_address
    )
    wanted.check(ray, port)
    _check_installed()
    check_origins(cors_origin or ())
    if kv_cache_gib is not None and kv_cache_gib <= 0:
        raise UserError("--kv-cache-gib: expected more than 0")
    keys = tuple(api_key or ())
    if not all(key.strip() for key in keys):
        raise UserError("--api-key: an empty key keeps nobody out")
    if not keys and _KEYS in os.environ:
        raise UserError(f"{_KEYS} is set and holds no key, which would let everybody in; unset it")
    if not keys and not _is_own(host):
        note(f"warning: {host} may be reached by others, and there is no --api-key")
    check_acceptance(acceptance)
    if not ray:  # before seconds go into imports
        if model != DEMO:
            stored_config(Path(model))
        with bound(host, port):
            pass
    from specdec.serving.images import ImageLimits, ImageReader
    from specdec.serving.settings import Settings

    settings = Settings(
        model=name or (model if model == DEMO else Path(model).resolve().name),
        api_keys=keys,
        max_body_bytes=max_body_mib << 20,
        max_images=max_images,
        max_prompt_tokens=max_prompt_tokens,
        max_tokens=max_tokens,
        request_seconds=request_seconds,
        drain_seconds=drain_seconds,
        cors_origins=tuple(cors_origin or ()),
        # A page of a stranger's may have its own name lead here; that name is in the Host header.
        allowed_hosts=(*_OWN_NAMES, host) if not keys and _is_own(host) else ("*",),
    )
    engine = {
        "tree": parse_tree(tree),
        "acceptance": acceptance,
        "kv_cache_bytes": None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
    }
    limits = {"max_batch": max_batch, "max_waiting": max_waiting}
    try:
        images = ImageReader(
            ImageLimits(max_pixels=max_pixels, allowed_hosts=frozenset(image_host or ()))
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if ray:
        build = partial(build_app, model, drafter, dtype, images.limits, engine, limits)
        run_on_ray(build, settings, limits, wanted, (host, port))
        return
    with bound(host, port) as sockets:
        if sockets:
            note(f"loading {settings.model}")
        loaded = load(model, drafter, dtype, with_images=False)
        if _is_follower():
            from specdec.serving import follow

            follow(loaded.model)
            return
        app = _app(loaded, settings, images, engine, limits)
        service = app.state.service
        report(service.engine.threaded, service.settings, tree, kv_cache_gib)
        try:
            _run(app, (host, port), sockets)
        except OSError as error:  # another held the port, too, and was the first to listen
            raise not_bound(host, port, error) from error


def _is_follower() -> bool:
    """Whether this is one of torchrun's processes, and not the one that serves."""
    from torch import distributed

    spread = distributed.is_available() and distributed.is_initialized()
    return spread and distributed.get_rank() > 0


def build_app(
    model: str,
    drafter: str | None,
    dtype: Precision,
    images: ImageLimits,
    how: dict[str, Any],
    limits: dict[str, int],
    settings: Settings,
) -> FastAPI:
    """Load a checkpoint and make an application of it, in a process that is to answer.

    Args:
        model, drafter, dtype: of the command.
        images: which images are read.
        how: further arguments of the engine. Any: theirs.
        limits: fields of its :class:`Limits`.
        settings: the operator's; the drafter's name is filled in here.

    Raises:
        UserError: something of it is not there, or does not go together.
    """
    from specdec.serving.images import ImageReader

    loaded = load(model, drafter, dtype, with_images=False)
    return _app(loaded, settings, ImageReader(images), how, limits)


def _app(
    loaded: Loaded,
    settings: Settings,
    images: ImageReader,
    how: dict[str, Any],
    limits: dict[str, int],
) -> FastAPI:
    from dataclasses import replace

    from specdec import AsyncEngine
    from specdec.engine import Limits
    from specdec.serving.app import create_app

    try:
        engine = AsyncEngine(loaded.model, loaded.drafter, limits=Limits(**limits), **how)
    except ValueError as error:
        raise UserError(reason(error)) from error
    settings = replace(settings, drafter=loaded.drafter.name if loaded.drafter else None)
    return create_app(engine, loaded.processor, settings, images=images)


def _run(app: FastAPI, address: tuple[str, int], sockets: list[socket]) -> None:
    """Serve until a signal, on these sockets of that address."""
    from specdec.serving.lifecycle import Server

    name = app.state.service.settings.model

    def started(url: str) -> None:
        note(f"{name} at {url}/v1; end it with Ctrl-C")

    log = logging.getLogger("specdec.serving")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    Server(app, *address, on_start=started).run(sockets)


def _check_installed() -> None:
    try:
        for package in ("fastapi", "httpcore", "prometheus_client", "uvicorn"):
            import_module(package)
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; a server needs it: in specdec's checkout, "
            "pip install -e '.[serve]'"
        ) from error


def _is_own(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
