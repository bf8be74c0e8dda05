"""What requests have in common is computed and held once, and answers stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import specdec
from specdec.cache import OutOfPages
from specdec.engine import Decoding, Engine, Request
from specdec.tree import chain
from specdec.verifiers import TransformersVerifier
from support import families
from support.fake_drafters import GuessingDrafter

NEW_TOKENS, PAGE = 12, 4
# Every token of a prompt sees every other; what is kept is not in pages.
APART = ("paligemma", "mllama", "qwen3_5")
NAMES = tuple(name for name in families.SIGHTED if name not in APART)


class Counter:
    """Rows that the text tower has read, and how often pixels were encoded."""

    def __init__(self) -> None:
        self.tokens = 0
        self.images = 0


@contextmanager
def counting(model: Any) -> Iterator[Counter]:
    counter, inner = Counter(), getattr(model, "model", model)
    encode = inner.get_image_features

    def images(*args: Any, **kwargs: Any) -> Any:
        counter.images += 1
        return encode(*args, **kwargs)

    def tokens(module: Any, args: Any, kwargs: Any) -> None:
        counter.tokens += kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]

    text = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    handle = text.register_forward_pre_hook(tokens, with_kwargs=True)
    vars(inner)["get_image_features"] = images
    try:
        yield counter
    finally:
        del vars(inner)["get_image_features"]
        handle.remove()


def other_question(given: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same images, other text behind them."""
    ids = given["input_ids"].clone()
    generator = torch.Generator().manual_seed(seed)
    ids[0, -3:] = torch.randint(2, 140, (3,), generator=generator)
    return given | {"input_ids": ids}


def plain(model: Any, given: dict[str, Tensor], **how: Any) -> list[int]:
    out = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, **how)
    answer: list[int] = out[0, given["input_ids"].shape[1] :].tolist()
    return answer


def submit(
    engine: Engine,
    model: Any,
    given: dict[str, Tensor],
    new_tokens: int = NEW_TOKENS,
    eos: frozenset[int] = frozenset([families.EOS]),
) -> list[Request]:
    prompt = families.prepare(model, given, new_tokens)
    length = prompt.input_ids.shape[1] + new_tokens
    return engine.submit(prompt, Decoding(length, eos_token_ids=eos))


def drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("name", NAMES)
def test_a_second_question_reads_no_image_again(name: str) -> None:
    """A prefix that is computed twice, positions that are off behind a cached image (M-RoPE), a
    sliding window that forgets where the cached part lies."""
    model, inputs, *_ = families.build(name)
    first = inputs(1, 9)
    second = other_question(first, 5)
    expected = [plain(model, given) for given in (first, second)]
    with specdec.enabled(model, GuessingDrafter(seed=3), tree=2):
        answers = [plain(model, first)]
        with counting(model) as counter:
            out = model.generate(**second, max_new_tokens=NEW_TOKENS, do_sample=False)
    length = second["input_ids"].shape[1]
    answers.append(out[0, length:].tolist())
    assert answers == expected
    visual = (second["input_ids"][0] == families.IMAGE).nonzero()
    assert out.stats.num_cached_tokens > int(visual[-1])
    assert counter.images == 0
    drafted = out.stats.num_draft_tokens + out.stats.num_spec_steps
    assert counter.tokens == length - out.stats.num_cached_tokens + drafted


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_shared_by_pixels_not_by_names(name: str) -> None:
    """The same pixels in another tensor share; one changed pixel, and nothing of the image does."""
    model, inputs, *_ = families.build(name)
    first = inputs(1, 9)
    same = first | {"pixel_values": first["pixel_values"].clone()}
    pixels = first["pixel_values"].clone()
    pixels.view(-1)[0] += 0.5
    other = first | {"pixel_values": pixels}
    verifier = TransformersVerifier(model, page_size=PAGE)
    engine = Engine(verifier, None)
    visual = first["input_ids"][0].tolist().index(families.IMAGE)
    for given in (first, same, other):
        (request,) = submit(engine, model, given)
        drain(engine)
        assert request.output == plain(model, given)
        cached = request.stats.num_cached_tokens
        if given is same:
            assert cached >= given["input_ids"].shape[1] - PAGE - 1
        else:
            assert cached <= visual
    verifier.check_integrity()
    assert verifier.pages_taken == 0


