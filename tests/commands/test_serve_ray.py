"""`specdec serve --ray`: what is refused before anything is started."""

from __future__ import annotations

import pickle
import socket
from functools import partial

import pytest

from specdec.commands import serve
from specdec.commands.serve_ray import RayOptions, _cause, _scale
from support.command_line import Cli, expect_error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--ray-address", "auto"], "--ray-address needs --ray"),
        (["--ray", "--replicas", "2", "--max-replicas", "3"], "--replicas fixes"),
        (["--ray", "--min-replicas", "2"], "needs --max-replicas"),
        (["--ray", "--min-replicas", "3", "--max-replicas", "2"], "--max-replicas 2 is less"),
        (["--ray", "--port", "0"], "name the port"),
    ],
)
def test_options(cli: Cli, arguments: list[str], told: str) -> None:
    """Catches options that are dropped in silence, and replicas that nobody asked for."""
    result = cli("serve", *arguments)
    assert result.exit_code != 0
    assert told in " ".join(result.output.split())


def test_what_goes_to_replicas(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches defaults of the command that do not travel to another process."""
    sent: list[partial[object]] = []
    monkeypatch.setattr(serve, "run_on_ray", lambda build, *others: sent.append(build))
    assert cli("serve", "--ray").exit_code == 0
    (build,) = sent
    assert build.func is serve.build_app
    assert pickle.dumps(build)  # as Ray sends it to its own processes


@pytest.mark.parametrize("given", [["--ray-address", "nonsense"], []])
def test_mistakes_are_told_in_a_line(cli: Cli, given: list[str]) -> None:
    """Catches tracebacks of Ray's: an address that is none, a port that somebody else has."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = "Invalid address format: nonsense" if given else f"127.0.0.1:{port}: Address already"
        expect_error(cli("serve", "--ray", "--port", str(port), *given), said)


def test_what_ray_says_last() -> None:
    """Catches a traceback as an error message, and a cause that is lost with it."""
    told = RuntimeError("failed:\nTraceback\n  a line\nUserError: nowhere does not exist\n\n")
    assert _cause(told) == "UserError: nowhere does not exist"
    assert _cause(RuntimeError()) == "RuntimeError"


def test_scale() -> None:
    """Catches replicas that refuse what their engines would take, and a minimum that is lost."""
    limits = {"max_batch": 8, "max_waiting": 20}
    nothing = RayOptions(*[None] * 7)
    scale = _scale(nothing._replace(replica_gpus=0.5), limits)
    assert (scale.replicas, scale.most, scale.requests, scale.busy) == (1, None, 28, 8)
    assert (scale.cpus, scale.gpus) == (1.0, 0.5)
    wanted = nothing._replace(min_replicas=2, max_replicas=5, overflow_at=3, replica_cpus=0.0)
    scale = _scale(wanted, limits)
    assert (scale.replicas, scale.most, scale.busy, scale.cpus) == (2, 5, 3, 0.0)
