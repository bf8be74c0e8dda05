"""A verifier's own answers as shards of token ids: what a drafter is distilled from.

A shard is one batch of prompts, asked at one temperature. It appears under its name only when it is
complete, so a run that was cut off goes on with the first shard that is missing, and the shards are
the same as without the interruption. Knows nothing of drafters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from specdec.training.prompts import Asked, Asking, Prompts, model_inputs
from specdec.verifiers.spec import read_spec


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