@pytest.mark.parametrize("seen", [True, False], ids=["three images", "no pixels"])
def test_images_are_told_apart_where_they_stand_side_by_side(seen: bool) -> None:
    """Features of another image, or of too many: in one run of tokens there may be several, and
    what they are is not in the pixels alone. An image of the second prompt is that of none in the
    first, though both have it in their second run.
    """
    model, inputs, *_ = families.build("llava")
    one = inputs(2, 9, "start")
    image = [families.IMAGE] * one["input_ids"][0].tolist().count(families.IMAGE)
    pixels = torch.cat([inputs(seed, 9, "start")["pixel_values"] for seed in range(4)])
    verifier = TransformersVerifier(model, page_size=PAGE)
    for runs in ([1, 1, 2], [2, 1, 1], [1, 2, 1]):
        ids = [token for count in runs for token in (*image * count, 9)]
        given = {"input_ids": torch.tensor([[5, *ids, 8]])}
        given |= {"pixel_values": pixels} if seen else {}
        prompt = verifier.encode(families.prepare(model, given, NEW_TOKENS))
        assert prompt.encoded is not None
        engine = Engine(verifier, None)
        length = prompt.input_ids.shape[1] + NEW_TOKENS
        (request,) = engine.submit(
            prompt, Decoding(length, eos_token_ids=frozenset([families.EOS]))
        )
        drain(engine)
        assert request.output == plain(model, given)


AUDIO = 157


def hearing() -> Any:
    """A model that hears, and sees nothing."""
    torch.manual_seed(1)
    ear = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "d_model": 32}
    config = transformers.Qwen2AudioConfig(
        audio_config=ear | {"encoder_ffn_dim": 32, "max_source_positions": 16},
        text_config={"model_type": "qwen2", **families.TEXT},
        audio_token_index=AUDIO,
    )
    model = families.sharpen(transformers.Qwen2AudioForConditionalGeneration(config).eval())
    ends = {"eos_token_id": families.EOS, "pad_token_id": families.PAD}
    model.generation_config = transformers.GenerationConfig(**ends)
    return model


