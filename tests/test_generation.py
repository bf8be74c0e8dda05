"""The drop-in: whatever ``model.generate`` returns, ``specdec.generate`` returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec.tree import static
from support import families
from support.fake_drafters import BrokenDrafter, GuessingDrafter

TREE = static((2, 2, 1))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.build("llava").model


@pytest.fixture(scope="module")
def text_model() -> PreTrainedModel:
    return families.causal_lm(0, layers=3)


@pytest.fixture(scope="module")
def padded() -> dict[str, Tensor]:
    """Three rows of different lengths, left-padded."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 140, (3, 14), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 5, 9)):
        mask[row, :padding] = 0
        ids[row, :padding] = families.PAD
    return {"input_ids": ids, "attention_mask": mask}


def both(model: PreTrainedModel, drafter: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """What transformers returns and what specdec returns."""
    plain = model.generate(**kwargs)
    return plain, specdec.generate(
        model, drafter=drafter or families.causal_lm(3), tree=TREE, **kwargs
    )


def test_ragged_rows_with_padding(text_model: PreTrainedModel, padded: dict[str, Tensor]) -> None:
    """Rows that advance at their own pace, one of which may end early."""
    truth = specdec.generate(text_model, **padded, drafter=None, max_new_tokens=40, do_sample=False)
    eos = int(truth[1, 14 + 12])  # ends row 1 in the middle of its answer
    answers = {
        tuple(ids[mask == 1].tolist()): row[14:].tolist()
        for ids, mask, row in zip(*padded.values(), truth, strict=True)
    }
    for drafter in (families.causal_lm(3), "ngram", GuessingDrafter(answers, right=0.8)):
        plain, fast = both(
            text_model, drafter, **padded, max_new_tokens=40, do_sample=False, eos_token_id=eos
        )
        assert fast.tolist() == plain.tolist()


def test_a_batch_equals_each_row_alone(
    text_model: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    together = specdec.generate(
        text_model, **padded, drafter="ngram", max_new_tokens=30, do_sample=False
    )
    for row in range(3):
        alone = padded["input_ids"][row][padded["attention_mask"][row] == 1][None]
        answer = specdec.generate(
            text_model, alone, drafter="ngram", max_new_tokens=30, do_sample=False
        )
        assert together[row, 14:].tolist() == answer[0, alone.shape[1] :].tolist()


@pytest.mark.parametrize("limit", range(1, 8))
def test_the_length_limit_cuts_inside_a_block(text_model: PreTrainedModel, limit: int) -> None:
    """A token too many or too few where an accepted block crosses the limit."""
    ids = torch.randint(2, 140, (1, 9))
    plain, fast = both(text_model, text_model, inputs=ids, max_new_tokens=limit, do_sample=False)
    assert fast.tolist() == plain.tolist()
    assert fast.shape[1] == 9 + limit


def test_eos_ends_an_answer_inside_a_block(text_model: PreTrainedModel) -> None:
    """The verifier itself drafts: every block is accepted whole, so the end falls inside one."""
    ids = torch.randint(2, 140, (1, 9))
    free = text_model.generate(ids, max_new_tokens=30, do_sample=False)[0, 9:].tolist()
    for place in range(4, 12):
        stop = [free[place], free[place + 1]]
        plain, fast = both(
            text_model,
            text_model,
            inputs=ids,
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=stop,
        )
        assert fast.tolist() == plain.tolist()


PROCESSORS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.4},
    "no_repeat": {"no_repeat_ngram_size": 2},
    "min_length": {"min_new_tokens": 12, "eos_token_id": list(range(2, 60))},
    "bad_words": {"bad_words_ids": [[18], [55, 18], [29]]},
    "forced_eos": {"forced_eos_token_id": 7},
    "suppressed": {"suppress_tokens": list(range(2, 90))},
    "encoder_repetition": {"encoder_repetition_penalty": 1.3},
}


