"""The code in the README and in docs/: fences, what is to be done with them, and command lines."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.main import get_command

from specdec.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a fence may be; one without a name would escape the checks.
LANGUAGES = {"python", "sh", "text", "json", "yaml", "html"}

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>run|not run: [^\n]+) -->\n)?"
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_COMMAND = re.compile(r"(?:specdec|make|python (?:-m specdec\.|tests/|examples/)\S+)(?: |$)")
_LEFT_OUT = re.compile(r"…|\.\.\.|<.*>|[A-Z][A-Z_]*")  # stands for what the reader has


class Snippet(NamedTuple):
    """A fence of a page. ``runs``: it says so; ``why_not``: why it must not be."""

    page: Path
    line: int
    language: str
    code: str
    runs: bool
    why_not: str | None

    @property
    def where(self) -> str:
        """For messages: `file:line`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class CommandLine(NamedTuple):
    """A command line of a page; ``words`` without the program itself."""

    where: str
    program: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.where}: {self.program} {shlex.join(self.words)}"


def snippets(page: Path) -> list[Snippet]:
    """The fences of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        mark = match["mark"]
        found.append(
            Snippet(
                page,
                text[: match.start("code")].count("\n") + 1,
                match["language"],
                match["code"],
                runs=mark == "run",
                why_not=mark.removeprefix("not run: ") if mark and mark != "run" else None,
            )
        )
    return found


def in_text(page: Path) -> list[CommandLine]:
    """The command lines that a page names between backticks."""
    text = page.read_text(encoding="utf-8")
    # A fence is blanked out, so that lines keep their numbers.
    text = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    found = []
    for match in _INLINE.finditer(text):
        code = re.sub(r"\s+", " ", match[1])
        if _COMMAND.match(code) and code not in ("specdec", "make"):
            where = f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}"
            found += _lines(where, code)
    return found


def in_snippet(snippet: Snippet) -> list[CommandLine]:
    """The command lines of a shell snippet that are ours."""
    return list(_lines(snippet.where, snippet.code))


def _lines(where: str, code: str) -> Iterator[CommandLine]:
    for line in code.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|", line):
            words = shlex.split(part, comments=True)
            if not _COMMAND.match(" ".join(words)):
                continue
            if words[0] == "python":
                program = words[2] if words[1] == "-m" else words[1]
                yield CommandLine(where, program, words[3 if words[1] == "-m" else 2 :])
            else:
                yield CommandLine(where, words[0], words[1:])


def check(line: CommandLine) -> None:
    """Fail if there is no such command, or it has no such option, or the option no such value."""
    if line.program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in line.words if "=" not in word and word not in targets]
        assert not unknown, f"{line}: the Makefile has no {unknown}"
    elif line.program.startswith(("tests/", "examples/")):
        assert (ROOT / line.program).is_file(), f"{line}: no such file"
    else:
        name, command, words = _resolve(line)
        if command is not None:
            _check_options(line, name, command, words)


def _resolve(line: CommandLine) -> tuple[str, Any, list[str]]:
    """The command that a line calls, and its arguments; ``None`` where only the file is known."""
    if line.program != "specdec":
        function = _run_by(line.program)
        if function is None:
            return line.program, None, []
        alone = typer.Typer(add_completion=False)
        alone.command()(function)
        return line.program, get_command(alone), line.words
    commands: Any = get_command(app)
    if line.words[0].startswith("-"):
        return "specdec", commands, line.words
    name = line.words[0]
    assert name in commands.commands, f"{line}: there is no `specdec {name}`"
    return name, commands.commands[name], line.words[1:]


def _run_by(module: str) -> Any:
    """The function that typer makes a command of when ``module`` is run."""
    loaded = importlib.import_module(module)
    for node in ast.walk(ast.parse(inspect.getsource(loaded))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.run":
            return getattr(loaded, ast.unparse(node.args[0]))
    source = inspect.getsource(loaded)
    assert "__main__" in source, f"python -m {module} does nothing"
    return None


def _check_options(line: CommandLine, name: str, command: Any, words: list[str]) -> None:
    context = command.context_class(command, info_name=name)
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
    except Exception as error:
        raise AssertionError(f"{line}: {error}") from error
    extra = [word for word in rest if not _LEFT_OUT.fullmatch(word)]
    assert not extra, f"{line}: {extra} would not be taken"
    for parameter in command.params:
        given = values.get(parameter.name)
        each = given if isinstance(given, list) else [given]
        if any(not isinstance(one, str) or _LEFT_OUT.fullmatch(one) for one in each):
            continue
        try:
            parameter.process_value(context, given)
        except Exception as error:
            raise AssertionError(f"{line}: {parameter.opts[0]} {given}: {error}") from error


def run(line: CommandLine) -> Any:
    """What the command yields, run in this process."""
    from typer.testing import CliRunner

    if line.program == "specdec":
        return CliRunner().invoke(app, line.words)
    alone = typer.Typer(add_completion=False)
    alone.command()(_run_by(line.program))
    return CliRunner().invoke(alone, line.words)
