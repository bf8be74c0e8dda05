"""What a server is asked under load, and whether what it answers is right.

Prompts are the shipped questions in OpenAI's form: about one or two images, several about the same
image, text alone, short and long. The right answer to each is what transformers' `generate` says to
it alone. Where two tokens are tied for the verifier itself, either is right, and so is what it says
behind either. Knows nothing of HTTP.
"""

from __future__ import annotations

import base64
import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdec import demo
from specdec.eval.suite import Asked, model_inputs
from specdec.eval.timing import Inputs
from specdec.training.prompts import text_part

SAME_IMAGE = 3  # questions about an image that several are asked about
_LONG = 12  # questions in a long text

Kind = Literal["same", "tied", "wrong"]


class Verdict(NamedTuple):
    """How an answer compares with the right one. ``gap``: the widest tie, in logits."""

    kind: Kind
    gap: float = 0.0


class Spoken(NamedTuple):
    """A prompt in both forms. ``kind`` names what is special about it."""

    kind: str
    asked: Asked
    messages: list[dict[str, Any]]  # Any: OpenAI's form, JSON


class Reference:
    """What the verifier answers to one prompt alone.

    Args:
        model: the verifier.
        tokenizer: its own.
        inputs: the prompt.
        longest: tokens of the longest answer that is asked for.
        bound: gap in logits below which two tokens are tied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        inputs: Inputs,
        longest: int,
        bound: float,
    ) -> None:
        self._model, self._tokenizer, self._inputs = model, tokenizer, inputs
        self._longest, self._bound = longest, bound

    @cached_property
    def tokens(self) -> list[int]:
        """The answer, up to the longest."""
        return self._greedy([], self._longest)

    def text(self, most: int) -> str:
        """Of an answer of at most so many tokens."""
        return self._said(self.tokens[:most])

    def finish(self, most: int) -> str:
        """Why such an answer ends."""
        return "stop" if self._ended(self.tokens[:most]) else "length"

    def judge(self, text: str, most: int, *, whole: bool) -> Verdict:
        """Compare an answer.

        Args:
            text: that was received.
            most: tokens that were asked for.
            whole: it ended by itself; else the beginning of the answer is right, too.
        """
        tokens, widest = self.tokens[:most], 0.0
        for _ in range(most + 1):
            right = self._said(tokens)
            if text == right or (not whole and right.startswith(text)):
                return Verdict("tied" if widest else "same", widest)
            place = self._common(tokens, text)
            if (tie := self._tie(tokens, place, text)) is None:
                return Verdict("wrong")
            token, gap = tie
            widest = max(widest, gap)
            tokens = [*tokens[:place], token]
            tokens += self._greedy(tokens, most - len(tokens))
        return Verdict("wrong")

    def _common(self, tokens: Sequence[int], text: str) -> int:
        """How many tokens the text begins with."""
        return next(
            (n for n in range(len(tokens), 0, -1) if text.startswith(self._said(tokens[:n]))), 0
        )

    def _tie(self, tokens: Sequence[int], place: int, text: str) -> tuple[int, float] | None:
        """Another token with which the text goes on, as good as the one there; and the gap."""
        if place == len(tokens):
            return None
        logits = self._logits(tokens[:place])
        gaps = logits.max() - logits
        for token in gaps.argsort().tolist():
            gap = float(gaps[token])
            if not gap < self._bound:
                return None
            if token != tokens[place] and text.startswith(self._said([*tokens[:place], token])):
                return token, max(gap, float(gaps[tokens[place]]), torch.finfo().tiny)
        return None

    def _greedy(self, prefix: Sequence[int], most: int) -> list[int]:
        """What the verifier says behind these tokens of an answer."""
        if most <= 0 or self._ended(prefix):
            return []
        generator: Any = self._model  # generate comes from a mixin that is not declared
        inputs = self._behind(prefix)
        out = generator.generate(**inputs, do_sample=False, max_new_tokens=most)
        said: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return said

    def _ended(self, tokens: Sequence[int]) -> bool:
        config = self._model.generation_config
        assert config is not None, "a model that generates has one"
        ends = config.eos_token_id
        return bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])

    @torch.no_grad()
    def _logits(self, prefix: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(**self._behind(prefix)).logits[0, -1].float()
        return logits

    def _behind(self, prefix: Sequence[int]) -> dict[str, Any]:
        """The prompt with these tokens of an answer behind it."""
        ids = self._inputs["input_ids"]
        ids = torch.cat([ids, torch.tensor([list(prefix)], dtype=ids.dtype)], dim=1)
        rest = {k: v for k, v in self._inputs.items() if k not in ("input_ids", "attention_mask")}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **rest}

    def _said(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


def prompts(count: int, seed: int = 0, folder: Path = demo.ASSETS) -> list[Spoken]:
    """So many different prompts, the same ones for the same seed."""
    rng = random.Random(seed)
    questions = demo.questions(folder)
    rng.shuffle(questions)
    kinds = _kinds(questions, rng)
    found = [next(kinds) for _ in range(count)]
    return [Spoken(kind, asked, _openai(asked)) for kind, asked in found]


def reference(
    model: PreTrainedModel,
    processor: Any,  # processors share no useful base
    asked: Asked,
    longest: int,
    bound: float,
) -> Reference:
    """The right answer to a prompt."""
    inputs = model_inputs(model, processor, [asked])
    return Reference(model, processor.tokenizer, inputs, longest, bound)


def _kinds(questions: Sequence[demo.Question], rng: random.Random) -> Iterator[tuple[str, Asked]]:
    """Prompts of every kind in turn, without end."""
    single = [each for each in questions if len(each.images) == 1]
    for turn, question in enumerate(itertools.cycle(questions)):
        kind = "two images" if len(question.images) > 1 else "image"
        yield kind, _asked(question.messages, question.images, question.task)
        for _ in range(SAME_IMAGE):
            other = rng.choice(single)
            yield "same image", _asked(other.messages, single[turn % len(single)].images[:1])
        text = rng.choice(questions).prompt
        yield "text", _asked([_user(text)], ())
        long = " ".join(each.prompt for each in rng.sample(questions, _LONG))
        yield "long text", _asked([_user(long)], ())
        said = {"role": "assistant", "content": [text_part(f"A square. {text}")]}
        first, again = rng.sample(single, 2)
        talk = [*first.messages, said, _user(again.prompt)]
        yield "conversation", _asked(talk, first.images)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [text_part(text)]}


def _asked(messages: list[dict[str, Any]], images: Sequence[Path], task: str = "") -> Asked:
    opened = [Image.open(path).convert("RGB") for path in images]
    return Asked(messages, opened, task, [str(path) for path in images])


def _openai(asked: Asked) -> list[dict[str, Any]]:
    """The conversation as OpenAI's clients send it."""
    sources = iter(asked.sources)
    return [{**turn, "content": _parts(turn["content"], sources)} for turn in asked.messages]


def _parts(content: Sequence[dict[str, Any]], sources: Iterator[str | bytes]) -> list[Any]:
    return [image_part(next(sources)) if part["type"] == "image" else part for part in content]


def image_part(source: str | bytes | Path) -> dict[str, Any]:
    """An image's file or its bytes, as OpenAI's clients send it."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
