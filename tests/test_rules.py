"""Logits processors and stopping criteria see what ``model.generate`` shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)

import specdec
from specdec.demo import load, questions
from specdec.tree import static
from support import families
from support.fake_drafters import GuessingDrafter

TREE = static((2, 2, 1))
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=3)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Three rows of different lengths, left-padded."""
    ids = torch.randint(2, 140, (3, 14), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 9)):
        mask[row, :padding], ids[row, :padding] = 0, families.PAD
    return {"input_ids": ids, "attention_mask": mask}


def first_row(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value[:1] for name, value in batch.items()}


def guesser(batch: dict[str, Tensor], truth: Tensor) -> GuessingDrafter:
    """Right most of the time, so that blocks end everywhere."""
    answers = {
        tuple(ids[mask == 1].tolist()): row[ids.shape[0] :].tolist()
        for ids, mask, row in zip(*batch.values(), truth, strict=True)
    }
    return GuessingDrafter(answers, right=0.8)


class Grammar(LogitsProcessor):
    """Allows tokens of one residue class after another, and what it allows depends on everything
    said: an automaton that advances with each call and breaks when the text is not its own."""

    def __init__(self, forks: list[Grammar] | None = None) -> None:
        self.states: list[int] | None = None
        self.texts: list[list[int]] = []
        self.forks = forks

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        texts = input_ids.tolist()
        if self.states is None:
            self.states = [0] * len(texts)
        else:
            for row, (text, before) in enumerate(zip(texts, self.texts, strict=True)):
                assert text[:-1] == before, "a call was left out, or it was another branch"
                if text[-1] != families.PAD:
                    assert text[-1] % 3 == self.states[row] % 3, "not what was allowed"
                self.states[row] += 1 + text[-1] % 2
        self.texts = texts
        allowed = torch.arange(scores.shape[1]) % 3 == torch.tensor(self.states)[:, None] % 3
        return scores.masked_fill(~allowed, -torch.inf)


class ForkingGrammar(Grammar):
    """The same, once for each row."""

    def fork(self) -> Grammar:
        return Grammar()


@pytest.mark.parametrize("rows", ["one", "several"])
@pytest.mark.parametrize("kind", [Grammar, ForkingGrammar])
def test_grammars_with_memory(
    model: PreTrainedModel, batch: dict[str, Tensor], kind: type[Grammar], rows: str
) -> None:
    """Calls for rejected branches, twice for a position, or of one row's memory for another."""
    inputs = first_row(batch) if rows == "one" else batch
    free = model.generate(
        **inputs, **GREEDY, logits_processor=LogitsProcessorList([Grammar()]), eos_token_id=None
    )
    eos = int(free[-1, 24])  # the last row, or the only one, ends in the middle
    plain = model.generate(
        **inputs, **GREEDY, logits_processor=LogitsProcessorList([Grammar()]), eos_token_id=eos
    )
    answers = {
        tuple(ids[mask == 1].tolist()): row[14:].tolist()
        for ids, mask, row in zip(*inputs.values(), free, strict=True)
    }
    fast = specdec.generate(
        model,
        **inputs,
        **GREEDY,
        logits_processor=LogitsProcessorList([kind()]),
        drafter=GuessingDrafter(answers, right=0.8),
        tree=TREE,
        eos_token_id=eos,
    )
    assert fast.tolist() == plain.tolist()
    drafts = kind is ForkingGrammar or rows == "one"
    assert (fast.stats.mean_acceptance_length > 1.5) == drafts
    assert (fast.stats.num_draft_tokens > 0) == drafts


class NothingAfter(LogitsProcessor):
    """A grammar that is complete with a token, and takes no calls after it."""

    def __init__(self, last: int) -> None:
        self.last = last

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self.last not in input_ids[0, 14:], "called behind the end"
        return scores


class StopAt(StoppingCriteria):
    """Stops at a token that is no end token of the model's."""

    def __init__(self, token: int, only_row: int | None = None) -> None:
        self.token = token
        self.only_row = only_row
        self.seen: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.seen.append((input_ids.tolist(), None if scores is None else len(scores)))
        if self.only_row is not None:
            stops = bool(input_ids[self.only_row, -1] == self.token)
            return torch.full((len(input_ids),), stops)
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("do_sample", [False, True])
def test_nothing_is_asked_behind_a_stop_inside_a_block(
    model: PreTrainedModel, batch: dict[str, Tensor], do_sample: bool
) -> None:
    inputs = first_row(batch)
    free = model.generate(**inputs, **GREEDY, eos_token_id=None)[0].tolist()
    for place in range(17, 23):
        out = specdec.generate(
            model,
            **inputs,
            max_new_tokens=24,
            do_sample=do_sample,
            top_k=1 if do_sample else None,
            drafter=model,
            logits_processor=LogitsProcessorList([NothingAfter(free[place])]),
            stopping_criteria=StoppingCriteriaList([StopAt(free[place])]),
        )
        assert out[0].tolist() == free[: free.index(free[place], 14) + 1]


@pytest.mark.parametrize("eos", [None, 140], ids=["no_eos", "eos"])
@pytest.mark.parametrize("only_row", [None, 1])
def test_criteria_see_the_batch(
    model: PreTrainedModel, batch: dict[str, Tensor], only_row: int | None, eos: int | None
) -> None:
    """Criteria that look at one row for all; that count calls; rows that go on until all have
    ended, where there is no end token."""
    free = model.generate(**batch, **GREEDY, eos_token_id=None)
    given = batch | GREEDY | {"eos_token_id": eos, "return_dict_in_generate": True}
    runs = []
    for drafter in (None, model):
        criterion = StopAt(int(free[1, 20]), only_row)
        options = given | {"stopping_criteria": StoppingCriteriaList([criterion])}
        options |= {"output_scores": True}
        if drafter is None:
            out = model.generate(**options)
        else:
            out = specdec.generate(model, drafter=drafter, **options)
        runs.append((out.sequences.tolist(), len(out.scores), criterion.seen))
    assert runs[0] == runs[1]


