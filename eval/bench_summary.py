"""The record of a benchmark, ``specdec.bench/1``: everything that tables and pages are made of.

Knows nothing of how runs are made or shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from specdec.choice import resolve_tree
from specdec.eval.bench_figures import Runs, figures
from specdec.eval.bench_methods import Answer
from specdec.eval.bench_plan import Contender, Plan
from specdec.eval.bench_run import Group
from specdec.eval.efficiency import Forwards, efficiency
from specdec.eval.questions import Questions
from specdec.stats import AcceptanceStats
from specdec.training.prompts import Asked
from specdec.tree import Topology

_LARGEST = 384  # pixels of an image's longer side, where it is shown


class Texts:
    """Answers as text.

    Args:
        tokenizer: a transformers tokenizer; their classes share no useful base.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def whole(self, tokens: Sequence[int]) -> str:
        """An answer, without special tokens."""
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """What each token adds; nothing where it is the beginning of a character only."""
        found, shown = list[str](), ""
        for end in range(1, len(tokens) + 1):
            text = self.whole(tokens[:end]).rstrip("\N{REPLACEMENT CHARACTER}")
            found.append(text[len(shown) :])
            shown = max(shown, text, key=len)
        return found


def entry(
    group: Group,
    each: Contender,
    questions: Questions,
    texts: Texts,
    plan: Plan,
    *,
    drafter: str | None,
    forwards: Forwards | None,
    modalities: Mapping[str, Any] | None,
    memory: Mapping[str, int | None] | None,
) -> dict[str, Any]:  # Any: JSON values
    """What a method did; ``drafter``: what its drafter is called."""
    if each.name in group.refused:
        return {**each.public(), "drafter": drafter, "refused": group.refused[each.name]}
    runs = group.runs[each.name]
    plain = group.runs[group.contenders[0].name]
    vision = forwards.vision / forwards.prefill if forwards is not None else 0.0

    def summed(runs: Runs, plain: Runs) -> dict[str, Any]:
        scores = _scores(group, runs, questions, texts)
        return figures(runs, plain, scores, questions.metric, plan.seed, vision)

    overall = summed(runs, plain)
    check = group.checks.get(each.name)
    return {
        **each.public(),
        "drafter": drafter,
        "refused": None,
        "gate": None
        if check is None
        else {
            "answers": check.answers,
            "tokens": check.tokens,
            "ties": check.ties,
            "wrong": check.wrong,
            "widest_gap_logits": check.widest,
        },
        "overall": overall,
        "tasks": {
            task: summed(*pair)
            for task, pair in _by_task(group, runs, plain, questions.asked).items()
        },
        "modalities": modalities,
        "efficiency": _efficiency(each, overall, forwards),
        "memory": memory,
    }


def shown(
    groups: Sequence[Group], questions: Questions, texts: Texts, count: int
) -> list[dict[str, Any]]:  # Any: JSON values
    """The first answers of the group of single greedy questions, token by token."""
    chosen = [g for g in groups if (g.contenders[0].batch, g.contenders[0].temperature) == (1, 0)]
    found = []
    for group in chosen:
        reference = dict(group.runs[group.contenders[0].name])
        for number in range(min(count, len(group.batches))):
            [question] = group.batches[number]
            asked = questions.asked[question]
            found.append(
                {
                    "question": question,
                    "task": asked.task,
                    "prompt": _prompt(asked),
                    "images": [_uri(image) for image in asked.images],
                    "reference": texts.whole(reference[number].answers[0].tokens),
                    "methods": {
                        each.name: _tokens(dict(group.runs[each.name])[number].answers[0], texts)
                        for each in group.able
                        if each.ours and each.drafter
                    },
                }
            )
    return found


def _scores(group: Group, runs: Runs, questions: Questions, texts: Texts) -> list[float]:
    """Of all answers whose right ones are known."""
    found = [
        questions.score(question, texts.whole(answer.tokens))
        for number, ran in runs
        for question, answer in zip(group.batches[number], ran.answers, strict=True)
    ]
    return [score for score in found if score is not None]


def _by_task(
    group: Group, runs: Runs, plain: Runs, asked: Sequence[Asked]
) -> dict[str, tuple[Runs, Runs]]:
    found: dict[str, tuple[list[Any], list[Any]]] = {}
    for ours, theirs in zip(runs, plain, strict=True):
        task = asked[group.batches[ours[0]][0]].task
        if task:
            both = found.setdefault(task, ([], []))
            both[0].append(ours)
            both[1].append(theirs)
    return dict(found)


def _efficiency(
    each: Contender, overall: Mapping[str, Any], forwards: Forwards | None
) -> float | None:
    speedup, acceptance = overall["speedup_decode"], overall["acceptance"]
    if forwards is None or speedup is None or acceptance is None or each.batch > 1:
        return None
    tree = resolve_tree(each.tree or "0")
    if each.drafter is None or not isinstance(tree, Topology):
        return None
    stats = AcceptanceStats.from_dict(acceptance)
    return efficiency(forwards, each.drafter, tree, stats, speedup["median"])


def _prompt(asked: Asked) -> str:
    """The text of the last message."""
    content = asked.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")


def _uri(image: Image.Image) -> str:
    """An image that a page can contain."""
    small = image.convert("RGB")
    small.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _tokens(answer: Answer, texts: Texts) -> list[dict[str, Any]]:
    pieces = texts.pieces(answer.tokens)
    reliance = answer.reliance or [None] * len(pieces)
    return [
        {"text": text, "origin": origin, "v": v}
        for text, origin, v in zip(pieces, answer.origins, reliance, strict=True)
    ]
