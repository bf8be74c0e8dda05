"""Prompts to answer, batch by batch: the embedded model's generator, or a user's folder.

Knows nothing of who answers, or what for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from transformers import PreTrainedModel

HELD_OUT_SHARE = 10  # of a user's own prompts, one in ten is kept for measuring
TEMPERATURES = (0.0, 1.0, 0.0, 0.7)  # of successive batches


class Asked(NamedTuple):
    """A prompt.

    ``messages`` is in the form that ``processor.apply_chat_template`` takes, its images named but
    not contained; they are ``images``, in order. ``task``: what kind of question it is, if that is
    known.
    """

    messages: list[dict[str, Any]]  # Any: transformers' chat form
    images: list[Image.Image]
    task: str = ""


def model_inputs(
    model: PreTrainedModel,
    processor: Any,  # a transformers processor; their classes share no useful base
    asked: Sequence[Asked],
) -> Mapping[str, Any]:
    """What ``model.generate`` takes for prompts with equally many images, padded on the left."""
    text = [
        processor.apply_chat_template(each.messages, add_generation_prompt=True, tokenize=False)
        for each in asked
    ]
    bos = processor.tokenizer.bos_token
    processor.tokenizer.padding_side = "left"
    encoded = processor(
        text=text,
        images=[each.images for each in asked] if asked[0].images else None,
        return_tensors="pt",
        padding=True,
        # As apply_chat_template does: a template that writes the first token needs no second one.
        add_special_tokens=bos is None or not text[0].startswith(bos),
    )
    inputs: Mapping[str, Any] = encoded.to(model.device, dtype=model.dtype)
    return inputs


class Asking(NamedTuple):
    """Prompts to be answered together, with equally many images each."""

    asked: list[Asked]
    temperature: float


class Prompts(Protocol):
    """Where prompts come from."""

    def batch(self, index: int, size: int) -> Asking | None:
        """The batch of this number, always the same; ``None`` behind the last one."""

    def held_out(self, count: int) -> list[Asked]:
        """Up to ``count`` prompts that no batch holds."""


class EmbeddedPrompts:
    """Prompts of the embedded LVLM: its generator's training split, without end.

    Each batch is of one task, so its answers are about equally long. Needs the ``train`` extra.

    Args:
        tasks: names of the tasks to ask about; none is those that the shipped model answers well.

    Raises:
        ValueError: an unknown task.
    """

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        from specdec.training import dialogues, target

        if unknown := set(tasks) - set(dialogues.TASK_NAMES):
            known = ", ".join(dialogues.TASK_NAMES)
            raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}; known: {known}")
        self.tasks = tuple(tasks) or target.SHIPPED

    def batch(self, index: int, size: int) -> Asking:
        from specdec.training import target

        turn, place = divmod(index, len(self.tasks))
        task, temperature = self.tasks[place], TEMPERATURES[turn % len(TEMPERATURES)]
        made = target.training_split(size, seed=index + 1, tasks=(task,))
        return Asking([Asked(s.messages, s.images, s.task) for s in made], temperature)

    def held_out(self, count: int) -> list[Asked]:
        from specdec.training import target

        made = target.held_out(count, 1, self.tasks)
        return [Asked(s.messages, s.images, s.task) for s in made]


class FolderPrompts:
    """Prompts from a folder: images, and ``*.jsonl`` with ``{"image": file, "prompt": text}`` or
    ``{"images": [file, …], "prompt": text}`` a line.

    All prompts are asked once at each temperature in turn. One prompt in ten, chosen by a checksum,
    is held out.

    Raises:
        ValueError: no prompts there, or a line that is none; the message names file and line.
    """

    def __init__(self, folder: Path) -> None:
        self._rows: list[tuple[str, list[Path]]] = []
        self._held_out: list[tuple[str, list[Path]]] = []
        for file in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(file.read_text().splitlines(), start=1):
                if line.strip():
                    row = read_row(line, folder, f"{file} line {number}")
                    chosen = zlib.crc32(line.encode()) % HELD_OUT_SHARE == 0
                    (self._held_out if chosen else self._rows).append(row)
        if not self._rows or not self._held_out:
            raise ValueError(
                f"{folder}: {len(self._rows)} prompts to learn from and {len(self._held_out)} held "
                "out in its *.jsonl files; add prompts until there are some of both"
            )
        self._rows.sort(key=lambda row: len(row[1]))

    def batch(self, index: int, size: int) -> Asking | None:
        """See :class:`Prompts`. A batch may be smaller: its prompts have equally many images."""
        chunks = list(self._chunks(size))
        turn, place = divmod(index, len(chunks))
        temperatures = tuple(dict.fromkeys(TEMPERATURES))
        if turn == len(temperatures):
            return None
        return Asking([open_row(row) for row in chunks[place]], temperatures[turn])

    def held_out(self, count: int) -> list[Asked]:
        return [open_row(row) for row in self._held_out[:count]]

    def _chunks(self, size: int) -> Iterator[list[tuple[str, list[Path]]]]:
        start = 0
        for end in range(1, len(self._rows) + 1):
            full = end - start == size or end == len(self._rows)
            if full or len(self._rows[end][1]) != len(self._rows[start][1]):
                yield self._rows[start:end]
                start = end


def read_row(line: str, folder: Path, where: str) -> tuple[str, list[Path]]:
    """Prompt and image files of a line of a folder's ``*.jsonl``.

    Raises:
        ValueError: it is none; the message begins with ``where``.
    """
    try:
        row = json.loads(line)
        names = row["images"] if "images" in row else [row["image"]]
        prompt, images = str(row["prompt"]), [folder / name for name in names]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: expected {{"image": file, "prompt": text}} or {{"images": [file, …], '
            f'"prompt": text}}: {error!r}'
        ) from error
    for image in images:
        if not image.is_file():
            raise ValueError(f"{where}: there is no image {image}")
    return prompt, images


def open_row(row: tuple[str, list[Path]]) -> Asked:
    """The prompt with its images."""
    prompt, files = row
    parts = [*({"type": "image"} for _ in files), {"type": "text", "text": prompt}]
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
    return Asked([{"role": "user", "content": parts}], images)