def test_stop_strings() -> None:
    """Each row for itself, and with drafts, where there is an end token; with none, rows that were
    stopped go on until all are."""
    model, processor, drafter = load()
    encode: Any = processor
    asked = [question for question in questions() if len(question.images) == 1][:2]
    inputs = encode(
        images=[[Image.open(question.images[0]).convert("RGB")] for question in asked],
        text=[
            processor.apply_chat_template(question.messages, add_generation_prompt=True)
            for question in asked
        ],
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    given: dict[str, Any] = {**inputs, "max_new_tokens": 40, "do_sample": False}
    given["tokenizer"] = encode.tokenizer
    free = model.generate(**given | {"eos_token_id": None})
    answers = processor.batch_decode(free[:, inputs["input_ids"].shape[1] :])
    given["stop_strings"] = [answers[0][25:31], answers[1][60:65]]
    for eos in (model.generation_config.eos_token_id, None):
        given["eos_token_id"] = eos
        plain = model.generate(**given)
        fast = specdec.generate(model, **given, drafter=drafter)
        assert fast.tolist() == plain.tolist()
        assert plain.shape[1] < free.shape[1]
        assert (fast.stats.num_draft_tokens > 0) == (eos is not None)


def test_time_runs_out(model: PreTrainedModel, batch: dict[str, Tensor]) -> None:
    out = specdec.generate(model, **batch, **GREEDY, max_time=0.0, drafter=model)
    assert out.shape[1] == 15


@pytest.mark.parametrize("rows", ["one", "several"])
@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.7},
        {"guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[7, 9, 11, 40]])},
        {"watermarking_config": WatermarkingConfig(bias=20.0, seeding_scheme="selfhash")},
        {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[5, 9, 700, 41])},
    ],
    ids=["guidance", "negative_prompt", "watermark", "synthid"],
)
def test_transformers_processors_with_memory(
    model: PreTrainedModel, batch: dict[str, Tensor], options: dict[str, Any], rows: str
) -> None:
    inputs = first_row(batch) if rows == "one" else batch
    if rows == "several" and "negative_prompt_ids" in options:
        options = options | {"negative_prompt_ids": options["negative_prompt_ids"].repeat(3, 1)}
    given = {**inputs, **GREEDY, "eos_token_id": None, **options}
    plain = model.generate(**given)
    fast = specdec.generate(model, **given, drafter=model, tree=TREE)
    assert fast.tolist() == plain.tolist()
    free = model.generate(**inputs, **GREEDY, eos_token_id=None)
    assert free.tolist() != plain.tolist()


def test_prefix_functions_are_asked_about_their_own_row(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> None:
    """A function that knows the text of each row breaks on another's."""
    lengths: list[tuple[int, int]] = []

    def allowed(row: int, ids: Tensor) -> list[int]:
        assert ids[:14].tolist() == batch["input_ids"][row].tolist()
        lengths.append((row, len(ids)))
        return [token for token in range(2, 140) if token % 5 == (row + len(ids)) % 5]

    given = {**batch, **GREEDY, "eos_token_id": None, "prefix_allowed_tokens_fn": allowed}
    plain, asked = model.generate(**given), sorted(lengths)
    lengths.clear()
    fast = specdec.generate(model, **given, drafter=guesser(batch, plain), tree=TREE)
    assert fast.tolist() == plain.tolist()
    assert sorted(lengths) == asked
    assert fast.stats.num_draft_tokens > 0


def sampling() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "temperature", {"temperature": 3.0, "top_k": 0}
    yield "top_k", {"top_k": 5, "temperature": 4.0}
    yield "top_p", {"top_p": 0.7, "temperature": 5.0, "top_k": 0}
    yield "min_p", {"min_p": 0.2, "temperature": 5.0, "top_k": 0}
    yield "typical", {"typical_p": 0.6, "temperature": 5.0, "top_k": 0}
    yield "epsilon", {"epsilon_cutoff": 0.004, "temperature": 3.0, "top_k": 0}
    yield "eta", {"eta_cutoff": 0.03, "temperature": 5.0, "top_k": 0}
    yield "repetition", {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2, "temperature": 6.0}


@pytest.mark.parametrize("options", [o for _, o in sampling()], ids=[n for n, _ in sampling()])
def test_scores_of_sampled_answers(
    model: PreTrainedModel, batch: dict[str, Tensor], options: dict[str, Any]
) -> None:
    """Along the answer that was drawn, the processed scores of every token are those that generate
    has there. Wrong temperature, order or prefix at any node of a tree would show."""
    out = specdec.generate(
        model,
        **batch,
        max_new_tokens=12,
        do_sample=True,
        eos_token_id=None,
        drafter=model,
        tree=TREE,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    for column, scores in enumerate(out.scores):
        ids = out.sequences[:, : 14 + column]
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, column), value=1)
        plain = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=1,
            do_sample=True,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        torch.testing.assert_close(scores, plain.scores[0], atol=1e-3, rtol=1e-4)
        drawn = out.sequences[:, 14 + column, None]
        assert scores.gather(1, drawn).isfinite().all()
    assert out.stats.num_accepted_draft_tokens > 0
