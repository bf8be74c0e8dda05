"""How good an answer is against references, by the usual metric of each data set.

Every metric is in [0, 1] and takes the answer as it is but for spacing at its ends. A model that
answers in sentences scores 0 by most of them, however right it is: ask it for short answers, or use
``contains``, which is more lenient than the published metrics and not comparable with them. Knows
nothing of questions, images or data sets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

Score = Callable[[str], float]


class Metric(NamedTuple):
    """``score(references, answer)`` is in [0, 1]."""

    name: str
    score: Callable[[Sequence[str], str], float]

    def against(self, references: Sequence[str]) -> Score | None:
        """The score of an answer to a question with these references, ``None`` without any."""
        known = [reference for reference in references if reference.strip()]
        return partial(self.score, known) if known else None


def normal(text: str) -> str:
    """Without case, spacing and the punctuation at words' ends; a space at either end, so that only
    whole words are found in it.
    """
    words = (word.strip(".,;:!?\"'()") for word in text.casefold().split())
    return f" {' '.join(word for word in words if word)} "


def exact_match(references: Sequence[str], answer: str) -> float:
    """Whether the answer is one of the references, but for case, spacing and the punctuation at
    words' ends.

    The accuracy of GQA (Hudson and Manning 2019), whose script compares lower-case words.
    """
    return float(normal(answer) in map(normal, references))


def contains(references: Sequence[str], answer: str) -> float:
    """Whether the answer contains a reference as whole words, compared as :func:`exact_match` does.

    More lenient than any published metric: an answer that lists everything contains the right one.
    """
    said = normal(answer)
    return float(any(normal(reference) in said for reference in references))


_TO_TEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_TO_TEN)}}


def _vqa_words(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d)|\.(?!\d)|['’]", "", text.lower())
    words = re.sub(r"[^\w.:%$£€&#*~^|°]|_", " ", text).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(references: Sequence[str], answer: str) -> float:
    """min(1, n / 3), n = how many of ten people gave this answer, averaged over the ways to leave
    one of them out.

    Antol et al. 2015, as TextVQA uses it. Compared without case, articles and punctuation, numbers
    up to ten as digits; where the original restores a missing apostrophe, none counts here.
    """
    said = _vqa_words(answer)
    same = [_vqa_words(reference) == said for reference in references]
    if len(same) == 1:
        return float(same[0])
    left_out = (min(1.0, (sum(same) - each) / 3) for each in same)
    return sum(left_out) / len(same)


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def relaxed_accuracy(references: Sequence[str], answer: str) -> float:
    """Whether the answer is a reference: numbers within 5 % of it, other texts but for case.

    ChartQA (Masry et al. 2022, section 5.1, after Methani et al. 2020); "12%" is 0.12, as in
    Pix2Struct's evaluation. A number among words is a text.
    """
    said, number = answer.strip().lower(), _number(answer.strip())
    for reference in references:
        wanted, about = reference.strip().lower(), _number(reference.strip())
        if number is None or about is None:
            right = said == wanted
        else:
            right = abs(number - about) <= 0.05 * abs(about)
        if right:
            return 1.0
    return 0.0


def _edits(a: str, b: str) -> int:
    """Levenshtein distance."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def anls(references: Sequence[str], answer: str) -> float:
    """1 − edits / the longer one's length, of the reference where that is best, and 0 from half the
    length on; without case and spacing.

    Average normalised Levenshtein similarity (Biten et al. 2019, equation 1), as DocVQA uses it.
    """
    said = " ".join(answer.lower().split())
    best = 0.0
    for reference in references:
        wanted = " ".join(reference.lower().split())
        distance = _edits(said, wanted) / max(len(said), len(wanted), 1)
        best = max(best, 1 - distance if distance < 0.5 else 0.0)
    return best


_MARKED = re.compile(r"answer\s*(?:is)?\s*:?\s*[*(\[]*([A-Z])\b(?!['’])", re.IGNORECASE)
_FIRST = re.compile(r"[*(\[]*([A-Z])(?:[)\].:,*]|\s*$|\s*\n)")
_BRACKETS = re.compile(r"\(([A-Z])\)")


def letter(references: Sequence[str], answer: str) -> float:
    """Whether the answer chooses the right letter: the last one behind the word "answer", else one
    that the answer begins with, else the last one in brackets.

    MMMU-Pro (Yue et al. 2024). Where its script would guess from an option's words, no letter is
    chosen, which counts as wrong.
    """
    text = answer.strip()
    marked = [found for found in _MARKED.findall(text) if found.isupper()]
    first = _FIRST.match(text)
    chosen = marked[-1:] or ([first[1]] if first else _BRACKETS.findall(text)[-1:])
    return float(bool(chosen) and chosen[0] in (reference.strip() for reference in references))


EXACT_MATCH = Metric("exact match", exact_match)
CONTAINS = Metric("contains", contains)
VQA_ACCURACY = Metric("vqa accuracy", vqa_accuracy)
RELAXED_ACCURACY = Metric("relaxed accuracy", relaxed_accuracy)
ANLS = Metric("anls", anls)
LETTER = Metric("letter", letter)
