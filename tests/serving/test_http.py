"""What a server does with requests that no well-behaved client sends."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from specdec.demo import Demo
from specdec.engine import Limits
from support.servers import PATIENCE, Running, running, until

CHAT = "/v1/chat/completions"
SECRET = "Ravioli"  # what a user says, and nobody else does


@pytest.fixture(scope="module")
def server(demo: Demo) -> Iterator[Running]:
    """Runs one request at a time, lets one wait, and reads little."""
    limits = Limits(max_batch=1, max_waiting=1)
    with running(demo, limits=limits, max_body_bytes=20_000, max_images=1) as there:
        yield there


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    """Nobody else asks meanwhile."""
    until(lambda: server.engine.stats.pages_taken == 0)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as there:
        yield there


@pytest.fixture(scope="module")
def endless(demo: Demo) -> dict[str, Any]:
    """A request whose answer takes seconds: it may not end by itself."""
    ends = demo.model.generation_config.eos_token_id
    tokens = [ends] if isinstance(ends, int) else ends
    return hello(max_tokens=900, logit_bias=dict.fromkeys(map(str, tokens), -100))


def hello(**fields: Any) -> dict[str, Any]:
    """A small request."""
    messages = [{"role": "user", "content": SECRET}]
    return {"model": "demo", "messages": messages, "max_tokens": 2} | fields


def message(**fields: Any) -> dict[str, Any]:
    """A request of one turn."""
    return {"messages": [{"role": "user", "content": "a"} | fields]}


def image(url: str) -> dict[str, Any]:
    return message(content=[{"type": "image_url", "image_url": {"url": url}}])


REFUSED = {
    "not supported": ({"response_format": {"type": "json_object"}}, "response_format"),
    "required tool": ({"tool_choice": "required"}, "tool_choice"),
    "unknown": ({"length_penalty": 1.2}, "length_penalty"),
    "one call at a time": (
        {
            "parallel_tool_calls": False,
            "tools": [{"type": "function", "function": {"name": "a"}}],
        },
        "parallel_tool_calls",
    ),
    "too many stops": ({"stop": ["a"] * 17}, "stop"),
    "out of range": ({"temperature": 3}, "temperature"),
    "wrong type": ({"messages": "hello"}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "no content": (message(content=None), "messages.0.content"),
    "no text": (message(content=[{"type": "text"}]), "messages.0.content.0.text"),
    "unknown part": (message(content=[{"type": "audio"}]), "messages.0.content.0.type"),
    "empty stop": ({"stop": ["a", ""]}, "stop"),
    "no token": ({"logit_bias": {"99999": 1}}, "logit_bias"),
    "too many answers": ({"n": 17}, "n"),
    "too many tokens": ({"max_tokens": 9999}, "max_tokens"),
    "too long": (message(content="row " * 2000), "messages"),
    "no image": (message(content="<image>"), "messages"),
    "remote image": (image("http://127.0.0.1/a.png"), "messages.0.content.0.image_url"),
    "no such file": (image("file:///etc/passwd"), "messages.0.content.0.image_url"),
    "image of an assistant": (
        image("data:,") | {"messages": [image("data:,")["messages"][0] | {"role": "assistant"}]},
        "messages.0.content.0",
    ),
    "broken image": (image("data:image/png;base64,AAAA"), "messages.0.content.0.image_url"),
    "half a character": (message(content="\ud800"), "messages"),
    "half a character in a key": ({"\ud800": 1}, None),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "stream options alone": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "unknown in a message": (message(function_call={"name": "a"}), "messages.0.function_call"),
    "unknown in a part": (
        message(content=[{"type": "text", "text": "a", "input_audio": {}}]),
        "messages.0.content.0.input_audio",
    ),
    "unknown in an image": (
        message(content=[{"type": "image_url", "image_url": {"url": "data:,", "foo": 1}}]),
        "messages.0.content.0.image_url.foo",
    ),
    "unknown in a tool": (
        {"tools": [{"type": "function", "function": {"name": "a", "foo": 1}}]},
        "tools.0.function.foo",
    ),
    "unknown of ours": ({"specdec": {"foo": 1}}, "specdec.foo"),
    "unknown of a stream": (
        {"stream": True, "stream_options": {"foo": 1}},
        "stream_options.foo",
    ),
    "usage all the time": (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    "an image in a text part": (
        message(content=[{"type": "text", "text": "a", "image_url": {"url": "data:,"}}]),
        "messages.0.content.0.image_url",
    ),
    "looser": ({"specdec": {"epsilon": 0.1}}, "specdec.epsilon"),
    "higher priority": ({"priority": 1}, "priority"),
}


@pytest.mark.parametrize(("fields", "param"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    client: httpx.Client, fields: dict[str, Any], param: str | None
) -> None:
    """Would catch a field that is dropped in silence, an error of another shape, and a crash."""
    # As httpx would write it, lone surrogates could not be sent.
    body = json.dumps(hello(**fields))
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stop": ["a"] * 17}, "stop: List should have at most 16 items"),
        (message(content="\ud800"), "the text has half a character"),
        (image("/etc/passwd"), "this is no URL and is not read"),
    ],
)
def test_what_is_wrong_is_told_in_words_of_a_client(
    client: httpx.Client, fields: dict[str, Any], said: str
) -> None:
    """Of several types the wrong one was told of, or a library told of its own."""
    headers = {"Content-Type": "application/json"}
    response = client.post(CHAT, content=json.dumps(hello(**fields)), headers=headers)
    assert said in response.json()["error"]["message"]


def test_who_looks_for_the_head_only_finds_it(client: httpx.Client) -> None:
    """Probes of load balancers ask like that, and were told that the method is not there."""
    for path in ("/health", "/ready"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")


def test_answers_end_and_are_chosen_as_asked(demo: Demo, client: httpx.Client) -> None:
    """Would catch fields of vLLM's that are taken and dropped."""
    ends = demo.model.generation_config.eos_token_id
    tokens = [ends] if isinstance(ends, int) else ends
    ending = {"logit_bias": dict.fromkeys(map(str, tokens), 100), "max_tokens": 9}

    def ask(**fields: Any) -> Any:
        body = {"model": "demo", "prompt": "Read row 1", "temperature": 0, "max_tokens": 24}
        return client.post("/v1/completions", json=body | fields).json()

    lengths = [
        ask(**ending, **each)["usage"]["completion_tokens"]
        for each in ({}, {"min_tokens": 5}, {"min_tokens": 99}, {"ignore_eos": True})
    ]
    assert lengths == [1, 6, 9, 9]
    greedy, other, penalised, sampled = (
        ask(**each)["choices"][0]["text"]
        for each in (
            {},
            {"temperature": 1.5, "seed": 1},
            {"repetition_penalty": 2},
            {"temperature": 1.5, "seed": 1, "min_p": 1},
        )
    )
    assert greedy == sampled
    assert greedy not in (other, penalised)


