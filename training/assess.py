"""Held-out samples, free-running answers and the accuracy of each task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

from specdec.training import chat, dialogues, grading, render, scenes
from specdec.training.wording import Dialogue


@dataclass(frozen=True)
class Sample:
    """A question with its images (RGB, 192x192), a reference answer and the facts that any answer
    must state.

    `messages` is ready for `processor.apply_chat_template`; the last turn is the user's. With
    `add_generation_prompt=True` and the images passed to the processor it is exactly what the
    model was trained on.
    """

    task: str
    images: list[Image.Image]
    messages: list[dict[str, Any]]  # Any: HF's chat form
    reference: str
    fields: dict[str, str]


class Accuracy(NamedTuple):
    """Of `answers` answers `exact` had every field right; `right` of `fields` fields were right."""

    answers: int
    exact: int
    right: int
    fields: int


def samples(
    count: int,
    seed: int = 0,
    split: scenes.Split = "held_out",
    tasks: Sequence[str] = dialogues.TASK_NAMES,
) -> list[Sample]:
    """`count` seeded samples, the tasks taking turns."""
    return [_sample(seed * 1_000_003 + i, split, tasks[i % len(tasks)]) for i in range(count)]


def _sample(seed: int, split: scenes.Split, task: str) -> Sample:
    if task == "pair_first":
        pair = [scenes.make_scene(seed + (i << 40), split, "shapes") for i in range(2)]
        made = dialogues.about_pair(pair[0], pair[1], seed)
    else:
        scene = scenes.make_scene(seed, split, dialogues.KIND_OF[task])
        made = dialogues.about(scene, task, seed, task in dialogues.FOLLOW_UPS and seed % 4 == 0)
    return as_sample(made)


def as_sample(dialogue: Dialogue) -> Sample:
    """Draw the images of a dialogue."""
    images = [Image.fromarray(render.render(scene)) for scene in dialogue.scenes]
    reference = dialogue.turns[-1].answer
    return Sample(dialogue.task, images, chat.messages(dialogue), reference, dialogue.fields)


def model_inputs(processor: LlavaProcessor, asked: Sequence[Sample]) -> BatchFeature:
    """`generate`'s inputs for a batch of samples with equally many images, padded on the left."""
    text = [
        processor.apply_chat_template(sample.messages, add_generation_prompt=True)
        for sample in asked
    ]
    images = [sample.images for sample in asked]
    inputs: BatchFeature = processor(
        images=images, text=text, return_tensors="pt", padding=True, add_special_tokens=False
    )
    return inputs


@torch.no_grad()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    asked: Sequence[Sample],
    batch: int = 48,
) -> list[str]:
    """Greedy answers of the model, in order."""
    said: dict[int, str] = {}
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].images))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        inputs = model_inputs(processor, [asked[i] for i in chunk])
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        # its stub refuses a Llava model as self
        ids = model.generate(**inputs, max_new_tokens=160, do_sample=False)  # type: ignore[misc]
        new = ids[:, inputs["input_ids"].shape[1] :]
        said |= dict(zip(chunk, processor.batch_decode(new, skip_special_tokens=True), strict=True))
    return [said[i] for i in range(len(asked))]


def grade(asked: Iterable[Sample], said: Iterable[str]) -> dict[str, Accuracy]:
    """Accuracy per task."""
    table: dict[str, Accuracy] = {}
    for sample, text in zip(asked, said, strict=True):
        got = grading.score(sample.task, sample.fields, text)
        old = table.get(sample.task, Accuracy(0, 0, 0, 0))
        new = (
            old.answers + 1,
            old.exact + got.exact,
            old.right + got.right,
            old.fields + got.total,
        )
        table[sample.task] = Accuracy(*new)
    return table
