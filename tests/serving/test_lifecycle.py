"""How a server ends."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from typing import Any

import httpx
import pytest

from specdec.demo import Demo
from support.servers import PATIENCE, running, until

CHAT = "/v1/chat/completions"


def endless(demo: Demo, tokens: int) -> dict[str, Any]:
    """A streamed request whose answer does not end before so many tokens."""
    ends = demo.model.generation_config.eos_token_id
    never = dict.fromkeys(map(str, [ends] if isinstance(ends, int) else ends), -100)
    messages = [{"role": "user", "content": "Ravioli"}]
    how = {"stream": True, "max_tokens": tokens, "logit_bias": never}
    return {"model": "demo", "messages": messages} | how


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_a_signal_lets_answers_end(demo: Demo) -> None:
    """Would catch a command that does not start, a stream that curl sees only at its end, an answer
    that SIGTERM cuts off, a server that goes on taking requests, and one that does not exit with 0.
    """
    command = [sys.executable, "-m", "specdec.cli", "serve", "--port", "0", "--tree", "4"]
    command += ["--drain-seconds", str(PATIENCE)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "/v1" in line)
            url = line.partition(" at ")[2].partition("/v1")[0]
            body = json.dumps(endless(demo, 120))
            curl = ["curl", "-sN", url + CHAT, "-H", "Content-Type: application/json", "-d", body]
            with subprocess.Popen(curl, stdout=subprocess.PIPE, text=True) as asking:
                assert asking.stdout is not None
                first = [asking.stdout.readline() for _ in range(3)]
                server.send_signal(signal.SIGTERM)
                with httpx.Client(base_url=url, timeout=PATIENCE) as client:
                    until(lambda: client.get("/ready").status_code == 503)
                    refused = client.post(CHAT, json=endless(demo, 1))
                rest = asking.stdout.read()
            assert server.wait(PATIENCE) == 0
            log = server.stderr.read()
        finally:
            server.kill()
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "draining"
    assert first[0].startswith('data: {"id":"chatcmpl-')
    *_, last, done = [line for line in rest.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert done == "data: [DONE]"
    assert "completion=120" in log
    assert "Ravioli" not in log
    assert "Traceback" not in log


def test_what_takes_too_long_is_cut_off(demo: Demo, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a server that never ends, a reader who is not told why the stream does, and a log
    that has it as answered like others.
    """
    caplog.set_level(logging.INFO, "specdec.serving")
    with running(demo, drain_seconds=0.0) as there:
        with httpx.stream(
            "POST", there.url + CHAT, json=endless(demo, 900), timeout=PATIENCE
        ) as response:
            lines = response.iter_lines()
            next(lines)
            there.server.stop()
            *_, last, done = [line for line in lines if line]
        error = json.loads(last.removeprefix("data: "))["error"]
        assert error["code"] == "draining"
        assert "the answer was cut off" in error["message"]
        assert done == "data: [DONE]"
    assert [line for line in caplog.messages if line.endswith(" cut_off=draining")]


def test_a_second_signal_cuts_off_what_runs(demo: Demo) -> None:
    """Would catch a signal that only the first one's end would heed."""
    with (
        running(demo, drain_seconds=PATIENCE) as there,
        httpx.stream(
            "POST", there.url + CHAT, json=endless(demo, 900), timeout=PATIENCE
        ) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        there.server.stop()
        until(lambda: there.engine.stats.draining)
        there.server.stop()
        *_, last, done = [line for line in lines if line]
        until(lambda: there.server.should_exit)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
    assert done == "data: [DONE]"


def test_a_signal_ends_what_cannot_drain(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a bug on the way out that leaves a server which takes nothing and never ends."""

    def breaks(timeout: float | None = None) -> bool:
        raise RuntimeError("a bug")

    with running(demo) as there:
        monkeypatch.setattr(there.engine.threaded, "drain", breaks)
        there.server.stop()
        until(lambda: there.server.should_exit)


def test_an_answer_ends_when_its_time_is_over(demo: Demo) -> None:
    """Would catch a limit of time that nobody keeps, and an end without a reason."""
    with running(demo, request_seconds=0.2) as there:
        body = endless(demo, 900) | {"stream": False}
        answer = httpx.post(there.url + CHAT, json=body, timeout=PATIENCE).json()
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout")
    assert answer["usage"]["completion_tokens"] < 900
