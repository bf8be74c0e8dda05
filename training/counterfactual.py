"""Which tokens of a verifier's answers depend on the image?

An answer is read again with the image of another question, and with a blank one. A token depends on
the image if the verifier's argmax there changes with either. Answers are read by the verifier that
serves them, as one chain behind the prompt, so what is noted beside the labels is what a step of
the engine finds. Knows nothing of what is made of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from specdec.arguments import prepare
from specdec.interfaces import Prompt, Verified
from specdec.sampling import total_variation
from specdec.training.prompts import Asked, model_inputs
from specdec.tree import DraftTree, chain
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.spec import read_spec


class Answered(NamedTuple):
    """A question and its answer. ``prompt``: int64 ``(P,)``, visual placeholders included;
    ``answer``: int64 ``(A,)``, with the token that ended it.
    """

    question: Asked
    prompt: Tensor
    answer: Tensor


class Behind(NamedTuple):
    """What a verifier says about an answer of A tokens.

    Attributes:
        logits: ``(A, V)``, of each of its tokens.
        hidden: ``(A - 1, H)``, ``None`` if the verifier gives none. The first token follows from
            the prompt, before there is a tree, so there is none for it.
        visual_mass: float32 ``(A - 1, heads of all layers)``, likewise.
    """

    logits: Tensor
    hidden: Tensor | None
    visual_mass: Tensor | None


class Judged(NamedTuple):
    """An answer of A tokens, on the CPU.

    Attributes:
        argmax: int64 ``(A,)``: the verifier's, with the right image.
        dependent: bool ``(A,)``: whether it changes with the swapped or the blank image.
        drafted: int64 ``(A,)``: the drafter's argmax. A *mismatch* is where it is another one.
        divergence: float32 ``(A,)``: total variation between their distributions.
        hidden: see :class:`Behind`.
        visual_mass: see :class:`Behind`.
    """

    argmax: Tensor
    dependent: Tensor
    drafted: Tensor
    divergence: Tensor
    hidden: Tensor | None
    visual_mass: Tensor | None

    @property
    def mismatched(self) -> Tensor:
        """bool ``(A,)``."""
        return self.argmax != self.drafted


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    processor: Any,  # a transformers processor; their classes share no useful base
    questions: Sequence[Asked],
    *,
    max_new_tokens: int = 160,
    batch: int = 32,
    temperature: float = 0.0,
) -> list[Answered]:
    """The verifier's answers, in order: greedy, or sampled with torch's global generator."""
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    eos = torch.tensor(sorted(read_spec(model).eos_token_ids))
    done: dict[int, Answered] = {}
    for chunk in _chunks(questions, batch):
        inputs = model_inputs(model, processor, [questions[i] for i in chunk])
        # Any: generate comes from a mixin that PreTrainedModel does not declare.
        generator: Any = model
        rows = generator.generate(**inputs, **how, max_new_tokens=max_new_tokens).cpu()
        padded = inputs["input_ids"].shape[1]
        mask = inputs["attention_mask"].bool().cpu()
        for i, row, real in zip(chunk, rows, mask, strict=True):
            said = row[padded:]
            ends = torch.isin(said, eos).nonzero()
            length = int(ends[0]) + 1 if len(ends) else len(said)
            done[i] = Answered(questions[i], row[:padded][real], said[:length])
    return [done[i] for i in range(len(questions))]


@torch.no_grad()
def read(
    verifier: TransformersVerifier,
    processor: Any,
    answered: Sequence[Answered],
    shown: Sequence[Asked],
    *,
    batch: int = 32,
) -> Iterator[tuple[int, Behind]]:
    """What the verifier says about each answer when the images are those of ``shown`` instead.

    Yields:
        which answer, in no particular order, and what lies behind its tokens, on the verifier's
        device.
    """
    for chunk in _chunks([each.question for each in answered], batch):
        asked = [answered[i].question._replace(images=shown[i].images) for i in chunk]
        inputs = dict(model_inputs(verifier.model, processor, asked))
        prepared = prepare(verifier.model, inputs | {"max_new_tokens": 1})
        prompt = Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)
        longest = max(len(answered[i].answer) for i in chunk)
        prefilled = verifier.prefill(prompt, room=longest)
        handles, first = prefilled.handles, prefilled.logits
        try:
            # Behind the last token there is nothing, and an answer of one has no tree.
            fed = [answered[i].answer[:-1].tolist() for i in chunk]
            trees = [DraftTree(chain(len(part) - 1), tuple(part)) for part in fed if part]
            grown = [handle for handle, part in zip(handles, fed, strict=True) if part]
            verified = verifier.verify(grown, trees) if grown else Verified(first[:0], ())
            logits, masses, hidden = verified.logits, verified.visual_mass, verified.hidden
            mass = torch.cat(list(masses), dim=1) if masses else None
            counts = [len(part) for part in fed]
            parts = [
                [None] * len(fed) if every is None else every.split(counts)
                for every in (logits, hidden, mass)
            ]
            for row, i in enumerate(chunk):
                rest, state, share = (part[row] for part in parts)
                assert rest is not None
                yield i, Behind(torch.cat([first[row : row + 1], rest]), state, share)
        finally:
            for handle in handles:
                verifier.release(handle)


def judge(
    verifier: TransformersVerifier,
    processor: Any,
    drafter: PreTrainedModel,
    answered: Sequence[Answered],
    *,
    batch: int = 32,
) -> list[Judged]:
    """Judge answers, in order; ``drafter`` is a text-only one.

    Raises:
        ValueError: see :func:`swapped`.
    """
    questions = [each.question for each in answered]
    others: list[list[Tensor]] = [[] for _ in answered]
    for view in (swapped(questions), blanked(questions)):
        for i, behind in read(verifier, processor, answered, view, batch=batch):
            others[i].append(behind.logits.argmax(-1))
    judged: dict[int, Judged] = {}
    visual = verifier.spec.visual_token_ids
    for i, behind in read(verifier, processor, answered, questions, batch=batch):
        q = drafter_logits(drafter, answered[i], visual).to(behind.logits.device)
        argmax = behind.logits.argmax(-1)
        p = behind.logits.float().softmax(-1)
        judged[i] = Judged(
            argmax.cpu(),
            dependent(argmax, others[i]).cpu(),
            q.argmax(-1).cpu(),
            total_variation(p, q.float().softmax(-1)).float().cpu(),
            None if behind.hidden is None else behind.hidden.cpu(),
            None if behind.visual_mass is None else behind.visual_mass.cpu(),
        )
    return [judged[i] for i in range(len(answered))]


def dependent(argmax: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Whether the argmax ``(A,)`` is another one with any other image: bool ``(A,)``."""
    return torch.stack([other != argmax for other in others]).any(0)


