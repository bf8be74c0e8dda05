"""What `specdec serve` refuses before anything is loaded; how it serves: tests/serving."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from specdec import ThreadedEngine
from specdec.commands.serve_start import report
from specdec.demo import load
from specdec.serving.settings import Settings
from support.command_line import Cli, expect_error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--model", "nowhere"), "nowhere does not exist"),
        (("--api-key", ""), "--api-key: an empty key keeps nobody out"),
        (("--tree", "x"), "--tree"),
        (("--acceptance", "nowhere.json"), "--acceptance nowhere.json: no such file"),
        (("--image-host", "https://a/b"), "is no host"),
        (("--image-host", "127.0.0.1:80"), "no public address"),
        (("--cors-origin", "foo"), "--cors-origin foo: no page has this origin"),
        (("--cors-origin", "https://app.example/"), "no page has this origin"),
        (("--kv-cache-gib", "0"), "--kv-cache-gib: expected more than 0"),
        (
            ("--host", "192.0.2.1", "--api-key", "a"),
            "cannot listen on 192.0.2.1, port 8000: .* --host",
        ),
        (("--max-pixels", "999999999"), "above Pillow's limit"),
    ],
)
def test_mistakes_are_told_in_a_line(cli: Cli, given: tuple[str, ...], said: str) -> None:
    """Would catch a server that starts without what was asked for, and a traceback."""
    expect_error(cli("serve", *given), said)


def test_a_port_that_is_taken_is_told_at_once(cli: Cli) -> None:
    """It was told after the model was loaded, in uvicorn's words."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        expect_error(
            cli("serve", "--port", str(port)),
            f"cannot listen on 127.0.0.1, port {port}: Address already in use; .* 0 takes any",
        )


def test_what_is_no_policy_file_is_told_in_plain_words(cli: Cli, tmp_path: Path) -> None:
    """An exception's name stood within, and the model's class before it."""
    file = tmp_path / "env.sh"
    file.write_text("A=1")
    result = cli("serve", "--port", "0", "--acceptance", str(file))
    assert result.exit_code == 2
    assert "serve: loading demo\n" in result.stderr
    assert f"serve: {file} is no policy file: {file} is not JSON: " in result.stderr


def test_memory_that_is_too_little_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A server said that it was ready, and its clients were told of the memory one by one."""
    model = load().model
    settings = Settings(model="demo", drafter="ngram", max_tokens=300, max_prompt_tokens=200)
    for count, told in ((1 << 20, "a request may have 500 tokens"), (1 << 30, "")):
        with ThreadedEngine(model, kv_cache_bytes=count) as engine:
            report(engine, settings, "auto", count / (1 << 30))
        said = capsys.readouterr().err
        assert "demo: LlavaForConditionalGeneration, float32, on cpu, ngram drafts, tree" in said
        assert told in said
        assert ("warning" in said) == bool(told)


def test_an_open_door_is_told_of(cli: Cli) -> None:
    """Would catch a server that others may reach without a key, and no word about it."""
    opened = cli("serve", "--host", "0.0.0.0", "--model", "nowhere")
    assert "warning: 0.0.0.0 may be reached by others" in opened.stderr
    for closed in (
        ("--host", "::1"),
        ("--host", "localhost"),
        ("--host", "0.0.0.0", "--api-key", "a"),
    ):
        assert "warning" not in cli("serve", *closed, "--model", "nowhere").stderr


@pytest.mark.parametrize("keys", ["", "  "])
def test_a_variable_without_a_key_opens_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, keys: str
) -> None:
    """Would catch a secret that is not there, as of a container's, and a server open to all."""
    monkeypatch.setenv("SPECDEC_API_KEY", keys)
    expect_error(cli("serve", "--model", "nowhere"), "SPECDEC_API_KEY is set and holds no key")
    expect_error(cli("serve", "--model", "nowhere", "--api-key", "a"), "nowhere does not exist")
