"""`specdec demo`: what it shows, and that it shows no speed for wrong tokens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from specdec.commands.contest import Contestants, Times, report
from specdec.commands.demo import choose
from specdec.demo import Question
from specdec.eval.timing import Check, Run, Said
from specdec.stats import AcceptanceStats
from support import processors
from support.command_line import Cli, expect_error

TASKS = ("digits_read", "digits_sum", "bars_compare")


@pytest.fixture(scope="session")
def assets(llava: Path, drafter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its drafter, and three questions, the last with an earlier turn."""
    folder = tmp_path_factory.mktemp("assets")
    shutil.copytree(llava, folder / "lvlm")
    shutil.copytree(drafter, folder / "drafter")
    rows = []
    for number, task in enumerate(TASKS):
        processors.image(number).save(folder / f"{number}.png")
        messages = processors.messages(number)
        if number == 2:
            earlier = [{"type": "text", "text": "w20 w21"}]
            messages = [messages[0], {"role": "assistant", "content": earlier}]
            messages.append({"role": "user", "content": [{"type": "text", "text": "w22"}]})
        row = {"task": task, "images": [f"{number}.png"], "messages": messages}
        rows.append({**row, "fields": {"number": "7", "count": "3"}})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_shows_answers_then_figures(cli: Cli, assets: Path, dtype: str) -> None:
    result = cli("demo", "--assets", assets, "--max-new-tokens", 10, "--dtype", dtype)
    assert result.exit_code == 0, result.stdout + result.stderr
    for number in range(3):
        assert str(assets / f"{number}.png") in result.stdout
    assert f"parameters, {dtype}, on" in result.stdout
    assert result.stdout.count("on the image: number 7, count 3") == 3
    assert len(re.findall(r"\d+ of 10 tokens drafted", result.stdout)) == 3
    assert "assistant: w20 w21" in result.stdout
    for name in ("τ", "acceptance rate", "transformers generate", "specdec", "speedup"):
        assert re.search(rf"{name} +\d", result.stdout), name
    assert re.search(r"draft \d+% · verify \d+% · accept \d+% · commit \d+%", result.stdout)
    if dtype == "fp32":
        assert re.search(r"equal to plain decoding +yes +60 tokens in 6 answers", result.stdout)


def test_no_speed_for_wrong_tokens(cli: Cli, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing that a demonstration must never do."""
    answer = Contestants.speculative

    def wrong(self: Contestants, *arguments: Any) -> Said:
        said = answer(self, *arguments)
        return said._replace(tokens=[*said.tokens[:-1], said.tokens[-1] ^ 1])

    monkeypatch.setattr(Contestants, "speculative", wrong)
    result = cli("demo", "--assets", assets, "--max-new-tokens", 6, "--questions", 1)
    assert result.exit_code == 1
    assert "not equal to plain decoding: 1 of 1 answers" in result.stdout
    assert "speedup" not in result.stdout
    assert "ms/token" not in result.stdout


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--show",), "specdec-demo.png"),
        (("--show", "my.png"), "my.png"),
        (("--show", "--seed", "1"), "specdec-demo.png"),
        (("--show=other.jpg",), "other.jpg"),
    ],
)
def test_picture(
    cli: Cli,
    assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    name: str,
) -> None:
    """`--show` works with and without a value, and does not eat the option behind it."""
    monkeypatch.chdir(tmp_path)
    arguments = ("--assets", assets, "--questions", 1, "--max-new-tokens", 3)
    result = cli("demo", *arguments, *options)
    assert result.exit_code == 0, result.stdout + result.stderr
    assert f"saved {name}" in result.stdout
    with Image.open(tmp_path / name) as picture:
        assert picture.width > picture.height > 192


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (("--assets", "no/such"), "no demonstration model"),
        (("--questions", "4"), "--questions 4: there are 3"),
        (("--show", "no/such/folder.png"), "there is no folder no/such"),
        (("--show", "picture.txt"), "must end like an image file"),
    ],
)
def test_mistakes(cli: Cli, assets: Path, options: tuple[str, ...], pattern: str) -> None:
    expect_error(cli("demo", "--assets", assets, *options), pattern)


def test_questions_are_spread_over_kinds() -> None:
    asked = [Question(task, (), [], {}) for task in TASKS]
    names = [question.task for question in choose(asked, 3, None)]
    assert names == ["digits_read", "bars_compare", "digits_sum"]
    drawn = [tuple(q.task for q in choose(asked, 2, seed)) for seed in range(20)]
    assert drawn == [tuple(q.task for q in choose(asked, 2, seed)) for seed in range(20)]
    assert len(set(drawn)) > 1
    assert all("bars_compare" in pair for pair in drawn)


def test_speedup_is_the_median_of_paired_ratios() -> None:
    """Not the ratio of medians: that would be 1.00 here. Tokens are counted on both sides."""

    def run(seconds: float, tokens: int = 10) -> tuple[int, Run]:
        return 0, Run(Said([1] * tokens, AcceptanceStats()), seconds)

    plain = [run(3.0), run(2.0), run(1.0, tokens=5)]
    times = Times(plain, [run(1.0), run(2.0), run(4.0, tokens=40)])
    assert times.speedups == [3.0, 1.0, 2.0]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report(times, Check(answers=3, tokens=55, ties=1)))
    assert "2.00×" in shown.get()
    assert "1.00× to 3.00×" in shown.get()
    assert "up to ties   1 of 3 answers" in shown.get()