@torch.no_grad()
def drafter_logits(drafter: PreTrainedModel, answered: Answered, visual: frozenset[int]) -> Tensor:
    """The drafter's logits ``(A, W)`` at each token of an answer; it reads the prompt without
    visual tokens.
    """
    hidden = torch.tensor(sorted(visual), dtype=torch.long)
    prompt = answered.prompt[~torch.isin(answered.prompt, hidden)]
    ids = torch.cat([prompt, answered.answer[:-1]])[None].to(drafter.device)
    logits: Tensor = drafter(input_ids=ids, use_cache=False).logits
    return logits[0, len(prompt) - 1 :]


def swapped(questions: Sequence[Asked]) -> list[Asked]:
    """Each question with the images of the next one of its task that shows something else.

    Raises:
        ValueError: there is none with as many images; the message says which task it is.
    """
    result = []
    for question, other in zip(questions, _others(questions), strict=True):
        if other is None:
            raise ValueError(
                f"task {question.task!r} has no two questions with {len(question.images)} images "
                "that differ; swapping images takes two"
            )
        result.append(question._replace(images=questions[other].images))
    return result


def comparable(questions: Sequence[Asked]) -> list[Asked]:
    """Those that can be swapped."""
    others = _others(questions)
    return [question for question, j in zip(questions, others, strict=True) if j is not None]


def _others(questions: Sequence[Asked]) -> list[int | None]:
    """For each the next one of its task with as many images, but not the same ones."""
    alike: dict[tuple[str, int], list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        alike[question.task, len(question.images)].append(i)
    pixels = [[(image.size, image.tobytes()) for image in each.images] for each in questions]
    others: list[int | None] = [None] * len(questions)
    for members in alike.values():
        for place, i in enumerate(members):
            following = [*members[place + 1 :], *members[:place]]
            others[i] = next((j for j in following if pixels[j] != pixels[i]), None)
    return others


def blanked(questions: Sequence[Asked]) -> list[Asked]:
    """Each question with white images of the same size."""
    return [
        q._replace(images=[Image.new("RGB", image.size, "white") for image in q.images])
        for q in questions
    ]


def _chunks(questions: Sequence[Asked], batch: int) -> list[list[int]]:
    """Indices in batches of one task each: like lengths, equally many images."""
    keys = [(len(question.images), question.task) for question in questions]
    order = sorted(range(len(questions)), key=keys.__getitem__)
    chunks: list[list[int]] = []
    for i in order:
        if (
            chunks
            and len(chunks[-1]) < batch
            and len(questions[chunks[-1][0]].images) == len(questions[i].images)
        ):
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks
