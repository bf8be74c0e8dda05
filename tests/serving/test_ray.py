"""The server on Ray: two replicas of the embedded model, from start to a replica's sudden end.

`python -m specdec.eval.serve_ray` measures the same and more, a rolling restart included.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import specdec

pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
pytestmark = [
    # Ray leaves files and sockets of its own to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Ray 2.60 announces its next release.
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray.*"),
]

KEY = "a key"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Its address."""
    import ray

    from specdec.eval import serve_ray
    from specdec.serving.settings import Settings

    with pytest.MonkeyPatch.context() as patch:
        # Replicas find `specdec` where this process does.
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([str(Path(specdec.__file__).parents[1]), *sys.path])
        )
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        port = serve_ray.free_port()
        serve_ray.start(port, settings=Settings(model="demo", api_keys=(KEY,), drain_seconds=120))
        yield f"http://127.0.0.1:{port}"
    finally:
        ray.shutdown()


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server, timeout=240, headers=headers) as client:
        yield client


def _until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def test_paths(server: str, client: httpx.Client) -> None:
    """Catches paths that do not get through, and keys that the ingress does not ask for."""
    assert client.get("/health").status_code == client.get("/ready").status_code == 200
    assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert httpx.get(f"{server}/v1/models", timeout=240).status_code == 401
    wrong = client.post(CHAT, json={"model": "other", "messages": []})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["type"] == "invalid_request_error"


def test_affinity(client: httpx.Client) -> None:
    """Catches questions about one image that go to a replica without its pages: every one but the
    first finds them. With two random replicas, all six would do so once in 64 runs.
    """
    from specdec.eval.serve_ray_load import bodies, by_replica

    seen, cached = set[str](), []
    for body in bodies(3, 3):
        answer = client.post(CHAT, json=body).json()
        content = body["messages"][0]["content"]
        if (url := content[0]["image_url"]["url"]) in seen:
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        seen.add(url)
    assert len(cached) == 6
    assert min(cached) > 16, "less than an image"
    assert sum(by_replica(client.get("/metrics").text).values()) == 9


def test_stream_and_hanging_up(client: httpx.Client) -> None:
    """Catches a stream that arrives as a whole, and a replica that goes on for nobody."""
    from specdec.eval.serve_ray_load import bodies

    (body,) = bodies(1, 1)
    body |= {"stream": True, "max_tokens": 400, "logit_bias": {"2": -100}}
    with client.stream("POST", CHAT, json=body) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first, second = (json.loads(next(lines).removeprefix("data: ")) for _ in range(2))
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert second["choices"][0]["delta"]["content"]
    ended = 'specdec:request_success_total{finished_reason="cancelled"'
    _until(lambda: ended in client.get("/metrics").text)


def test_replica_is_killed(server: str) -> None:
    """Catches requests that hang or fail with a replica though others are there, and errors that
    are not told.
    """
    from specdec.eval import serve_ray
    from specdec.eval.serve_ray_load import Load, bodies

    async def main() -> dict[str, int]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=server, timeout=240, headers=headers) as client:
            async with Load(client, bodies(4, 2), 4) as load:
                there = await asyncio.to_thread(serve_ray.replicas)
                await load.answered(4)
                os.kill(min(there.values()), signal.SIGKILL)
                await load.answered(8)
            ended: dict[str, int] = load.outcome()["ended"]
            return ended

    ended = asyncio.run(main())
    # Of four requests at once, two were streams, whose answers may have begun.
    cut = ended.pop("error event, no_replica", 0)
    assert cut <= 2
    assert set(ended) == {"ok"}


def test_log(client: httpx.Client) -> None:
    """Catches requests that no log tells of, and ids that the client has and no log: ours, and that
    which Serve adds.
    """
    import ray

    ids = client.post(CHAT, json={}).headers.get_list("x-request-id")
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"

    def told(part: str) -> bool:
        lines = [line for file in folder.glob(f"*{part}*.log") for line in file.open()]
        return any(f"{CHAT} 400" in line and all(i in line for i in ids) for line in lines)

    assert len(ids) == 2
    _until(lambda: told("ingress") and told("specdec_replica"), 30)


def test_what_cannot_be_served(server: str) -> None:
    """Catches an address that is told although nobody listens there, and replicas that are waited
    for though no node ever has room for one.
    """
    from specdec.eval import serve_ray
    from specdec.serving.ray_app import Scale, lacking

    with pytest.raises(ValueError, match=rf"listens on {server[7:]}, not on 127.0.0.1:1;"):
        serve_ray.start(1)
    assert lacking(Scale(replicas=20, cpus=0.1)) is None
    for scale in (Scale(replicas=3), Scale(cpus=2.5), Scale(gpus=0.5)):
        assert "the cluster has (2 cores, 0 GPUs)" in str(lacking(scale))


def test_end(server: str) -> None:
    """Catches an end that cuts answers off though there is time for them. The last test: afterwards
    nobody answers.
    """
    from specdec.eval.serve_ray_load import bodies
    from specdec.serving.ray_app import end

    (body,) = bodies(1, 1)
    body |= {"stream": True, "max_tokens": 400, "logit_bias": {"2": -100}}
    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        httpx.Client(base_url=server, timeout=240, headers=headers) as client,
        client.stream("POST", CHAT, json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        first = [next(lines) for _ in range(2)]
        with ThreadPoolExecutor() as pool:
            ending = pool.submit(end, 120)
            *rest, last, done = lines
            ending.result(240)
    assert (len(first) + len(rest) > 20, done) == (True, "data: [DONE]")
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server}/health")