def recording(seed: int, text: int) -> dict[str, Tensor]:
    """A recording, and that many tokens behind it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.tensor([[5, 6, *[AUDIO] * 8, *range(7, 7 + text)]]),
        "input_features": 3 * torch.randn(1, 8, 32, generator=generator),
        "feature_attention_mask": torch.ones(1, 32, dtype=torch.long),
    }


@pytest.mark.parametrize("text", [0, 1, 9], ids=lambda text: f"{text} tokens behind")
def test_recordings_are_told_apart_though_their_tokens_are_alike(text: int) -> None:
    """Pages of another recording, or its whole answer in a batch; a recording that is left out of a
    prompt that is run in pieces; pages that are named when an answer fills them.
    """
    model = hearing()
    asked = [recording(seed, text) for seed in range(3)]
    unheard = {"input_ids": asked[0]["input_ids"]}
    expected = [plain(model, given) for given in [*asked, unheard]]
    assert len(set(map(tuple, expected))) == 4
    verifier = TransformersVerifier(model, page_size=PAGE)
    engine = Engine(verifier, None)
    requests = []
    for given in [*asked, unheard]:
        prompt = verifier.encode(families.prepare(model, given, NEW_TOKENS))
        length = prompt.input_ids.shape[1] + NEW_TOKENS
        ends = frozenset([families.EOS])
        requests += engine.submit(prompt, Decoding(length, eos_token_ids=ends))
        drain(engine)
    batch = {name: torch.cat([given[name] for given in asked]) for name in asked[0]}
    requests += submit(engine, model, batch)
    drain(engine)
    assert [request.output for request in requests] == [*expected, *expected[:3]]
    verifier.check_integrity()
    assert verifier.pages_taken == 0


@pytest.mark.parametrize("kinds", [False, True])
def test_what_tokens_do_not_say_is_not_run_in_pieces(kinds: bool) -> None:
    """Pixels that no token stands for were left out, and transformers refuses them; so were kinds
    of tokens that are not those of visual ones.
    """
    model, inputs, *_ = families.build("qwen2_vl" if kinds else "llava")
    given, blind = inputs(1, 9), inputs(2, 9, "none")
    verifier = TransformersVerifier(model, page_size=PAGE)
    prompt = families.prepare(model, blind, NEW_TOKENS)
    assert verifier.encode(prompt).encoded is not None
    name = "mm_token_type_ids" if kinds else "pixel_values"
    more = torch.ones_like(blind["input_ids"]) if kinds else given["pixel_values"]
    prompt = prompt._replace(model_kwargs={**prompt.model_kwargs, name: more})
    assert verifier.encode(prompt).encoded is None


def test_sixteen_requests_on_one_image_hold_it_once() -> None:
    """In one batch or one after the other."""
    model, inputs, *_ = families.build("llava")
    given = inputs(2, 9)
    length = given["input_ids"].shape[1]
    for together in (True, False):
        verifier = TransformersVerifier(model, page_size=PAGE)
        engine = Engine(verifier, None)
        questions = [other_question(given, seed) for seed in range(16)]
        if together:
            ids = torch.cat([question["input_ids"] for question in questions])
            pixels = given["pixel_values"].repeat(16, 1, 1, 1)
            submit(engine, model, {"input_ids": ids, "pixel_values": pixels})
            engine.step()
        else:
            for question in questions:
                submit(engine, model, question)
                engine.step()
        own = -(-(3 + PAGE) // PAGE) + 1  # the page of the question and what follows
        assert verifier.pages_taken <= length // PAGE + 16 * own
        drain(engine)
        assert verifier.pages_taken == 0
        verifier.check_integrity()


def test_samples_of_one_prompt_hold_one_copy_of_it() -> None:
    model, inputs, *_ = families.build("llava")
    given = inputs(2, 9)
    length = given["input_ids"].shape[1]
    verifier = TransformersVerifier(model, page_size=PAGE)
    engine = Engine(verifier, None)
    rows = {name: torch.cat([value] * 6) for name, value in given.items()}
    requests = submit(engine, model, rows)
    engine.step()
    assert verifier.pages_taken == -(-length // PAGE)
    drain(engine)
    assert all(request.output == plain(model, given) for request in requests)
    verifier.check_integrity()
    assert verifier.pages_taken == 0


def limited(model: Any, given: dict[str, Tensor], pages: int) -> TransformersVerifier:
    """A verifier with so many pages, which it knows from having answered a question."""
    budget = None
    for _ in range(2):
        verifier = TransformersVerifier(model, page_size=PAGE, kv_cache_bytes=budget)
        engine = Engine(verifier, None)
        submit(engine, model, given, 1)
        drain(engine)
        budget = pages * verifier.bytes_per_page
    return verifier


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "kimi_k25", "qwen3_5", "mllama"])
def test_a_full_cache_preempts_and_answers_stay_the_same(name: str) -> None:
    """Keys that are lost, or a text that is taken up at the wrong place, after a preemption.

    No answer ends before its length, however the weights were drawn: one that does leaves room.
    """
    model, inputs, *_ = families.build(name)
    questions = [inputs(seed, 5 + seed) for seed in range(5)]
    longest = max(given["input_ids"].shape[1] for given in questions)
    expected = [plain(model, given, eos_token_id=None) for given in questions]
    pages = -(-(longest + NEW_TOKENS + 3) // PAGE)
    verifier = limited(model, questions[0], 2 * pages)
    engine = Engine(verifier, GuessingDrafter(seed=2), chain(2))
    requests = [
        request for given in questions for request in submit(engine, model, given, eos=frozenset())
    ]
    drain(engine)
    assert [request.output for request in requests] == expected
    assert engine.stats.num_preemptions > 0
    verifier.check_integrity()
    assert verifier.pages_taken == 0


def test_a_request_that_never_fits_is_refused() -> None:
    model, inputs, *_ = families.build("llava")
    given = inputs(0, 5)
    verifier = limited(model, given, given["input_ids"].shape[1] // PAGE)
    engine = Engine(verifier, None)
    submit(engine, model, given)
    with pytest.raises(OutOfPages, match="at most"):
        drain(engine)
    engine.close()
    verifier.check_integrity()
    assert verifier.pages_taken == 0