@pytest.mark.parametrize("options", PROCESSORS.values(), ids=PROCESSORS)
def test_processors_see_the_right_prefix(
    text_model: PreTrainedModel, padded: dict[str, Tensor], options: dict[str, Any]
) -> None:
    """A processor that is given another branch's tokens, or the block's start for every node."""
    truth = text_model.generate(**padded, max_new_tokens=24, do_sample=False, **options)
    answers = {
        tuple(ids[mask == 1].tolist()): row[14:].tolist()
        for ids, mask, row in zip(*padded.values(), truth, strict=True)
    }
    drafter = GuessingDrafter(answers, right=0.8)
    plain, fast = both(text_model, drafter, **padded, max_new_tokens=24, do_sample=False, **options)
    assert fast.tolist() == plain.tolist()
    assert fast.stats.mean_acceptance_length > 1.5


class Recorder(LogitsProcessor):
    """Keeps what it was shown, and depends on it."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids[0].tolist())
        return scores.index_fill(1, torch.tensor([len(self.seen) % 140]), -1e9)


def test_a_processor_with_memory_is_called_as_by_generate(text_model: PreTrainedModel) -> None:
    """Once per emitted token, in order: calls for nodes that are not on the path would show."""
    ids = torch.randint(2, 140, (1, 9))
    records = []
    for run in ("plain", "fast"):
        recorder = Recorder()
        processors = LogitsProcessorList([recorder])
        options = {"max_new_tokens": 20, "do_sample": False, "logits_processor": processors}
        if run == "plain":
            text_model.generate(ids, **options)
        else:
            specdec.generate(text_model, ids, drafter=text_model, tree=TREE, **options)
        records.append(recorder.seen)
    assert records[0] == records[1]


class StopAfter(StoppingCriteria):
    """Stops behind the n-th token; counts its calls."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.lengths: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.lengths.append(input_ids.shape[1])
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_custom_criteria_are_asked_after_every_token(text_model: PreTrainedModel) -> None:
    ids = torch.randint(2, 140, (1, 9))
    criteria = [StopAfter(22), StopAfter(22)]
    plain = text_model.generate(
        ids,
        max_new_tokens=40,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList(criteria[:1]),
    )
    fast = specdec.generate(
        text_model,
        ids,
        drafter=text_model,
        tree=TREE,
        max_new_tokens=40,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList(criteria[1:]),
    )
    assert fast.tolist() == plain.tolist()
    assert criteria[0].lengths == criteria[1].lengths