BODIES = {
    "not JSON": (b"{", 400),
    "no object": (b"[]", 400),
    "empty": (b"", 400),
    "nested": (b'{"messages":' + b"[" * 9000 + b"]" * 9000 + b"}", 400),
    "a long number": (b'{"seed":' + b"9" * 9000 + b"}", 400),
    "not Unicode": (b'{"model":"\xff"}', 400),
    "not a number": (b'{"model":"demo","messages":[],"temperature":NaN}', 400),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES)
def test_no_body_makes_it_fail(client: httpx.Client, body: bytes, status: int) -> None:
    """Would catch a parser's exception that nobody expects: each is the client's fault."""
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_answer_comes_back_as_a_turn(client: httpx.Client) -> None:
    """Would catch a refusal of what clients keep of an answer and send again as it is."""
    said = {"role": "assistant", "content": "row", "refusal": None, "audio": None}
    said |= {"function_call": None, "tool_calls": None, "annotations": [], "parsed": None}
    question = {"role": "user", "content": [{"type": "text", "text": "a", "image_url": None}]}
    response = client.post(CHAT, json=hello(messages=[question, said, question]))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("prompt", [[], [99999], [-1], [[]], "<image>", ["a"] * 17])
def test_prompts_that_the_model_cannot_take(client: httpx.Client, prompt: Any) -> None:
    """Would catch token ids that reach the model's embedding unchecked."""
    response = client.post("/v1/completions", json={"model": "demo", "prompt": prompt})
    assert response.status_code == 400, response.text
    assert client.get("/health").status_code == 200


def test_paths_and_methods_that_are_not_there(client: httpx.Client) -> None:
    """Would catch the framework's own errors, which are of another shape."""
    for method, path, status in [
        ("GET", "/nowhere", 404),
        ("DELETE", "/health", 405),
        ("GET", "/v1/models/other", 404),
        ("GET", CHAT, 405),
    ]:
        response = client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert status != 405 or response.headers["Allow"]
    other = client.post(CHAT, json=hello(model="other"))
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


def test_what_is_too_large_is_not_read(server: Running, client: httpx.Client) -> None:
    """Would catch a limit that counts only once everything is in memory: the second sender
    announces nothing, never ends, and is refused all the same.
    """
    assert client.post(CHAT, content=b" " * 20_001).status_code == 413

    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    try:
        response = client.post(CHAT, content=endless(), headers=headers)
    except httpx.TransportError:  # it hung up while the client was writing
        pass
    else:
        assert response.status_code == 413
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert client.get("/health").status_code == 200


def test_a_full_queue_says_when_to_come_again(
    server: Running, client: httpx.Client, endless: dict[str, Any]
) -> None:
    """Would catch a queue without end, and answers of a refused request that run on: of two, the
    last finds the queue full, and the first is cancelled.
    """
    with _post(server, endless):
        until(lambda: server.engine.stats.running == 1)
        response = client.post(CHAT, json=endless | {"n": 2})
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["Retry-After"]) >= 1
        until(lambda: server.engine.stats.waiting == 0)
    until(lambda: client.post(CHAT, json=hello(n=2)).status_code == 200)


def test_more_than_ever_fits_is_not_put_off(client: httpx.Client) -> None:
    """A 429 has clients try again and again what cannot succeed."""
    response = client.post(CHAT, json=hello(n=3))
    assert response.status_code == 400
    assert "3 answers in one request; this server has 2 at most" in response.text


def test_null_is_as_good_as_nothing(client: httpx.Client) -> None:
    """OpenAI's schema has it, and clients send what they were not told."""
    assert client.post(CHAT, json=hello(stream=None, priority=None)).status_code == 200
    with_usage = hello(stream=True, stream_options={"include_usage": None})
    assert client.post(CHAT, json=with_usage).status_code == 200


@pytest.mark.parametrize("count", [0, 1])
def test_completions_tell_how_likely_the_sampled_token_was(
    client: httpx.Client, count: int
) -> None:
    """Only the most probable ones were told, and with 0 nothing but nulls."""
    body = {"model": "demo", "prompt": "Read row 1", "max_tokens": 8, "temperature": 2, "seed": 1}
    response = client.post("/v1/completions", json=body | {"logprobs": count})
    told = response.json()["choices"][0]["logprobs"]
    each = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
    assert all(best[token] == logprob for token, logprob, best in each)
    assert all(1 <= len(best) <= count + 1 for best in told["top_logprobs"])


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_not_answered(
    server: Running, client: httpx.Client, endless: dict[str, Any], stream: bool
) -> None:
    """Would catch answers that go on for nobody, and their pages, which others wait for."""
    before = server.engine.stats.cancelled
    with _post(server, endless | {"stream": stream}) as connection:
        until(lambda: server.engine.stats.running == 1)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    until(lambda: server.engine.stats.pages_taken == 0)
    assert server.engine.stats.cancelled == before + 1
    assert client.post(CHAT, json=hello()).status_code == 200


