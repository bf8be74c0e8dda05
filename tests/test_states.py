"""Caches handed in and out, prompts of embeddings, hidden states and attentions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import specdec
from specdec.tree import static
from support import families

TREE = static((2, 2, 1))
GREEDY = {"do_sample": False, "max_new_tokens": 15}
# Sums over a few hundred terms of size 1 in fp32, in another order; the logits are up to 50 large.
CLOSE = {"atol": 1e-3, "rtol": 1e-4}


@pytest.fixture(scope="module", params=["text", "llava", "gemma3", "qwen2_5_vl"])
def case(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A model and a prompt: plain, sliding layers, several rows of positions."""
    if request.param == "text":
        ids = torch.randint(2, 140, (3, 14), generator=torch.Generator().manual_seed(5))
        mask = torch.ones_like(ids)
        for row, padding in enumerate((0, 5, 9)):
            mask[row, :padding], ids[row, :padding] = 0, families.PAD
        return families.causal_lm(0, layers=3), {"input_ids": ids, "attention_mask": mask}
    family = families.build(request.param)
    return family.model, family.inputs(2, 9)


def both(model: PreTrainedModel, drafter: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """What transformers returns and what specdec returns, with end tokens that end rows early."""
    free = model.generate(**kwargs | {"return_dict_in_generate": False, "eos_token_id": None})
    kwargs = {"eos_token_id": int(free[-1, -5])} | kwargs
    fast = specdec.generate(model, drafter=drafter or model, tree=TREE, **kwargs)
    return model.generate(**kwargs), fast


def assert_equal_caches(ours: DynamicCache, theirs: DynamicCache, mask: Tensor) -> None:
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        seen = mask[:, None, -other.keys.shape[2] :, None].bool()  # padding is never read
        for name in ("keys", "values"):
            pair = getattr(mine, name), getattr(other, name)
            assert pair[0].shape == pair[1].shape
            torch.testing.assert_close(pair[0] * seen, pair[1] * seen, **CLOSE)


def mask_of(inputs: dict[str, Tensor], length: int) -> Tensor:
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    return torch.nn.functional.pad(mask, (0, length - mask.shape[1]), value=1)


def test_the_returned_cache_is_that_of_generate(
    case: tuple[PreTrainedModel, dict[str, Tensor]],
) -> None:
    """Keys of rejected branches, of tokens behind the end, or at another row's columns; rows that
    ended early go on with padding."""
    model, inputs = case
    plain, fast = both(model, **inputs, **GREEDY, return_dict_in_generate=True)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    length = plain.past_key_values.get_seq_length()
    assert length == plain.sequences.shape[1] - 1
    assert_equal_caches(fast.past_key_values, plain.past_key_values, mask_of(inputs, length))


def test_generate_goes_on_from_the_returned_cache(
    case: tuple[PreTrainedModel, dict[str, Tensor]],
) -> None:
    """The one of transformers and ours, from either cache, with the whole text and more."""
    model, inputs = case
    inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    first = specdec.generate(model, **inputs, **GREEDY, drafter=model, return_dict_in_generate=True)
    mask = mask_of(inputs, first.sequences.shape[1] + 3)
    ids = torch.cat([first.sequences, first.sequences[:, -3:]], 1)
    more: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **GREEDY}
    copies = [copy.deepcopy(first.past_key_values) for _ in range(2)]
    plain = model.generate(**more, past_key_values=copies[0], eos_token_id=None)
    fast = specdec.generate(
        model, **more, past_key_values=copies[1], drafter=model, eos_token_id=None
    )
    assert fast.tolist() == plain.tolist()
    assert "pixel_values" in inputs or fast.stats.mean_acceptance_length > 2
    assert_equal_caches(copies[1], copies[0], mask_of({"input_ids": ids}, plain.shape[1] - 1))


def test_turns_share_a_cache_that_the_caller_keeps(
    case: tuple[PreTrainedModel, dict[str, Tensor]],
) -> None:
    """Empty at first; what is new alone is given afterwards, with the mask of everything."""
    model, inputs = case
    caches = [DynamicCache(config=model.config.get_text_config()) for _ in range(2)]
    new, answers = torch.randint(2, 140, (len(inputs["input_ids"]), 4)), []
    for cache in caches:
        use: Any = model.generate if cache is caches[0] else generate_fast(model)
        first = use(**inputs, **GREEDY, past_key_values=cache, eos_token_id=None)
        ids = torch.cat([first[:, -1:], new], 1)
        mask = mask_of(inputs, first.shape[1] + 4)
        answers.append((first, use(ids, attention_mask=mask, past_key_values=cache, **GREEDY)))
    for plain, fast in zip(*answers, strict=True):
        assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_a_later_turn_brings_another_image(name: str) -> None:
    """What is new alone is given: its text, its pixels."""
    model, inputs, *_ = families.build(name)
    answers = []
    for fast in (False, True):
        use: Any = generate_fast(model) if fast else model.generate
        cache = DynamicCache(config=model.config.get_text_config())
        options: dict[str, Any] = {**GREEDY, "eos_token_id": None, "past_key_values": cache}
        first = use(**inputs(2, 9), **options)
        second = inputs(4, 5)
        ids = torch.cat([first[:, -1:], second["input_ids"]], 1)
        for types in ("mm_token_type_ids", "token_type_ids"):
            if types in second:
                second[types] = (ids == families.IMAGE).int()
        length = first.shape[1] - 1 + ids.shape[1]
        second |= {"input_ids": ids, "attention_mask": torch.ones(1, length, dtype=torch.long)}
        answers.append((first.tolist(), use(**second, **options).tolist()))
    assert answers[0] == answers[1]


