"""The metrics, on cases worked by hand from their papers' definitions."""

from __future__ import annotations

import pytest

from specdec.eval import scoring
from specdec.eval.scoring import ANLS, EXACT_MATCH, Metric

TEN = ["bikes"] * 2 + ["the bikes"] + ["Bike"] * 7


@pytest.mark.parametrize(
    ("references", "answer", "wanted"),
    [
        (["no"], " No. ", 1.0),
        (["dining table"], "dining  table", 1.0),
        (["no"], "no, it is not", 0.0),
        (["table"], "tables", 0.0),
        (["a", "b"], "b", 1.0),
        (["no"], "", 0.0),
    ],
)
def test_exact_match(references: list[str], answer: str, wanted: float) -> None:
    """A match inside a sentence or of a part of a word must not count, nor case matter."""
    assert scoring.exact_match(references, answer) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [("It says no.", 1.0), ("nothing", 0.0), ("The NO exit", 1.0), ("", 0.0)],
)
def test_contains(answer: str, wanted: float) -> None:
    """A part of a word is not the word."""
    assert scoring.contains(["no"], answer) == wanted


@pytest.mark.parametrize(
    ("references", "answer", "wanted"),
    [
        # Three of ten said so: leaving one of them out leaves two (2/3), another one three (1).
        (TEN, "bikes", (3 * 2 / 3 + 7) / 10),
        (TEN, "a bike!", 1.0),
        (TEN, "cars", 0.0),
        (["x"] * 9 + ["yes"], "yes", 9 / 10 * 1 / 3),
        (["2"] * 10, "two", 1.0),
        (["1,000"] * 10, "1000", 1.0),
        (["3.5"] * 10, "35", 0.0),
        (["dont walk"] * 10, "Don't walk.", 1.0),
        (["stop"], "stop", 1.0),
    ],
)
def test_vqa_accuracy(references: list[str], answer: str, wanted: float) -> None:
    """min(n / 3, 1) over all ten would give 1 where leaving one out does not; a point inside a
    number must stay.
    """
    assert scoring.vqa_accuracy(references, answer) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "answer", "wanted"),
    [
        ("100", "105", 1.0),
        ("100", "95.0", 1.0),
        ("100", "105.1", 0.0),
        ("-100", "-104", 1.0),
        ("-100", "104", 0.0),
        ("0", "0.0", 1.0),
        ("0", "0.01", 0.0),
        ("12%", "0.12", 1.0),
        ("12%", "12", 0.0),
        ("Yes", " yes", 1.0),
        ("yes", "yes, it is", 0.0),
        ("100", "about 100", 0.0),
        ("2014", "nan", 0.0),
    ],
)
def test_relaxed_accuracy(reference: str, answer: str, wanted: float) -> None:
    """5 % are of the reference, either way; a zero has no 5 %."""
    assert scoring.relaxed_accuracy([reference], answer) == wanted
    assert scoring.relaxed_accuracy(["other", reference], answer) == wanted


@pytest.mark.parametrize(
    ("references", "answer", "wanted"),
    [
        (["The  Coca-Cola Company"], "the coca-cola company ", 1.0),
        (["abcd"], "abcx", 0.75),
        (["abcd"], "abxy", 0.0),  # half the length is too much
        (["abcd"], "abcde", 0.8),
        (["zzzz", "abcd"], "abcd", 1.0),
        (["kitten"], "sitting", 1 - 3 / 7),
        (["ab"], "", 0.0),
    ],
)
def test_anls(references: list[str], answer: str, wanted: float) -> None:
    """The longer of the two is what edits are divided by, and similarity counts from above a half
    only.
    """
    assert scoring.anls(references, answer) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("B", 1.0),
        ("B.", 1.0),
        ("(B) Paris", 1.0),
        ("B) because (A) is wrong", 1.0),
        ("Not (A), so it is (B)", 1.0),
        ("First I thought Answer: A. But no.\nAnswer: B", 1.0),
        ("The answer is **B**", 1.0),
        ("B is not it. Answer: C", 0.0),
        ("A boy, so B", 0.0),
        ("the answer is a boy (B)", 1.0),
        ("Both", 0.0),
        ("b", 0.0),
        ("", 0.0),
    ],
)
def test_letter(answer: str, wanted: float) -> None:
    """An article is no choice, and the last of several conclusions is the one that counts."""
    assert scoring.letter(["B"], answer) == wanted


@pytest.mark.parametrize("metric", [EXACT_MATCH, ANLS], ids=lambda metric: metric.name)
def test_without_references_there_is_no_score(metric: Metric) -> None:
    """Test splits hide answers as empty texts: that is no reference, and 0 would be no score."""
    assert metric.against([]) is None
    assert metric.against(["", " "]) is None
    score = metric.against(["", "red"])
    assert score is not None
    assert score("red") == 1.0
    assert score("") == 0.0
