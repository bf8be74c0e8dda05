"""What `specdec serve` refuses before anything is loaded; how it serves: tests/serving."""

from __future__ import annotations

import pytest

from support.command_line import Cli, expect_error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--model", "nowhere"), "nowhere does not exist"),
        (("--api-key", ""), "--api-key: an empty key keeps nobody out"),
        (("--tree", "x"), "--tree"),
        (("--acceptance", "nowhere.json"), "--acceptance nowhere.json: no such file"),
        (("--image-host", "https://a/b"), "is no host"),
        (("--max-pixels", "999999999"), "above Pillow's limit"),
    ],
)
def test_mistakes_are_told_in_a_line(cli: Cli, given: tuple[str, ...], said: str) -> None:
    """Would catch a server that starts without what was asked for, and a traceback."""
    expect_error(cli("serve", *given), said)


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