def generate_fast(model: PreTrainedModel) -> Any:
    return lambda *args, **kwargs: specdec.generate(model, *args, drafter=model, **kwargs)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_hidden_states_and_attentions(
    case: tuple[PreTrainedModel, dict[str, Tensor]], implementation: str
) -> None:
    """One element per token; those of a block's other nodes, or of the block as one, would show."""
    model, inputs = case
    asked = {"output_hidden_states": True, "return_dict_in_generate": True, "output_scores": True}
    if implementation == "eager":
        asked["output_attentions"] = True
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        plain, fast = both(model, **inputs, **GREEDY, **asked)
    finally:
        model.set_attn_implementation(before)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for name in ("hidden_states", "attentions"):
        assert (name in fast) == (name in plain)
        if name in plain:
            torch.testing.assert_close(fast[name], plain[name], **CLOSE)
            assert len(fast[name]) == len(plain.scores)
    length = plain.past_key_values.get_seq_length()
    assert_equal_caches(fast.past_key_values, plain.past_key_values, mask_of(inputs, length))


@pytest.mark.parametrize("with_ids", [False, True])
def test_prompts_of_embeddings(with_ids: bool) -> None:
    """Without ids the answer alone is returned; processors see what ids there are."""
    model = families.causal_lm(0, layers=3)
    ids = torch.randint(2, 140, (2, 9))
    inputs: dict[str, Any] = {"inputs_embeds": model.get_input_embeddings()(ids).detach()}
    if with_ids:
        inputs |= {"input_ids": ids, "repetition_penalty": 1.3}
    for drafter in (model, "ngram"):
        plain, fast = both(model, drafter, **inputs, **GREEDY)
        assert fast.tolist() == plain.tolist()


def test_embeddings_that_hold_an_image() -> None:
    """As callers make them who run the vision tower themselves. With ids beside them the drafter
    reads the words."""
    model, inputs, *_ = families.build("llava")
    given = inputs(2, 9)
    seen: Any = model.get_submodule("model")
    merged: list[Tensor] = []
    language_model = seen.language_model
    hook = language_model.register_forward_pre_hook(
        lambda _, args, kwargs: merged.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**given)
    hook.remove()
    ids = model.generate(**given, **GREEDY, eos_token_id=None)
    for beside in ({}, {"input_ids": given["input_ids"]}):
        plain, fast = both(model, "ngram", inputs_embeds=merged[0], **beside, **GREEDY)
        assert fast.tolist() == plain.tolist()
        alone = specdec.generate(
            model, inputs_embeds=merged[0], **beside, **GREEDY, drafter="ngram", eos_token_id=None
        )
        assert alone[0, -15:].tolist() == ids[0, -15:].tolist()


def test_prompts_in_chunks(case: tuple[PreTrainedModel, dict[str, Tensor]]) -> None:
    model, inputs = case
    if "pixel_values" in inputs and not hasattr(
        model, "_prepare_multimodal_encoder_kwargs_for_generation"
    ):
        pytest.skip("this transformers cannot split prompts with images")
    plain, fast = both(model, **inputs, **GREEDY, prefill_chunk_size=7)
    assert fast.tolist() == plain.tolist()


def test_preempted_requests_of_such_a_prompt_go_on() -> None:
    """It is not run again; its keys are still in the cache."""
    model = families.causal_lm(0, layers=3)
    ids = torch.randint(2, 140, (3, 20))
    given: dict[str, Any] = {
        "inputs_embeds": model.get_input_embeddings()(ids).detach(),
        "max_new_tokens": 40,
        "do_sample": False,
        "eos_token_id": None,
    }
    probe = specdec.TransformersVerifier(model)
    specdec.generate(model, ids, drafter=None, verifier=probe, max_new_tokens=2)
    fast = specdec.generate(
        model, **given, drafter="ngram", kv_cache_bytes=9 * probe.bytes_per_page
    )
    assert fast.tolist() == model.generate(**given).tolist()
    assert fast.stats.num_preemptions > 0


def test_other_caches_are_refused() -> None:
    model = families.causal_lm(0, layers=3)
    cache = StaticCache(config=model.config, max_cache_len=40)
    with pytest.raises(ValueError, match=r"past_key_values of type StaticCache.*DynamicCache"):
        specdec.generate(
            model, torch.ones(1, 4, dtype=torch.long), drafter=None, past_key_values=cache
        )
