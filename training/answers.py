"""A verifier answers prompts itself, through the engine: what a drafter is distilled from.

An answer is a function of the prompts, the seed and the number of its shard, so a run that was cut
off goes on with the first shard that is missing, and the shards are the same as without the
interruption. Knows nothing of drafters.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

import specdec
from specdec.training.prompts import (
    Asked,
    Asking,
    Prompts,
    answer_key,
    content,
    model_inputs,
)
from specdec.training.shards import Answer, AnswerShards
from specdec.training.skipped import Skipped, first_of
from specdec.verifiers.spec import read_spec


class Answered(NamedTuple):
    """The answers to a batch of prompts, and what was left out of it."""

    answers: list[Answer]
    skipped: list[Skipped]


@dataclass(frozen=True)
class Teacher:
    """A verifier that answers prompts.

    Attributes:
        model: the verifier.
        processor: its processor.
        max_new_tokens: longest answer; a longer one is cut there.
        top: how many of its probabilities are kept at each place.
        max_length: most tokens of a prompt and its longest answer together; ``None`` is as many as
            the model has positions for.
    """

    model: PreTrainedModel
    processor: Any  # a transformers processor; their classes share no useful base
    max_new_tokens: int = 160
    top: int = 8
    max_length: int | None = None

    def inputs(self, asked: Sequence[Asked]) -> Mapping[str, Any]:
        """What ``model.generate`` takes for prompts with equally many images, padded on the left.

        Raises:
            ValueError: prompts and verifier do not go together; the message names both.
        """
        sides = f"{read_spec(self.model).name} and prompts such as {asked[0].where or 'the first'}"
        images = len(asked[0].images)
        try:
            inputs = model_inputs(self.model, self.processor, asked)
        except Exception as error:  # whatever a processor or its template raises
            name = type(self.processor).__name__
            raise ValueError(f"{sides} ({images} images): {name} refuses: {error}") from error
        spec = read_spec(self.model)
        ids = inputs["input_ids"]
        visual = torch.tensor(sorted(spec.visual_token_ids), dtype=torch.long, device=ids.device)
        seen = torch.isin(ids, visual)
        if (largest := int(ids[~seen].max())) >= spec.vocab_size:
            raise ValueError(
                f"{sides}: the processor's tokens go up to {largest}, the verifier has a "
                f"vocabulary of {spec.vocab_size}"
            )
        if images and not seen.any(-1).all():
            raise ValueError(
                f"{sides}: there are {images} images, but the prompt as the processor has it holds "
                f"none of the verifier's visual tokens {visual.tolist()}"
            )
        return inputs

    def check(self, prompts: Prompts) -> None:
        """Try one prompt of each kind.

        Raises:
            ValueError: prompts and verifier do not go together; the message names both.
        """
        for asked in prompts.kinds():
            inputs = self.inputs([asked])
            if inputs["input_ids"].shape[1] + self.max_new_tokens > self._room:
                continue  # too long a prompt is left out, whatever its kind
            try:
                specdec.generate(self.model, **inputs, do_sample=False, max_new_tokens=1)
            except (ValueError, RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{read_spec(self.model).name} cannot read prompts such as "
                    f"{asked.where or 'the first'}, with {len(asked.images)} images: {error}"
                ) from error

    def answer(self, asking: Asking, seed: int) -> Answered:
        """Answer a batch; ``seed`` settles what is sampled.

        Raises:
            ValueError: see :meth:`inputs`.
        """
        asked, inputs, skipped = self._usable(asking.asked)
        answers: list[Answer] = []
        if not asked:
            return Answered(answers, skipped)
        how: dict[str, Any] = {"do_sample": False}
        if asking.temperature > 0:
            how = {"do_sample": True, "temperature": asking.temperature, "top_k": 0, "top_p": 1.0}
        recorder = _Recorder(self.top)
        # No verifier is kept for the next batch: what one finds in its cache changes sums a little,
        # and with them, now and then, an answer.
        rows = specdec.generate(
            self.model,
            **inputs,
            **how,
            generator=torch.Generator().manual_seed(seed),
            max_new_tokens=self.max_new_tokens,
            logits_processor=LogitsProcessorList([recorder]),
        ).cpu()
        padded, mask = inputs["input_ids"].shape[1], inputs["attention_mask"].bool().cpu()
        spec = read_spec(self.model)
        for each, row, real, record in zip(asked, rows, mask, recorder.rows, strict=True):
            prompt, said = row[:padded][real], row[padded:][: len(record.ids)].tolist()
            if not set(said) - spec.eos_token_ids:
                skipped.append(Skipped(each.where, "the answer is empty"))
            elif not spec.visual_token_ids.isdisjoint(said):
                skipped.append(Skipped(each.where, "the answer holds a visual token"))
            else:
                tokens = torch.cat([prompt, torch.tensor(said)])
                key = answer_key(each, asking.temperature)
                ids, p = torch.stack(record.ids), torch.stack(record.p)
                answer = Answer(key, each, asking.temperature, tokens, len(prompt), ids, p)
                answers.append(answer)
        return Answered(answers, skipped)

    @property
    def _room(self) -> int:
        if self.max_length is not None:
            return self.max_length
        return int(self.model.config.get_text_config(decoder=True).max_position_embeddings)

    def _usable(
        self, asked: Sequence[Asked]
    ) -> tuple[list[Asked], Mapping[str, Any], list[Skipped]]:
        """Those that the processor takes and that leave room for an answer, with their inputs."""
        usable, skipped = list(asked), list[Skipped]()
        if not usable:
            return usable, {}, skipped
        try:
            inputs = self.inputs(usable)
        except ValueError:
            usable, skipped = self._taken_alone(asked)
            if not usable:
                raise  # not one prompt, but all of them
            inputs = self.inputs(usable)
        lengths = inputs["attention_mask"].sum(-1).tolist()
        most = self._room - self.max_new_tokens
        for each, length in zip(usable, lengths, strict=True):
            if length > most:
                why = f"the prompt has {length} tokens, at most {most} leave room for an answer"
                skipped.append(Skipped(each.where, why))
        short = [each for each, length in zip(usable, lengths, strict=True) if length <= most]
        if short and len(short) < len(usable):
            inputs = self.inputs(short)
        return short, inputs, skipped

    def _taken_alone(self, asked: Sequence[Asked]) -> tuple[list[Asked], list[Skipped]]:
        usable, skipped = list[Asked](), list[Skipped]()
        for each in asked:
            try:
                self.inputs([each])
                usable.append(each)
            except ValueError as error:
                skipped.append(Skipped(each.where, str(error)))
        return usable, skipped


def collect(
    teacher: Teacher,
    prompts: Prompts,
    shards: AnswerShards,
    *,
    wanted: int,
    batch: int,
    minutes: float,
    seed: int = 0,
    avoid: Collection[Asked] = (),
) -> Iterator[tuple[int, float]]:
    """Answer until ``wanted`` answers are there or ``minutes`` are spent, earlier runs included.

    The same prompt about the same pixels is answered once at each temperature.

    Args:
        avoid: prompts that are not to be answered, such as those that are held out.

    Yields:
        after every shard the number of answers and the minutes spent.

    Raises:
        ValueError: there is not a single answer, for want of usable prompts.
    """
    held_out = {content(each) for each in avoid}
    total, seconds, known = len(shards), shards.seconds, set[str]()
    for index in count():
        if shards.path(index).exists():
            # Only what earlier shards hold: a resumed run must know what an uninterrupted one does.
            known |= set(shards.facts(index).keys)
            continue
        if total >= wanted or seconds >= 60 * minutes:
            return
        began = time.perf_counter()
        asking = prompts.batch(index, batch)
        if asking is None:
            break
        fresh = dict[str, Asked]()
        for each in asking.asked:
            if content(each) not in held_out:
                fresh.setdefault(answer_key(each, asking.temperature), each)
        asked = [each for key, each in fresh.items() if key not in known]
        answers, skipped = teacher.answer(asking._replace(asked=asked), seed + index)
        took = time.perf_counter() - began
        shards.write(index, answers, took, [*asking.skipped, *skipped])
        known |= {answer.key for answer in answers}
        total, seconds = total + len(answers), seconds + took
        yield total, seconds / 60
    if total == 0:
        why = first_of([*prompts.skipped, *shards.skipped])
        raise ValueError(f"no prompt has an answer to learn from{why}")


class _Record:
    """What was recorded of one row: per token its ids and probabilities, ``(K,)`` each."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.p: list[Tensor] = []


class _Recorder(LogitsProcessor):
    """Notes the most probable tokens and changes nothing. transformers puts it before what applies
    a temperature; the engine asks it for one row, or a fork of it for each.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._own = _Record()
        self._forks: list[_Record] = []

    @property
    def rows(self) -> list[_Record]:
        """The rows' records, in order."""
        return self._forks or [self._own]

    def fork(self) -> _Recorder:
        """The recorder of the next row."""
        fork = _Recorder(self._top)
        self._forks.append(fork._own)
        return fork

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        p, ids = scores[0].float().softmax(-1).topk(min(self._top, scores.shape[-1]))
        self._own.ids.append(ids.cpu())
        self._own.p.append(p.cpu())
        return scores
