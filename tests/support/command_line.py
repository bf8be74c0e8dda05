"""What tests of commands share."""

from __future__ import annotations

import re
from collections.abc import Callable

from typer.testing import Result

Cli = Callable[..., Result]


def expect_error(result: Result, pattern: str) -> None:
    """One line on standard error that says so, nothing else, and exit code 2."""
    assert result.exit_code == 2, (result.exit_code, result.exception, result.stderr)
    line = rf"specdec \w+: .*(?:{pattern}).*\n"
    assert re.fullmatch(line, result.stderr), result.stderr
    assert result.stdout == ""
