"""Questions to measure on, from the package, a folder or a data set, with a score for answers.

A source is

``suite``
    the questions that come with the package, for its embedded model. Scored by the share of the
    facts on the image that an answer states rightly (metric ``facts``).

a folder with ``*.jsonl`` files
    lines of ``{"image": file, "prompt": text}`` or ``{"images": [file, …], "prompt": text}``, with
    ``"answer": text`` or ``"answers": [text, …]`` if right answers are known (metric ``contains``)
    and ``"task": name`` if there are several kinds of question.

a data set: ``hub:owner/name``, ``hub:owner/name:split`` or ``hub:owner/name:configuration:split``
    of the hub; or a path: a folder written by ``save_to_disk``, one with ``*.arrow`` or
    ``*.parquet`` files, or such a file. Takes the ``train`` extra. It is read with an adapter,
    chosen by the data set's name, else by its columns, or named behind an ``@``:
    ``my/set@docvqa``.

========  ===================================  ===========================  =================
adapter   columns (``a/b``: one of them)       tasks                        metric
========  ===================================  ===========================  =================
gqa       question, answer, image/imageId      types.structural             exact match
textvqa   question, answers, image                                          vqa accuracy
coco      answer/captions/caption, image,                                   none
          [question]
chartqa   question/query, answer/label, image  type/human_or_machine        relaxed accuracy
charxiv   reasoning_q, reasoning_a, image      category                     exact match
docvqa    question, answers, image             the first of question_types  anls
mmmu-pro  options, answer, [question],         subject                      letter
          image/image_1 … image_7
chat      messages/conversations,              first turn, later turn       none
          images/image
plain     prompt/question/text, image/images,                               contains
          [answers/answer]
========  ===================================  ===========================  =================

These are the columns of ``lmms-lab/GQA``, ``lmms-lab/textvqa``, ``lmms-lab/COCO-Caption``,
``HuggingFaceM4/ChartQA``, ``lmms-lab/ChartQA``, ``princeton-nlp/CharXiv``, ``lmms-lab/DocVQA``,
``MMMU/MMMU_Pro`` (with ten or four options, or ``vision``) and
``HuggingFaceH4/llava-instruct-mix-vsft``; each of them needs no more than its name, and is then
asked as usual: GQA its balanced ``testdev`` questions, TextVQA, CharXiv and DocVQA ``validation``,
COCO ``val``, the others ``test``. GQA keeps images apart from questions: where a table has the keys
of images only, the images are taken from the one with ``images`` in its name in place of
``instructions``. Of CharXiv the reasoning questions are asked; the descriptive ones are numbers of
templates that are not in the data set. In a chat, each turn of the user's is a question, behind the
turns before it as they were given.

Two options may stand behind the adapter, ``hub:lmms-lab/GQA@gqa+short+contains``, or alone,
``hub:lmms-lab/GQA@+short``. ``short`` adds the usual request for a single word or phrase, or one
letter. ``contains`` scores an answer 1 if it contains a right one, which is more lenient than the
published metric. Metrics take the answer as it is, so sentences score 0 by most of them: see
`eval.scoring`. CharXiv's own score is a language model's judgement; an exact match is stricter.

Tasks are represented evenly: with ``count``, questions are drawn from one task after the other. The
same seed draws the same questions, and a smaller count the first of them. What cannot be used, a
row with no question or a broken image, is left out and listed, and another is drawn in its place.

Knows nothing of who answers.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from specdec.eval.dataset_pool import dataset_pool
from specdec.eval.pools import FolderPool, Pool, Question, ShippedPool
from specdec.eval.scoring import Score
from specdec.training.prompts import Asked
from specdec.training.skipped import Skipped, first_of

SUITE = "suite"


@dataclass(frozen=True)
class Questions:
    """Questions to ask.

    Attributes:
        asked: the questions, with their images.
        scores: for each, what scores an answer, ``None`` if no right one is known.
        metric: the name of the scores, ``None`` if there are none.
        source: where they are from.
        skipped: what was left out.
    """

    asked: list[Asked]
    scores: list[Score | None]
    metric: str | None
    source: str
    skipped: list[Skipped]

    def score(self, number: int, answer: str) -> float | None:
        """How good an answer to the question of this number is, in [0, 1]; ``None`` if no right
        one is known.
        """
        score = self.scores[number]
        return None if score is None else score(answer)

    @property
    def tasks(self) -> dict[str, int]:
        """How many questions each task has; those without a task are not counted."""
        return dict(Counter(each.task for each in self.asked if each.task))


def load(source: str, *, count: int | None, seed: int, tasks: Sequence[str] = ()) -> Questions:
    """Questions of a source; see the module for what it may be.

    Args:
        source: ``suite``, a folder or a data set.
        count: how many to draw; ``None`` is all, in their order, and holds all their images.
        seed: of the draw.
        tasks: draw from these only; empty is all.

    Raises:
        ValueError: it cannot be read, its columns do not fit, it has not so many usable questions,
            or no such tasks.
    """
    pool = _pool(source)
    skipped = list(pool.skipped)
    numbers = _of_tasks(source, pool, tasks)
    if count is None:
        drawn = _opened(pool, numbers, skipped)
    elif count < 1:
        raise ValueError(f"{count} questions were asked for; at least one is needed")
    else:
        groups = _shuffled(pool, numbers, random.Random(seed))
        drawn = islice(_in_turn(_opened(pool, group, skipped) for group in groups), count)
    found = list(drawn)
    if not found or len(found) < (count or 0):
        wanted = "there is none" if count is None else f"{count} were asked for"
        raise ValueError(f"{source} has {len(found)} usable questions, {wanted}{first_of(skipped)}")
    scores = [each.score for each in found]
    metric = pool.metric if any(scores) else None
    return Questions([each.asked for each in found], scores, metric, source, skipped)


def _pool(source: str) -> Pool:
    if source == SUITE:
        return ShippedPool()
    if any(Path(source).glob("*.jsonl")):
        return FolderPool(Path(source))
    return dataset_pool(source)


def _of_tasks(source: str, pool: Pool, tasks: Sequence[str]) -> list[int]:
    known = set(pool.tasks)
    if unknown := set(tasks) - known:
        names = ", ".join(sorted(filter(None, known))) or "no names of tasks"
        raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}; {source} has {names}")
    return [i for i, task in enumerate(pool.tasks) if not tasks or task in tasks]


def _shuffled(pool: Pool, numbers: Iterable[int], rng: random.Random) -> list[list[int]]:
    """The numbers of each task, tasks and numbers in random order."""
    groups = defaultdict[str, list[int]](list)
    for number in numbers:
        groups[pool.tasks[number]].append(number)
    shuffled = [groups[task] for task in sorted(groups)]
    rng.shuffle(shuffled)
    for group in shuffled:
        rng.shuffle(group)
    return shuffled


def _opened(pool: Pool, numbers: Iterable[int], skipped: list[Skipped]) -> Iterator[Question]:
    """Those that can be used; the others are noted in ``skipped``."""
    for number in numbers:
        try:
            yield pool.open(number)
        except ValueError as error:
            skipped.append(Skipped(pool.where(number), str(error)))


def _in_turn(queues: Iterable[Iterator[Question]]) -> Iterator[Question]:
    """One of each, again and again; what is at its end is passed over."""
    waiting = deque(queues)
    while waiting:
        queue = waiting.popleft()
        if (question := next(queue, None)) is not None:
            yield question
            waiting.append(queue)
