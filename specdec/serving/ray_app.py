"""The HTTP server on Ray Serve: one ingress, and replicas that each have a model and its pages.

The ingress reads a request's body, which Ray's own proxies do not, and so can tell who holds the
pages of its image. Knows no checkpoints: whoever deploys says how a replica makes its application.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.context import _get_global_client  # nothing public tells where Serve listens
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from specdec.serving import guard
from specdec.serving.calls import Call, Head, answer
from specdec.serving.errors import ApiError
from specdec.serving.merged_metrics import merged
from specdec.serving.relay import Lost, create_relay
from specdec.serving.service import Service
from specdec.serving.settings import Settings

NAME = "specdec"  # of the application
_AT_ONCE = 4096  # calls that pass through an ingress
_QUEUED = 256  # calls that wait in one for a replica
_METRICS_SECONDS = 5.0
_ENDING_SECONDS = 5.0  # that replicas take to end when their answers have


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are, and who is asked.

    Attributes:
        replicas: of the model.
        most: replicas under load; ``None``: as many as without.
        requests: what a replica takes at once, those that wait included.
        busy: requests of a replica after which others are asked for what it has the pages of.
        affine: keep requests about one image together; otherwise the less loaded of two random
            replicas is asked, for comparison.
        cpus: that Ray sets apart for a replica.
        gpus: likewise.
        ingresses: replicas of the ingress, which compute nothing.
    """

    replicas: int = 1
    most: int | None = None
    requests: int = 288
    busy: int = 32
    affine: bool = True
    cpus: float = 1.0
    gpus: float = 0.0
    ingresses: int = 1


class Replica:
    """One model, one engine, and the application that answers with it.

    Args:
        build: makes the application, which has its :class:`Service` in ``state.service``.
    """

    # Serve awaits a constructor that is a coroutine.
    async def __init__(  # type: ignore[misc]
        self, build: Callable[[], FastAPI]
    ) -> None:
        _log()
        self._name = serve.get_replica_context().replica_id.unique_id
        self._app = await asyncio.to_thread(build)
        self._service: Service = self._app.state.service
        self._open = AsyncExitStack()
        await self._open.enter_async_context(self._app.router.lifespan_context(self._app))

    async def __del__(self) -> None:
        """Called by Serve when answers have ended, or their time has."""
        await self._open.aclose()

    async def answer(self, call: Call) -> AsyncGenerator[Head | bytes, None]:
        """See :func:`specdec.serving.calls.answer`."""
        async with aclosing(answer(self._app, call)) as parts:
            async for part in parts:
                yield part._replace(by=self._name) if isinstance(part, Head) else part

    async def metrics(self) -> tuple[str, bytes]:
        """Its name, and what it tells Prometheus."""
        return self._name, self._service.metrics.text()

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica whose engine has ended."""
        if (error := self._service.engine.stats.error) is not None:
            raise RuntimeError(f"the engine ended by {type(error).__name__}")


class Ingress:
    """Takes all requests and has replicas answer them."""

    def __init__(self, replicas: DeploymentHandle[Replica], settings: Settings) -> None:
        _log()
        self._replicas, self._settings = replicas, settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return create_relay(self._ask, self._metrics, self._settings)

    async def _ask(self, call: Call) -> AsyncGenerator[Head | bytes, None]:
        # Any: a handle has the methods of what it stands for.
        handle: Any = self._replicas.options(stream=True)
        parts = handle.answer.remote(call)
        try:
            async for part in parts:
                yield part
        except BackPressureError as error:
            raise ApiError(
                429,
                "all replicas are busy, and too many requests wait already; ask again later",
                code="queue_full",
                headers={"Retry-After": "5"},
            ) from error
        except RayTaskError:
            raise  # a bug of ours in the replica, which lives
        except (RayError, DeploymentUnavailableError) as error:
            raise Lost from error
        finally:
            parts.cancel()

    async def _metrics(self) -> bytes:
        told = self._replicas.broadcast("metrics")
        texts = await told.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        # A replica that is about to go does not keep the others' figures back.
        return merged(dict(text for text in texts if not isinstance(text, BaseException)))


def _log() -> None:
    """Write the log into this process's file of Serve's, too."""
    guard.log_to(*logging.getLogger("ray.serve").handlers)


def application(
    build: Callable[[Settings], FastAPI], settings: Settings, scale: Scale
) -> serve.Application:
    """What ``serve.run`` and ``serve deploy`` take.

    Args:
        build: called in every replica, with the settings of one that no stranger reaches. It
            travels there by pickle: a function of a module, or a `functools.partial` of one.
        settings: the operator's; the ingress holds requests to them.
        scale: how much of it.
    """
    inner = replace(settings, api_keys=(), cors_origins=(), allowed_hosts=("*",))
    replicas = _replicas(scale, settings).bind(_Build(build, inner))
    # Any: Serve's decorators lose the class.
    ingress: Any = serve.ingress()(Ingress)
    deployed: Any = serve.deployment(
        ingress,
        name="ingress",
        num_replicas=scale.ingresses,
        max_ongoing_requests=_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=2.0,
    )
    bound: serve.Application = deployed.bind(replicas, settings)
    return bound


@dataclass(frozen=True, slots=True)
class _Build:
    build: Callable[[Settings], FastAPI]
    settings: Settings

    def __call__(self) -> FastAPI:
        return self.build(self.settings)


# Any: Serve's decorator says it returns a decorator.
def _replicas(scale: Scale, settings: Settings) -> Any:
    options: dict[str, Any] = {"num_replicas": scale.replicas}  # Any: Serve's options
    if scale.most is not None:
        options = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scale.replicas,
                max_replicas=scale.most,
                # Half of what runs together well, so that a new one is there in time.
                target_ongoing_requests=max(1.0, scale.busy / 2),
            )
        }
    if scale.affine:
        # Any: its fields' types are those after validation.
        config: Any = RequestRouterConfig
        options["request_router_config"] = config(
            request_router_class="specdec.serving.ray_router.AffinityRouter",
            request_router_kwargs={"busy": scale.busy},
        )
    return serve.deployment(
        Replica,
        name="replica",
        # Above what the engine takes, which knows best how to refuse.
        max_ongoing_requests=scale.requests + 16,
        max_queued_requests=_QUEUED,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=2.0,
        max_constructor_retry_count=2,
        **options,
    )


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one here; nothing if that was done before.

    Args:
        address: as ``ray.init`` takes it; ``None``: start one.

    Raises:
        ValueError, ConnectionError, RuntimeError: there is none.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        ray.init(address=address or "local", log_to_driver=False, **own)


def lacking(scale: Scale) -> str | None:
    """Why the cluster has no room for this, whatever runs there now; ``None``: it has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(_fits(scale, node) for node in nodes) >= scale.replicas:
        return None
    wanted = f"{scale.replicas} × ({scale.cpus:g} cores, {scale.gpus:g} GPUs)"
    there = " + ".join(
        f"({node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs)" for node in nodes
    )
    return f"the replicas want {wanted}, and the cluster has {there}"


