from __future__ import annotations

import copy
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from specdec.eval.regressions import Change, Verdict, compare, differences, show
from support import bench_records
from support.bench_records import Record

EAGLE = "eagle-shared, chain of 4"
END_TO_END = "speedup, end to end"


@pytest.fixture
def before() -> Record:
    return bench_records.record()


@pytest.fixture
def after(before: Record) -> Record:
    return copy.deepcopy(before)


def method(record: Record, name: str = EAGLE) -> Record:
    (found,) = (each for each in record["methods"] if each["name"] == name)
    return found


def verdict(changes: list[Change], figure: str, name: str = EAGLE) -> Verdict:
    (found,) = (each for each in changes if (each.method, each.figure) == (name, figure))
    return found.verdict


def printed(changes: list[Change], warnings: list[str] | None = None) -> tuple[str, bool]:
    said = StringIO()
    worse = show(Console(file=said, width=160), changes, warnings or ())
    return said.getvalue(), worse


def test_a_record_is_no_worse_than_itself(before: Record, after: Record) -> None:
    changes = compare(before, after)
    assert {each.verdict for each in changes} == {Verdict.SAME}
    assert {each.method for each in changes} == {each["name"] for each in before["methods"]}
    text, worse = printed(changes)
    assert not worse
    assert "no regression" in text
    assert not differences(before, after)


@pytest.mark.parametrize(
    ("median", "expected"),
    [
        (2.17, Verdict.SAME),
        (2.08, Verdict.SAME),
        (2.06, Verdict.WORSE),
        (2.26, Verdict.SAME),
        (2.28, Verdict.BETTER),
    ],
)
def test_intervals_decide(before: Record, after: Record, median: float, expected: Verdict) -> None:
    """Medians always differ; only intervals apart, here 2.17 ± 0.05 and others, are news."""
    method(after)["overall"]["speedup_end_to_end"] = bench_records.interval(median)
    changes = compare(before, after)
    assert verdict(changes, END_TO_END) is expected
    assert printed(changes)[1] == (expected is Verdict.WORSE)


@pytest.mark.parametrize(
    ("path", "figure", "more_is_better"),
    [
        (("overall", "acceptance", "mean_acceptance_length"), "τ", True),
        (("efficiency",), "η", True),
        (("overall", "fidelity", "score"), "fidelity", True),
        (("overall", "ms_per_token"), "time a token, relative", False),
    ],
)
def test_without_intervals_five_percent_decide(
    before: Record, after: Record, path: tuple[str, ...], figure: str, more_is_better: bool
) -> None:
    """More is not always better, and what has no interval must not cry wolf."""
    part: Any = method(after)
    for name in path[:-1]:
        part = part[name]
    measured = part[path[-1]]
    for factor, grew in ((1.04, None), (0.96, None), (1.06, True), (0.94, False)):
        part[path[-1]] = factor * measured
        expected = {
            None: Verdict.SAME,
            more_is_better: Verdict.BETTER,
            not more_is_better: Verdict.WORSE,
        }[grew]
        assert verdict(compare(before, after), figure) is expected


def test_an_interval_on_one_side_is_not_enough(before: Record, after: Record) -> None:
    """A single question has an interval of no width: any change at all would be a regression."""
    exact = {"median": 2.10, "low": 2.10, "high": 2.10}
    method(after)["overall"]["speedup_end_to_end"] = exact
    assert verdict(compare(before, after), END_TO_END) is Verdict.SAME
    method(after)["overall"]["speedup_end_to_end"] = dict.fromkeys(exact, 2.05)
    assert verdict(compare(before, after), END_TO_END) is Verdict.WORSE


def test_time_is_relative_to_the_reference(before: Record, after: Record) -> None:
    """A machine that is twice as slow for all is no regression of ours."""
    for each in after["methods"]:
        if each["refused"] is None:
            each["overall"]["ms_per_token"] *= 2
    assert verdict(compare(before, after), "time a token, relative") is Verdict.SAME


def test_one_wrong_answer_is_a_regression(before: Record, after: Record) -> None:
    method(after)["gate"]["wrong"] = 1
    assert verdict(compare(before, after), "wrong answers") is Verdict.WORSE
    assert verdict(compare(after, before), "wrong answers") is Verdict.BETTER


def test_methods_of_one_record_are_listed(before: Record, after: Record) -> None:
    """A method that is left out of the second run vanishes from the table, its slowness too."""
    after["methods"] = [each for each in after["methods"] if each["name"] != EAGLE]
    after["methods"].append(bench_records.method("new one", 1.4, 2.0))
    changes = compare(before, after)
    assert verdict(changes, "") is Verdict.GONE
    assert verdict(changes, "", "new one") is Verdict.NEW
    text, worse = printed(changes)
    assert not worse
    assert "only before" in text
    assert "only after" in text


def test_settings_are_matched(before: Record, after: Record) -> None:
    """A method at batch 4 compared with itself at batch 1 has always become worse."""
    for record, speedup in ((before, 1.5), (after, 1.2)):
        record["methods"].append(bench_records.method(EAGLE, speedup, 3.0, batch=4))
    changes = compare(before, after)
    assert verdict(changes, END_TO_END) is Verdict.SAME
    assert verdict(changes, END_TO_END, f"{EAGLE}, batch 4") is Verdict.WORSE


def test_refusing_what_ran_before_is_worse(before: Record, after: Record) -> None:
    place = after["methods"].index(method(after))
    after["methods"][place] = bench_records.refused(EAGLE, "ValueError: [bold] no")
    changes = compare(before, after)
    assert verdict(changes, "") is Verdict.WORSE
    text, worse = printed(changes)
    assert worse
    assert "refused: ValueError: [bold] no" in text
    assert verdict(compare(after, before), "") is Verdict.BETTER


def test_a_figure_that_was_not_measured_again_is_listed(before: Record, after: Record) -> None:
    method(after)["overall"]["fidelity"] = None
    assert verdict(compare(before, after), "fidelity") is Verdict.GONE
    method(before)["overall"]["fidelity"] = None
    changes = compare(before, after)
    assert not [each for each in changes if (each.method, each.figure) == (EAGLE, "fidelity")]


def test_nulls_are_passed_over(before: Record) -> None:
    empty = bench_records.nulls(before)
    assert {each.verdict for each in compare(empty, empty)} == {Verdict.SAME}


def test_differences_are_told(before: Record, after: Record) -> None:
    """Figures from another machine or other questions look like progress."""
    after["machine"] |= {"cpu": "Another", "specdec": "fedcba", "load_before": 9.9}
    after["model"]["dtype"] = "float32"
    after["questions"]["tasks"]["grid_cell"] = 5
    after["settings"]["tie_bound_logits"] = 0.5
    assert differences(before, after) == [
        "model, dtype: bfloat16 before, float32 after",
        "questions, tasks, grid_cell: 4 before, 5 after",
        "settings, tie_bound_logits: 0.25 before, 0.5 after",
        "machine, cpu: A Processor before, Another after",
    ]
    text, worse = printed(compare(before, after), differences(before, after))
    assert "the records differ in machine, cpu: A Processor before, Another after" in text
    assert not worse


def test_other_schemas_are_refused(before: Record, after: Record) -> None:
    after["schema"] = "specdec.bench/2"
    with pytest.raises(ValueError, match=r"'specdec\.bench/1'.*'specdec\.bench/2'"):
        compare(before, after)
