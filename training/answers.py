"""A verifier's own answers as shards of token ids: what a drafter is distilled from.

A shard is one batch of prompts, asked at one temperature. It appears under its name only when it is
complete, so a run that was cut off goes on with the first shard that is missing, and the shards are
the same as without the interruption. Knows nothing of drafters.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from specdec.verifiers.spec import read_spec

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


class Example(NamedTuple):
    """An answer as a drafter sees it: A tokens behind a prompt without visual tokens.

    ``tokens``: int64 ``(P + A,)``; ``top_ids`` int64 and ``top_p`` fp32 ``(A, K)``: the verifier's
    K most probable tokens at each place of the answer, most probable first, at temperature 1.
    """

    tokens: Tensor
    prompt_length: int
    top_ids: Tensor
    top_p: Tensor


@dataclass(frozen=True)
class Teacher:
    """A verifier that answers prompts.

    Attributes:
        model: the verifier.
        processor: its processor.
        max_new_tokens: longest answer.
        top: how many of its probabilities are kept at each place.
    """

    model: PreTrainedModel
    processor: Any  # a transformers processor; their classes share no useful base
    max_new_tokens: int = 160
    top: int = 8

    def inputs(self, asked: Sequence[Asked]) -> Mapping[str, Any]:
        """What ``model.generate`` takes, padded on the left."""
        return model_inputs(self.model, self.processor, asked)

    @torch.no_grad()
    def answer(self, asking: Asking, seed: int) -> list[Example]:
        """Answer a batch; ``seed`` settles what is sampled."""
        inputs, recorder = self.inputs(asking.asked), _Recorder(self.top)
        # Any: generate comes from a mixin that PreTrainedModel does not declare.
        model: Any = self.model
        how: dict[str, Any] = {"do_sample": False}
        if asking.temperature > 0:
            how = {"do_sample": True, "temperature": asking.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            rows = model.generate(
                **inputs,
                **how,
                max_new_tokens=self.max_new_tokens,
                logits_processor=LogitsProcessorList([recorder]),
            ).cpu()
        padded = inputs["input_ids"].shape[1]
        visual, eos = _special_ids(self.model)
        mask = inputs["attention_mask"].bool().cpu()
        top_ids, top_p = torch.stack(recorder.ids, 1), torch.stack(recorder.p, 1)  # (B, A, K)
        examples = []
        for row, real, ids, p in zip(rows, mask, top_ids, top_p, strict=True):
            prompt = row[:padded][real]
            prompt = prompt[~torch.isin(prompt, visual)]
            answer = row[padded:]
            ends = torch.isin(answer, eos).nonzero()
            length = int(ends[0]) + 1 if len(ends) else len(answer)
            tokens = torch.cat([prompt, answer[:length]])
            examples.append(Example(tokens, len(prompt), ids[:length], p[:length]))
        return examples


class Shards:
    """The answers in a folder.

    Args:
        folder: created when the first shard is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, index: int) -> Path:
        """The file of the shard of this number."""
        return self.folder / f"answers-{index:05d}.safetensors"

    def write(self, index: int, examples: Sequence[Example], seconds: float) -> None:
        """Keep a batch that took ``seconds`` to answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "tokens": torch.cat([e.tokens for e in examples]).int(),
            "lengths": torch.tensor([len(e.tokens) for e in examples]),
            "prompt_lengths": torch.tensor([e.prompt_length for e in examples]),
            "top_ids": torch.cat([e.top_ids for e in examples]).int(),
            "top_p": torch.cat([e.top_p for e in examples]).half(),
        }
        unfinished = self.path(index).with_suffix(".tmp")
        save_file(tensors, unfinished, {"seconds": repr(seconds)})
        unfinished.replace(self.path(index))

    def read(self) -> tuple[list[Example], float]:
        """All answers, and the seconds that they took."""
        examples, seconds = list[Example](), 0.0
        for path in sorted(self.folder.glob("answers-*.safetensors")):
            with safe_open(path, "pt") as file:
                seconds += float(file.metadata()["seconds"])
                part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
            lengths, prompts = part["lengths"].tolist(), part["prompt_lengths"].tolist()
            told = [length - prompt for length, prompt in zip(lengths, prompts, strict=True)]
            examples += map(
                Example,
                part["tokens"].long().split(lengths),
                prompts,
                part["top_ids"].long().split(told),
                part["top_p"].float().split(told),
            )
        return examples, seconds


def collect(
    teacher: Teacher,
    prompts: Prompts,
    shards: Shards,
    *,
    wanted: int,
    batch: int,
    minutes: float,
    seed: int = 0,
) -> Iterator[tuple[int, float]]:
    """Answer until ``wanted`` answers are there or ``minutes`` are spent, earlier runs included.

    Yields:
        after every shard the number of answers and the minutes spent.
    """
    examples, seconds = shards.read()
    count, index = len(examples), 0
    while count < wanted and seconds < 60 * minutes:
        while shards.path(index).exists():
            index += 1
        began = time.perf_counter()
        asking = prompts.batch(index, batch)
        if asking is None:
            return
        answered = teacher.answer(asking, seed + index)
        took = time.perf_counter() - began
        shards.write(index, answered, took)
        count, seconds = count + len(answered), seconds + took
        yield count, seconds / 60


class _Recorder(LogitsProcessor):
    """Notes the most probable tokens and changes nothing. transformers calls it before any
    temperature is applied.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self.ids: list[Tensor] = []
        self.p: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        p, ids = scores.float().softmax(-1).topk(min(self.top, scores.shape[-1]))
        self.ids.append(ids.cpu())
        self.p.append(p.cpu())
        return scores


def _special_ids(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Ids of visual placeholders, and of tokens that end an answer."""
    spec = read_spec(model)
    return torch.tensor(sorted(spec.visual_token_ids)), torch.tensor(sorted(spec.eos_token_ids))


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