def _fits(scale: Scale, node: Mapping[str, float]) -> int:
    """How many replicas a node has room for."""
    wanted = {"CPU": scale.cpus, "GPU": scale.gpus}
    room = [int(node.get(name, 0) / share + 1e-6) for name, share in wanted.items() if share]
    return min(room, default=scale.replicas)


def deploy(app: serve.Application, host: str, port: int, address: str | None = None) -> None:
    """Run it, on a cluster that is there or on this machine alone; return when it answers.

    Where it runs already, its replicas are replaced one after another.

    Args:
        app: of :func:`application`.
        host: address on which every node's proxy listens.
        port: likewise.
        address: see :func:`connect`.

    Raises:
        ValueError: Serve runs there and listens elsewhere, which only its end can change.
        RuntimeError: replicas do not start; the last line of its message says why.
    """
    connect(address)
    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        http = running.http_config
        if (http.host, http.port) != (host, port):
            raise ValueError(
                f"Serve runs on this cluster and listens on {http.host}:{http.port}, not on "
                f"{host}:{port}; take that address, or end it with `serve shutdown`"
            )
    location = "HeadOnly" if address is None else "EveryNode"
    serve.start(proxy_location=location, http_options={"host": host, "port": port})
    try:
        serve.run(app, name=NAME, route_prefix="/")
    except RuntimeError as error:
        there = serve.status().applications[NAME].deployments.values()
        why = [each.message for each in there if each.status == "DEPLOY_FAILED"]
        raise RuntimeError("\n".join(why) or str(error)) from error


def end(drain_seconds: float) -> None:
    """End it, and all of Serve: answers that run come first, for as long as they may take.

    Args:
        drain_seconds: of its settings.
    """
    # Serve's own shutdown begins with the proxies, through which answers pass.
    serve.delete(NAME, _blocking=False)
    until = time.monotonic() + drain_seconds + _ENDING_SECONDS
    while NAME in serve.status().applications and time.monotonic() < until:
        time.sleep(0.2)
    serve.shutdown()