def test_who_does_not_read_holds_up_nobody(
    server: Running, client: httpx.Client, endless: dict[str, Any]
) -> None:
    """Would catch a step that waits for a reader: the next request is answered, though only one may
    run at a time.
    """
    wordy = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 100}
    with _post(server, endless | wordy, receive=2048):
        until(lambda: server.engine.stats.running == 1)
        assert client.post(CHAT, json=hello()).status_code == 200


def logged(caplog: pytest.LogCaptureFixture, request: str) -> list[str]:
    """The lines of a request, once there are any."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        said = [r.getMessage() for r in caplog.records if r.name == "specdec.serving.access"]
        if lines := [line for line in said if request in line]:
            return lines
        time.sleep(0.01)
    raise AssertionError(f"no line of request {request}")


def test_the_log_holds_nothing_that_users_said(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch prompts in the log, of requests that are answered and of those that are not."""
    with caplog.at_level(logging.DEBUG):
        responses = (
            client.post(CHAT, json=hello()),
            client.post(CHAT, json=hello(user=SECRET, top_p=-1, stop=SECRET)),
            client.get("/nowhere", params={"said": SECRET}),
        )
        # A line is written when its response has been sent.
        (line,), _, _ = (logged(caplog, each.headers["X-Request-Id"]) for each in responses)
    assert line.startswith(f"POST {CHAT} 200 ")
    assert "completion=2" in line
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert not [line for line in ours if SECRET in line]


def test_prometheus_sees_what_happened(server: Running, client: httpx.Client) -> None:
    """Would catch a count under another name than dashboards read, or one that does not grow."""

    def count(name: str) -> float:
        text = client.get("/metrics").text
        return sum(
            float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
        )

    names = (
        "specdec:spec_decode_num_drafts_total",
        "specdec:spec_decode_num_draft_tokens_total",
        "specdec:spec_decode_num_accepted_tokens_total",
        'specdec:spec_decode_num_accepted_tokens_per_pos_total{position="0"}',
        "specdec:time_to_first_token_seconds_count",
        "specdec:inter_token_latency_seconds_count",
        "specdec:e2e_request_latency_seconds_count",
        'specdec:request_success_total{finished_reason="length"}',
        "specdec:prompt_tokens_total",
        "specdec:generation_tokens_total",
        "specdec:prefix_cache_queries_total",
    )
    before = [count(name) for name in names]
    client.post(CHAT, json=hello(max_tokens=24, temperature=0))
    until(lambda: server.engine.stats.pages_taken == 0)
    after = [count(name) for name in names]
    assert [name for name, old, new in zip(names, before, after, strict=True) if new <= old] == []
    assert count("specdec:num_requests_running") == count("specdec:kv_cache_usage_perc") == 0


def test_only_key_holders_are_answered(demo: Demo) -> None:
    """Would catch a path that is left open, or keys of which only one counts."""
    with (
        running(demo, api_keys=("one", "two"), allowed_hosts=("127.0.0.1",)) as there,
        httpx.Client(base_url=there.url, timeout=PATIENCE) as client,
    ):
        for path in ("/v1/models", "/metrics"):
            for key in ("", "Bearer", "Bearer three", "Basic one", "Bearer one two"):
                response = client.get(path, headers={"Authorization": key})
                assert response.status_code == 401, (path, key)
                assert response.json()["error"]["code"] == "invalid_api_key"
            for key in ("one", "two"):
                answer = client.get(path, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == 200
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def _post(server: Running, body: dict[str, Any], receive: int | None = None) -> socket.socket:
    """A connection that has asked; `receive`: bytes that its system holds unread, at least."""
    address = urlsplit(server.url)
    assert address.hostname is not None
    connection = socket.socket()
    if receive is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.settimeout(PATIENCE)
    connection.connect((address.hostname, address.port or 0))
    sent = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.hostname}\r\nContent-Length: {len(sent)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + sent)
    return connection
