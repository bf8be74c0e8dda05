"""`specdec serve --ray`: several replicas of the server, on this machine or on a cluster."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from specdec.commands.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from specdec.serving.ray_app import Scale
    from specdec.serving.settings import Settings

RayOption = Annotated[
    bool, typer.Option("--ray", help="Serve with replicas, by Ray Serve.", show_default=False)
]
ReplicasOption = Annotated[int | None, typer.Option(min=1, help="With --ray: replicas.")]
MinReplicasOption = Annotated[
    int | None, typer.Option(min=1, help="With --ray: replicas without load.")
]
MaxReplicasOption = Annotated[
    int | None, typer.Option(min=1, help="With --ray: replicas under load.")
]
OverflowOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --ray: requests of the replica that holds an image after which others help; "
        "default: --max-batch.",
    ),
]
ReplicaCpusOption = Annotated[
    float | None, typer.Option(min=0.0, help="With --ray: cores of a replica; default: 1.")
]
ReplicaGpusOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="With --ray: GPUs of a replica; default: 1, if there are any."),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="With --ray: a cluster to deploy to, and leave it running; `auto` is the one of this "
        "machine. Default: start one here that ends with the command.",
        show_default=False,
    ),
]


class RayOptions(NamedTuple):
    """What the command was given of these; ``None``: nothing."""

    replicas: int | None
    min_replicas: int | None
    max_replicas: int | None
    overflow_at: int | None
    replica_cpus: float | None
    replica_gpus: float | None
    ray_address: str | None

    def check(self, ray: bool, port: int) -> None:
        """Whether they go together.

        Raises:
            UserError: they do not.
        """
        given = [name for name, value in self._asdict().items() if value is not None]
        least, most = self.min_replicas, self.max_replicas
        if not ray:
            if given:
                raise UserError(f"--{given[0].replace('_', '-')} needs --ray")
        elif self.replicas is not None and (least or most) is not None:
            raise UserError("--replicas fixes how many; leave it or --min/--max-replicas out")
        elif least is not None and most is None:
            raise UserError("--min-replicas needs --max-replicas")
        elif most is not None and most < (least or 1):
            raise UserError(f"--max-replicas {most} is less than --min-replicas {least or 1}")
        elif port == 0:
            raise UserError("--port 0 does not go with --ray; name the port")


def run_on_ray(
    build: Callable[[Settings], FastAPI],
    settings: Settings,
    limits: dict[str, int],
    options: RayOptions,
    address: tuple[str, int],
) -> None:
    """Deploy, and unless that was to a cluster that was there, stay until told to stop.

    Args:
        build: makes the application, in every replica; travels there.
        settings: the operator's.
        limits: of every replica's engine.
        options: how many replicas.
        address: host and port to listen on.

    Raises:
        UserError: Ray is not there, or the replicas do not start.
    """
    try:
        import ray
        from ray.exceptions import RayError

        from specdec.serving.ray_app import application, connect, deploy, end, lacking
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; --ray needs it: in specdec's checkout, "
            "pip install -e '.[ray]'"
        ) from error

    scale = _scale(options, limits)
    if options.ray_address is None:
        _check_free(*address)
    try:
        connect(options.ray_address)
        if (lack := lacking(scale)) is not None:
            if options.ray_address is None:
                raise ValueError(lack)
            note(f"{lack}; this waits until the cluster has grown")
        deploy(application(build, settings, scale), *address, address=options.ray_address)
    except (RuntimeError, ValueError, OSError, RayError) as error:
        ray.shutdown()
        raise UserError(f"Ray does not serve this: {_cause(error)}") from error
    note(f"{settings.model} at http://{address[0]}:{address[1]}/v1")
    if options.ray_address is not None:
        note("it goes on running there; `serve shutdown` ends it, the same command updates it")
        return
    _until_told()
    end(settings.drain_seconds)
    ray.shutdown()


def note(text: str) -> None:
    """A line for whoever started the server."""
    print(f"specdec serve: {text}", file=sys.stderr, flush=True)


def _scale(options: RayOptions, limits: dict[str, int]) -> Scale:
    from specdec.serving.ray_app import Scale

    cpus, gpus = options.replica_cpus, options.replica_gpus
    return Scale(
        replicas=options.replicas or options.min_replicas or 1,
        most=options.max_replicas,
        requests=limits["max_batch"] + limits["max_waiting"],
        busy=options.overflow_at or limits["max_batch"],
        cpus=1.0 if cpus is None else cpus,
        gpus=_gpus() if gpus is None else gpus,
    )


def _check_free(host: str, port: int) -> None:
    """Whether one can listen there; Ray would say so below a traceback.

    Raises:
        UserError: one cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}") from error


def _cause(error: BaseException) -> str:
    """What a message of Ray's says at its end, below what passed it on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _gpus() -> float:
    """One, where there are any. A cluster's driver may have none: then it has to be said."""
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0


def _until_told() -> None:
    """Wait for SIGINT or SIGTERM; a second one has its usual effect."""
    told = threading.Event()
    before: dict[signal.Signals, Any] = {}  # Any: what signal.signal returns

    def stop(*_: object) -> None:
        told.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    while not told.wait(1.0):
        pass
