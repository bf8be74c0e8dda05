"""Prompts to answer, batch by batch, and what of them cannot be used.

Where users' own prompts come from is `training.sources`. Knows nothing of who answers, or what
for.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image
from transformers import PreTrainedModel

from specdec.training.skipped import Skipped

TEMPERATURES = (0.0, 1.0, 0.0, 0.7)  # of successive batches
AT_LENGTH = "Answer in detail, at length."


class Asked(NamedTuple):
    """A prompt.

    ``messages`` is in the form that ``processor.apply_chat_template`` takes, its images named but
    not contained; they are ``images``, in order. ``task``: what kind of question it is, if that is
    known. ``sources``: where each image can be read again, a file's path or its encoded bytes;
    empty if they were made here. ``where``: what to call the prompt in a message.
    """

    messages: list[dict[str, Any]]  # Any: transformers' chat form
    images: list[Image.Image]
    task: str = ""
    sources: Sequence[str | bytes] = ()
    where: str = ""


class Asking(NamedTuple):
    """Prompts to be answered together, with equally many images each; and what could not be read
    of those that belong to them.
    """

    asked: list[Asked]
    temperature: float
    skipped: Sequence[Skipped] = ()


class Prompts(Protocol):
    """Where prompts come from."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What was left out so far: of what was read at the beginning, and of what is held out."""

    def batch(self, index: int, size: int) -> Asking | None:
        """The batch of this number, always the same; ``None`` behind the last one."""

    def held_out(self, count: int) -> list[Asked]:
        """Up to ``count`` prompts that no batch holds."""

    def kinds(self) -> list[Asked]:
        """One prompt of each kind, to see whether a verifier takes it."""


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


class EmbeddedPrompts:
    """Prompts of the embedded LVLM: its generator's training split, without end.

    Each batch is of one task, so its answers are about equally long. Needs the ``train`` extra.

    Args:
        tasks: names of the tasks to ask about; none is those that the shipped model answers well.

    Raises:
        ValueError: an unknown task.
    """

    skipped: Sequence[Skipped] = ()

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        from specdec.training import dialogues, target

        if unknown := set(tasks) - set(dialogues.TASK_NAMES):
            known = ", ".join(dialogues.TASK_NAMES)
            raise ValueError(f"unknown tasks {', '.join(sorted(unknown))}; known: {known}")
        self.tasks = tuple(tasks) or target.SHIPPED

    def batch(self, index: int, size: int) -> Asking:
        """See :class:`Prompts`."""
        from specdec.training import target

        turn, place = divmod(index, len(self.tasks))
        task, temperature = self.tasks[place], TEMPERATURES[turn % len(TEMPERATURES)]
        made = target.training_split(size, seed=index + 1, tasks=(task,))
        asked = [
            Asked(s.messages, s.images, s.task, where=f"generator, {task} {index}.{i}")
            for i, s in enumerate(made)
        ]
        return Asking(asked, temperature)

    def held_out(self, count: int) -> list[Asked]:
        """See :class:`Prompts`."""
        from specdec.training import target

        made = target.held_out(count, 1, self.tasks)
        return [Asked(s.messages, s.images, s.task) for s in made]

    def kinds(self) -> list[Asked]:
        """See :class:`Prompts`: one of each task."""
        return [self.batch(place, 1).asked[0] for place in range(len(self.tasks))]


class AtLength:
    """The same prompts, with a request to answer at length behind each.

    Args:
        prompts: the prompts.
        suffix: what is added to the text of the user's last turn.
    """

    def __init__(self, prompts: Prompts, suffix: str = AT_LENGTH) -> None:
        self._prompts = prompts
        self._suffix = suffix

    @property
    def skipped(self) -> Sequence[Skipped]:
        """See :class:`Prompts`."""
        return self._prompts.skipped

    def batch(self, index: int, size: int) -> Asking | None:
        """See :class:`Prompts`."""
        asking = self._prompts.batch(index, size)
        return asking and asking._replace(asked=self._longer(asking.asked))

    def held_out(self, count: int) -> list[Asked]:
        """See :class:`Prompts`."""
        return self._longer(self._prompts.held_out(count))

    def kinds(self) -> list[Asked]:
        """See :class:`Prompts`."""
        return self._longer(self._prompts.kinds())

    def _longer(self, asked: Iterable[Asked]) -> list[Asked]:
        return [each._replace(messages=self._extended(each.messages)) for each in asked]

    def _extended(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        *before, last = messages
        *parts, text = last["content"]
        if text["type"] != "text":  # the images come last
            return [*before, last | {"content": [*parts, text, text_part(self._suffix)]}]
        longer = text_part(f"{text['text']} {self._suffix}")
        return [*before, last | {"content": [*parts, longer]}]


def text_part(text: str) -> dict[str, str]:
    """A text in the content of a message."""
    return {"type": "text", "text": text}


def content(asked: Asked) -> str:
    """Hex digest of a prompt's messages and pixels, whatever its files are called."""
    digest = hashlib.sha256(json.dumps(asked.messages, sort_keys=True).encode())
    for image in asked.images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def answer_key(asked: Asked, temperature: float) -> str:
    """Hex digest of what an answer is an answer to: :func:`content` and temperature."""
    return hashlib.sha256(f"{content(asked)} {temperature!r}".encode()).hexdigest()[:32]


def read_row(line: str, folder: Path, where: str) -> tuple[str, list[Path]]:
    """Prompt and image files of a line of a folder's ``*.jsonl``.

    Raises:
        ValueError: it is none; the message begins with ``where``.
    """
    try:
        row = json.loads(line)
        names = row["images"] if "images" in row else [row["image"]]
        prompt, images = row["prompt"], [folder / name for name in names]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{where}: expected {{"image": file, "prompt": text}} or {{"images": [file, …], '
            f'"prompt": text}}: {error!r}'
        ) from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: the prompt is empty or no text: {prompt!r}")
    for image in images:
        if not image.is_file():
            raise ValueError(f"{where}: there is no image {image}")
    return prompt, images


def open_row(row: tuple[str, list[Path]]) -> Asked:
    """The prompt with its images.

    Raises:
        ValueError: an image cannot be read.
    """
    prompt, files = row
    sources = [str(file.resolve()) for file in files]
    return with_images(prompt, sources)


def with_images(prompt: str, sources: Sequence[str | bytes], where: str = "") -> Asked:
    """A prompt behind its images.

    Raises:
        ValueError: an image cannot be read.
    """
    parts = [*({"type": "image"} for _ in sources), text_part(prompt)]
    return opened([{"role": "user", "content": parts}], sources, where)


def opened(
    messages: list[dict[str, Any]],  # Any: transformers' chat form
    sources: Sequence[str | bytes],
    where: str = "",
) -> Asked:
    """A conversation with its images.

    Raises:
        ValueError: an image cannot be read.
    """
    images = [open_image(source) for source in sources]
    return Asked(messages, images, sources=sources, where=where)


def open_image(source: str | bytes) -> Image.Image:
    """The RGB image of a file, or of its encoded bytes.

    Raises:
        ValueError: it cannot be read.
    """
    name = source if isinstance(source, str) else f"of {len(source)} bytes"
    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as image:
            return image.convert("RGB")
    except Exception as error:  # whatever a decoder raises over broken bytes
        raise ValueError(f"image {name} cannot be read: {error}") from error
