"""Every Python snippet of the README and of docs/ runs as it stands; every command line exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import specdec
from specdec.demo import ASSETS
from support.snippets import (
    LANGUAGES,
    PAGES,
    ROOT,
    CommandLine,
    Snippet,
    check,
    in_snippet,
    in_text,
    run,
    snippets,
)

README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
ALL = [snippet for page in PAGES for snippet in snippets(page)]
PYTHON = [snippet for snippet in ALL if snippet.language == "python"]
SHELL = [snippet for snippet in ALL if snippet.language == "sh"]
needs_model = pytest.mark.skipif(
    not (ASSETS / "lvlm").exists(), reason="no demonstration model here yet"
)


def execute(snippet: Snippet, session: dict[str, Any]) -> None:
    """Run a snippet; one that is not to be run has to be Python all the same."""
    # Blank lines before it, so that a traceback names the line of the page.
    code = compile("\n" * (snippet.line - 1) + snippet.code, str(snippet.page), "exec")
    if snippet.why_not is None:
        exec(code, session)


@pytest.fixture(scope="module")
def begun(clone: Path) -> dict[str, Any]:
    """What the quickstart's first snippet leaves, from which other pages go on."""
    session: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        execute(next(s for s in PYTHON if s.page == QUICKSTART), session)
    return session


@needs_model
@pytest.mark.parametrize(
    "page",
    sorted({s.page for s in PYTHON} - {README}),
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_python_runs(page: Path, begun: dict[str, Any], reader: Path) -> None:
    """An example that does not run is worse than none. A page is one session; the quickstart's
    begins with nothing.
    """
    session = {} if page == QUICKSTART else dict(begun)
    for snippet in (each for each in PYTHON if each.page == page):
        execute(snippet, session)


@needs_model
def test_the_readme_runs_and_its_ways_agree(reader: Path) -> None:
    """An example may run and yet show another answer than the one beside it: greedy and lossless
    ones must have the same tokens, by `generate`, through transformers' door, and by the engine.
    """
    session: dict[str, Any] = {}
    answers = []
    for snippet in (each for each in PYTHON if each.page == README):
        execute(snippet, session)
        if "out" in session and "policy" not in session:
            answers.append(session["out"].tolist())
    prompt = session["inputs"]["input_ids"].tolist()
    answers.append([prompt[0] + session["request"].tokens])
    assert len(answers) > 3
    assert all(answer == answers[0] for answer in answers)
    assert isinstance(session["out"].stats, specdec.AcceptanceStats)
    assert session["out"].ledger[0]


def test_every_fence_says_what_it_is() -> None:
    """A fence without a language, or with one that nobody looks at, escapes the checks; so does a
    page that the pattern does not find.
    """
    unknown = [f"{s.where}: {s.language!r}" for s in ALL if s.language not in LANGUAGES]
    assert not unknown
    for page in PAGES:
        fences = sum(line.startswith("```") for line in page.read_text().splitlines())
        assert fences == 2 * len(snippets(page)), page
    marks = sum(page.read_text().count("<!-- not run: ") for page in PAGES)
    # One is CONTRIBUTING's own, which says what they are.
    assert marks == 1 + sum(s.why_not is not None for s in ALL)
    assert len(PYTHON) > 15
    assert len(SHELL) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_command_lines_exist(page: Path) -> None:
    """An option was renamed, or a command, and the page still names the old one."""
    lines = in_text(page)
    for snippet in (each for each in SHELL if each.page == page):
        lines += in_snippet(snippet)
    for line in lines:
        check(line)


@needs_model
@pytest.mark.parametrize("snippet", [s for s in SHELL if s.runs], ids=lambda s: s.where)
def test_cheap_commands_run(snippet: Snippet, reader: Path) -> None:
    """A command line may be parsed and fail all the same."""
    for line in in_snippet(snippet):
        result = run(line)
        assert result.exit_code == 0, (str(line), result.output, result.exception)


@pytest.mark.parametrize(
    ("program", "words", "complaint"),
    [
        ("specdec", ["generat", "--model", "DIR"], "there is no `specdec generat`"),
        ("specdec", ["generate", "--modell", "DIR"], "--modell"),
        ("specdec", ["generate", "--model", "DIR", "picture.png"], "would not be taken"),
        ("specdec", ["generate", "--top-p", "2"], "--top-p 2"),
        ("specdec", ["export", "DRAFTER", "--to", "llama.cpp"], "--to llama.cpp"),
        ("specdec.eval.drafters", ["--question", "3"], "--question"),
        ("make", ["tests"], "the Makefile has no"),
        ("tests/nothing.py", [], "no such file"),
    ],
)
def test_what_is_not_there_is_noticed(program: str, words: list[str], complaint: str) -> None:
    """A check that takes anything checks nothing."""
    with pytest.raises(AssertionError, match=complaint):
        check(CommandLine("here", program, words))
