"""The command line as such: what it loads, its version, and how errors reach the user."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import specdec
from specdec import cli
from specdec.commands import UserError


def test_help_loads_no_models() -> None:
    """An import of torch or transformers at a command's top makes `--help` take seconds."""
    code = (
        "import sys, specdec.cli\n"
        "print([name for name in ('torch', 'transformers', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"specdec {specdec.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "generate",
        "serve",
        "audit",
        "doctor",
        "distill",
        "train-probe",
        "calibrate",
        "export",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert result.stdout.strip()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such thing; give another"), "specdec broken: no such thing; give another\n"),
        (typer.BadParameter("too small"), "specdec broken: Invalid value: too small\n"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(_app_that_raises(error), ["broken"])
    assert result.exit_code == 2
    assert result.stderr == line
    assert result.stdout == ""


def test_bugs_are_not_dressed_up_as_mistakes() -> None:
    """Swallowing an unexpected exception would hide where it came from."""
    result = CliRunner().invoke(_app_that_raises(KeyError("inside")), ["broken"])
    assert isinstance(result.exception, KeyError)


def test_missing_and_wrong_options_name_the_option() -> None:
    for arguments, pattern in (
        (["generate", "--prompt", "x"], r"specdec generate: .*--model"),
        (["generate", "--model", "x", "--prompt", "x", "--dtype", "int4"], r".*--dtype.*int4"),
        (["demo", "--questions", "0"], r"specdec demo: .*--questions"),
    ):
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 2
        assert re.fullmatch(pattern + r".*\n", result.stderr), result.stderr


def _app_that_raises(error: Exception) -> typer.Typer:
    app = typer.Typer(cls=cli.Commands, pretty_exceptions_enable=False)

    @app.command()
    def broken() -> None:
        raise error

    @app.command()
    def other() -> None:
        """A second command, so that typer keeps the first one's name."""

    return app