class Collect(BaseStreamer):
    """Keeps what it is given; may fail."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.values: list[list[int]] = []
        self.ended = 0
        self.fail_at = fail_at

    def put(self, value: Tensor) -> None:
        if len(self.values) == self.fail_at:
            raise RuntimeError("the streamer broke")
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_streamers_get_what_generate_gives_them(
    text_model: PreTrainedModel, padded: dict[str, Tensor]
) -> None:
    """Prompt first, then token by token, also for rows that advance and end at different times."""
    truth = text_model.generate(**padded, max_new_tokens=25, do_sample=False)
    for rows in (slice(0, 1), slice(0, 3)):
        inputs = {name: value[rows] for name, value in padded.items()}
        streamers = [Collect(), Collect()]
        options = {"max_new_tokens": 25, "do_sample": False, "eos_token_id": int(truth[0, 20])}
        text_model.generate(**inputs, **options, streamer=streamers[0])
        specdec.generate(
            text_model, **inputs, **options, drafter=text_model, tree=TREE, streamer=streamers[1]
        )
        assert streamers[0].values == streamers[1].values
        assert streamers[1].ended == 1


def test_output_object(text_model: PreTrainedModel, padded: dict[str, Tensor]) -> None:
    """Scores and logits: one element per token, from the node that chose it."""
    plain, fast = both(
        text_model,
        text_model,
        **padded,
        max_new_tokens=15,
        do_sample=False,
        repetition_penalty=1.2,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for name in ("scores", "logits"):
        assert len(fast[name]) == len(plain[name]) == 15
        for ours, theirs in zip(fast[name], plain[name], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert fast.stats.num_generated_tokens == 45


def test_several_samples_of_an_image_prompt(model: PreTrainedModel) -> None:
    inputs = families.build("llava").inputs(1, 6)
    out = specdec.generate(
        model,
        **inputs,
        drafter="ngram",
        max_new_tokens=8,
        do_sample=True,
        num_return_sequences=3,
        eos_token_id=None,
    )
    assert out.shape == (3, inputs["input_ids"].shape[1] + 8)


def test_sampling_is_repeatable(text_model: PreTrainedModel) -> None:
    ids = torch.randint(2, 140, (1, 9))
    options = {"max_new_tokens": 20, "do_sample": True, "drafter": families.causal_lm(3)}
    for tree in (4, TREE):
        runs = []
        for _ in range(2):
            torch.manual_seed(11)
            runs.append(specdec.generate(text_model, ids, tree=tree, **options).tolist())
        own = [
            specdec.generate(
                text_model, ids, tree=tree, generator=torch.Generator().manual_seed(3), **options
            ).tolist()
            for _ in range(2)
        ]
        assert runs[0] == runs[1]
        assert own[0] == own[1]


def test_enabled_replaces_generate_and_puts_it_back(text_model: PreTrainedModel) -> None:
    ids = torch.randint(2, 140, (1, 9))
    plain = text_model.generate(ids, max_new_tokens=12, do_sample=False)
    before = text_model.generate
    answers = []

    def inside() -> None:
        with specdec.enabled(text_model, "ngram"):
            with specdec.enabled(text_model, text_model):
                answers.append(text_model.generate(ids, max_new_tokens=12, do_sample=False))
            answers.append(text_model.generate(ids, max_new_tokens=12, do_sample=False))
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    inner, outer = answers
    assert inner.tolist() == outer.tolist() == plain.tolist()
    assert inner.stats.mean_acceptance_length > outer.stats.mean_acceptance_length
    assert text_model.generate == before
    assert "generate" not in vars(text_model)


def test_custom_generate(text_model: PreTrainedModel) -> None:
    ids = torch.randint(2, 140, (1, 9))
    plain = text_model.generate(ids, max_new_tokens=12, do_sample=False)
    fast = text_model.generate(
        ids, max_new_tokens=12, do_sample=False, custom_generate=specdec.decoder(text_model)
    )
    assert fast.tolist() == plain.tolist()


REFUSED: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2},
    "assistant": {"assistant_model": object()},
    "cache": {"use_cache": False},
    "static_cache": {"cache_implementation": "static"},
    "past": {"past_key_values": object()},
    "acceptance": {"acceptance": "lenient"},
    "stop_strings": {"stop_strings": ["x"]},
    "kinds": {"token_type_ids": torch.zeros(1, 4, dtype=torch.long)},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_the_unsupported_is_refused_by_name_before_any_work(
    text_model: PreTrainedModel, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model was run")

    monkeypatch.setattr(text_model, "forward", forward)
    with pytest.raises(ValueError, match=next(iter(options))):
        specdec.generate(text_model, torch.ones(1, 4, dtype=torch.long), drafter="ngram", **options)


def test_kinds_of_tokens_that_say_nothing_are_taken() -> None:
    """BERT's tokenizers give them with every text, and its table has no other for what has none."""
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "is_decoder": True}
    config = BertConfig(vocab_size=160, num_hidden_layers=1, num_attention_heads=2, **small)
    model = BertLMHeadModel(config).eval()
    ids, how = torch.tensor([[3, 4, 5, 6]]), {"max_new_tokens": 6, "do_sample": False}
    kinds = torch.zeros_like(ids)
    plain = model.generate(ids, token_type_ids=kinds, **how)
    out = specdec.generate(model, ids, drafter="ngram", token_type_ids=kinds, **how)
    assert out.tolist() == plain.tolist()
    with pytest.raises(ValueError, match=r"token_type_ids.*BertLMHeadModel embeds them"):
        specdec.generate(model, ids, drafter="ngram", token_type_ids=kinds + 1, **how)


