from __future__ import annotations

from typing import Any

import pytest

from specdec.eval import suite
from specdec.eval.comparison import GateError, gate
from specdec.eval.drafter_bench import methods
from specdec.eval.timing import (
    Inputs,
    Method,
    Said,
    check,
    first_difference,
    interleaved,
    logit_gap,
    ratio,
)

LENGTH = 8


@pytest.fixture(scope="module")
def asked(small: Any) -> list[Inputs]:
    return [suite.model_inputs(small.model, small.processor, [q]) for q in small.questions[:3]]


@pytest.fixture(scope="module")
def plain(small: Any) -> Method:
    return methods(small.model, [], LENGTH)[0][0]


def test_first_difference() -> None:
    """An answer that merely stops early, or goes on, differs too."""
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([1, 2], [1, 2, 3]) == 2


def test_logit_gap_is_that_of_plain_decoding(
    small: Any, asked: list[Inputs], plain: Method
) -> None:
    """Read at the wrong place, the gap would excuse any token. The chosen token's own gap is 0 at
    every place, and another token's is what `generate`'s scores say (1e-4: fp32, two shapes).
    """
    kept = {"output_logits": True, "return_dict_in_generate": True}
    out = small.model.generate(**asked[0], do_sample=False, max_new_tokens=4, **kept)
    tokens = out.sequences[0, asked[0]["input_ids"].shape[1] :].tolist()
    for place, token in enumerate(tokens):
        logits = out.logits[place][0]
        other = int(logits.argsort()[-3])
        assert logit_gap(small.model, asked[0], tokens[:place], (token, token)) == 0
        gap = logit_gap(small.model, asked[0], tokens[:place], (token, other))
        assert gap == pytest.approx(float(logits.max() - logits[other]), abs=1e-4)


def test_check_tells_ties_from_errors(small: Any, asked: list[Inputs], plain: Method) -> None:
    """A bound in logits must excuse a token below it, never one above it, and never a length."""
    right = [plain.run(inputs) for inputs in asked]
    planted = [Said([*right[0].tokens[:3], 77, *right[0].tokens[4:]]), *right[1:]]
    gap = logit_gap(small.model, asked[0], right[0].tokens[:3], (right[0].tokens[3], 77))
    strict = check(small.model, asked, right, planted, gap * 0.99)
    assert (strict.wrong, strict.ties, strict.answers) == (1, 0, 3)
    assert strict.widest == gap
    assert strict.tokens == 4 + 2 * LENGTH
    loose = check(small.model, asked, right, planted, gap * 1.01)
    assert (loose.wrong, loose.ties) == (0, 1)
    short = [Said(right[0].tokens[:-1]), *right[1:]]
    assert check(small.model, asked, right, short, 1e9).wrong == 1


def test_gate_refuses_a_wrong_token(small: Any, asked: list[Inputs], plain: Method) -> None:
    """Speeds of a decoder that answers something else must never be printed, not even if it goes
    wrong in the last answer only.
    """
    right = [plain.run(inputs) for inputs in asked]
    planted = [*right[:-1], Said([*right[-1].tokens[:5], right[-1].tokens[5] + 1])]
    ours = [plain, Method("planted", plain.run, ours=True)]
    said = {plain.name: right, "planted": planted}
    with pytest.raises(GateError, match=r"planted: 1 of 3 answers"):
        gate(small.model, ours, asked, said, bound=0.0)
    theirs = [plain, Method("planted", plain.run)]
    assert gate(small.model, theirs, asked, said, bound=0.0)["planted"].wrong == 1


def test_interleaved_turns_the_order_round() -> None:
    """Methods timed in one fixed order would carry whatever follows from it."""
    abc = [Method(name, lambda inputs: Said([1])) for name in "abc"]
    order = [name for _, name, _ in interleaved(abc, [{}, {}], rounds=2)]
    assert "".join(order) == "abccbacbaabc"


def test_ratio_pairs_questions() -> None:
    """Ratios are per question: were medians divided instead, slow questions would decide. With all
    ratios equal the interval is a point; the interval covers the median otherwise.
    """
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 3.0]) == (2.0, 2.0, 2.0)
    median, low, high = ratio([float(i) for i in range(1, 102)], [10.0] * 101)
    assert median == 5.1
    assert 3.5 < low < median < high < 6.7
