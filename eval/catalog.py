"""The adapters by name, and which of them a data set is read with.

Knows nothing of rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from specdec.eval.adapters import Adapter, Captions, Plain
from specdec.eval.dialogue_adapters import Chat, Choices
from specdec.eval.scoring import (
    ANLS,
    CONTAINS,
    EXACT_MATCH,
    LETTER,
    RELAXED_ACCURACY,
    VQA_ACCURACY,
    Metric,
)
from specdec.training.sources import IMAGE_COLUMNS, PROMPT_COLUMNS

CHOICES_SHORT = "Answer with the letter of the right option only."
PLAIN = Plain(
    "plain", CONTAINS, image=IMAGE_COLUMNS, question=PROMPT_COLUMNS, answers=("answers", "answer")
)
ADAPTERS = (
    Adapter(
        "gqa",
        EXACT_MATCH,
        config="testdev_balanced_instructions",
        split="testdev",
        answers=("answer",),
        task=("types.structural",),
        key="imageId",
    ),
    Adapter("textvqa", VQA_ACCURACY, split="validation", answers=("answers",)),
    Captions(
        "coco", split="val", answers=("answer", "captions", "caption"), short="Use one sentence."
    ),
    Adapter(
        "chartqa",
        RELAXED_ACCURACY,
        question=("question", "query"),
        answers=("answer", "label"),
        task=("type", "human_or_machine"),
    ),
    Adapter(
        "charxiv",
        EXACT_MATCH,
        split="validation",
        question=("reasoning_q",),
        answers=("reasoning_a",),
        task=("category",),
    ),
    Adapter(
        "docvqa",
        ANLS,
        config="DocVQA",
        split="validation",
        answers=("answers",),
        task=("question_types",),
    ),
    Choices(
        "mmmu-pro",
        LETTER,
        config="standard (10 options)",
        image=("image_1", "image"),
        answers=("answer",),
        task=("subject",),
        short=CHOICES_SHORT,
    ),
    Chat("chat", image=("images", "image"), question=("messages", "conversations")),
    PLAIN,
)
BY_NAME = {adapter.name: adapter for adapter in ADAPTERS}
SHORT, LENIENT = "short", CONTAINS.name


class Wanted(NamedTuple):
    """What stands behind the ``@`` of a source: an adapter by name, and how it is asked and
    scored.
    """

    data: str
    adapter: Adapter | None
    short: bool
    lenient: bool

    def metric(self, adapter: Adapter) -> Metric | None:
        """How answers are scored."""
        return CONTAINS if self.lenient else adapter.metric


def parse(source: str) -> Wanted:
    """Take ``DATA@adapter+short+contains`` apart; each part behind ``DATA`` may be missing.

    Raises:
        ValueError: an unknown adapter or option, or one that does not go with the other.
    """
    data, at, tail = source.rpartition("@")
    if not at or "/" in tail:  # of a folder's name
        return Wanted(source, named_in(source), False, False)
    name, *options = tail.split("+")
    if name and name not in BY_NAME:
        raise ValueError(f"{source}: unknown adapter {name!r}; there are {', '.join(BY_NAME)}")
    if unknown := set(options) - {SHORT, LENIENT}:
        raise ValueError(
            f"{source}: unknown option {', '.join(sorted(unknown))}; there are {SHORT}, {LENIENT}"
        )
    adapter = BY_NAME[name] if name else named_in(data)
    if LENIENT in options and adapter and adapter.metric in (None, LETTER):
        raise ValueError(
            f"{source}: {LENIENT} compares words, {adapter.name} has "
            f"{'letters' if adapter.metric else 'no right answers'}"
        )
    return Wanted(data, adapter, SHORT in options, LENIENT in options)


def named_in(data: str) -> Adapter | None:
    """The adapter whose name is in one of the last three parts of a data set's name or path, the
    last one first.
    """
    spelt = {name.replace("-", ""): name for name in BY_NAME if name != PLAIN.name}
    spelt["llava"] = "chat"
    for part in reversed(data.split("/")[-3:]):
        there = re.sub("[^a-z0-9]", "", part.lower())
        for word, name in spelt.items():
            if word in there:
                return BY_NAME[name]
    return None


def fitting(data: str, adapter: Adapter | None, columns: Collection[str]) -> Adapter:
    """This adapter, or without one the only one that fits a data set's columns.

    Raises:
        ValueError: it does not fit, or not exactly one does.
    """
    fit = [each for each in ADAPTERS if not each.lacking(columns)]
    if adapter in fit:
        assert adapter is not None
        return adapter
    special = [each for each in fit if each is not PLAIN]
    if adapter is None and len(special or fit) == 1:
        return (special or fit)[0]
    there = f"{data} has the columns {', '.join(columns)}"
    names = ", ".join(each.name for each in fit) or "none"
    if adapter is not None:
        needed = ", ".join(" or ".join(names) for names in adapter.needed() if names)
        raise ValueError(
            f"{there}; adapter {adapter.name} expects {needed}. Adapters that fit: {names}; choose "
            "one with @NAME"
        )
    raise ValueError(f"{there}; adapters that fit: {names}; choose one with @NAME")