def test_refused_through_the_generation_config_too(text_model: PreTrainedModel) -> None:
    ids, config = torch.ones(1, 4, dtype=torch.long), GenerationConfig(num_beams=3)
    with pytest.raises(ValueError, match="num_beams=3"):
        specdec.generate(text_model, ids, drafter=None, generation_config=config)
    with pytest.raises(ValueError, match="num_beams=3"):
        specdec.generate(text_model, ids, config, drafter=None)


def test_refused_through_the_models_own_config(
    text_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers fills in what the call's config leaves open."""
    own: Any = text_model.generation_config
    monkeypatch.setattr(own, "num_beams", 3)
    ids, config = torch.ones(1, 4, dtype=torch.long), GenerationConfig(max_new_tokens=4)
    for given in ({"generation_config": config}, {"max_new_tokens": 4}):
        with pytest.raises(ValueError, match="num_beams=3"):
            specdec.generate(text_model, ids, drafter=None, **given)


def test_encoder_decoder_models_are_refused() -> None:
    small: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=160, **small))
    with pytest.raises(ValueError, match=r"T5.*encoder-decoder"):
        specdec.generate(model, torch.ones(1, 4, dtype=torch.long), drafter=None)


@pytest.mark.parametrize(
    ("drafter", "message"),
    [(7, "int"), ("no/such/folder", "no/such/folder")],
    ids=["type", "path"],
)
def test_what_is_no_drafter(text_model: PreTrainedModel, drafter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specdec.generate(text_model, torch.ones(1, 4, dtype=torch.long), drafter=drafter)


def test_a_drafter_of_another_vocabulary_is_refused(text_model: PreTrainedModel) -> None:
    small = families.causal_lm(0, vocab_size=40)
    with pytest.raises(ValueError, match=r"vocabulary of 40.*160"):
        specdec.generate(text_model, torch.ones(1, 4, dtype=torch.long), drafter=small)


def test_right_padding_is_refused(text_model: PreTrainedModel) -> None:
    ids, mask = torch.full((2, 6), 5), torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    with pytest.raises(ValueError, match="left padding"):
        specdec.generate(
            text_model, ids, attention_mask=mask, drafter=None, max_new_tokens=3, pad_token_id=0
        )


def failures() -> Iterator[tuple[str, dict[str, Any]]]:
    """Ways for somebody else's code to fail inside a call."""

    class Fails(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 4:
                raise RuntimeError("it broke")
            return scores

    yield "drafter", {"drafter": BrokenDrafter(after=3)}
    yield "streamer", {"drafter": "ngram", "streamer": Collect(fail_at=5)}
    yield "processor", {"drafter": "ngram", "logits_processor": LogitsProcessorList([Fails()])}


@pytest.mark.parametrize("options", [o for _, o in failures()], ids=[n for n, _ in failures()])
def test_a_failure_inside_leaves_the_model_and_the_pages(
    model: PreTrainedModel, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model left hooked, or pages that nobody owns any more."""
    from specdec import generation

    engines: list[Any] = []
    original = generation._engine

    def remember(*args: Any) -> Any:
        engines.append(original(*args))
        return engines[-1]

    monkeypatch.setattr(generation, "_engine", remember)
    inputs = families.build("llava").inputs(0, 6)
    plain = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    with pytest.raises(RuntimeError, match="broke"):
        specdec.generate(model, **inputs, max_new_tokens=16, do_sample=False, **options)
    verifier = engines[0].verifier
    verifier.check_integrity()
    assert verifier.pages_taken == 0
    assert model.config.text_config._attn_implementation == "sdpa"
    assert "generate" not in vars(model)
    if "streamer" in options:
        assert options["streamer"].ended == 1
    again = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert again.tolist() == plain.tolist()
