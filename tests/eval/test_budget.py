"""Parts within a time that is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specdec.eval.budget import Deadline, Red, Session


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_parts_share_a_time_and_the_rest_is_listed(tmp_path: Path) -> None:
    """A part that is begun with no time left, a case beyond its part's time, and something that is
    skipped without a word."""
    clock, out = Clock(), tmp_path / "found.json"
    session = Session(out, {"schema": "x"}, 60, clock)

    def part(deadline: Deadline) -> dict[str, Any]:
        done = []
        for case in range(4):
            if deadline.wanted(f"case {case}"):
                clock.now += 20
                done.append(case)
        return {"done": done}

    assert session.run("first", 30, part) == {"done": [0, 1]}
    assert json.loads(out.read_text())["parts"]["first"] == {"seconds": 40, "done": [0, 1]}
    assert session.run("second", 30, part) == {"done": [0]}
    assert session.run("third", 30, part) is None
    found = json.loads(out.read_text())
    assert list(found["parts"]) == ["first", "second"]
    assert [(each["part"], each["case"]) for each in found["skipped"]] == [
        ("first", "case 2"),
        ("first", "case 3"),
        ("second", "case 1"),
        ("second", "case 2"),
        ("second", "case 3"),
        ("third", None),
    ]


def test_a_part_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    """Results lost because something later ran out of memory; a red gate that is passed over."""
    session = Session(tmp_path / "found.json", {}, 60)

    def fail(error: Exception) -> Any:
        raise error

    assert session.run("memory", 9, lambda _: fail(RuntimeError("out of memory\nmore"))) is None
    session.run("fine", 9, lambda _: {"value": 1})
    with pytest.raises(Red):
        session.run("gate", 9, lambda _: fail(Red("2 tests failed")))
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert parts["memory"]["failed"] == "RuntimeError: out of memory"
    assert parts["fine"]["value"] == 1
    assert parts["gate"]["red"] == "2 tests failed"
