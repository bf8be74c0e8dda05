"""The cases of transformers' own generation tests that apply, with specdec's ``generate``.

Named as there (``GenerationTesterMixin``), written anew: each case is run by transformers and under
``specdec.enabled``, on two vision-language families and one text model, and has to give the same.
docs/generate.md lists them with those that are refused or do not apply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

import specdec
from specdec.tree import static
from support import families

TREE = static((2, 2, 1))
LENGTH = 10
# As in test_states.
CLOSE = {"atol": 1e-3, "rtol": 1e-4}


class Case(NamedTuple):
    """Attributes:
    model: the model.
    inputs: of several rows, padded on the left.
    """

    model: PreTrainedModel
    inputs: dict[str, Tensor]

    def both(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What transformers gives and what specdec gives."""
        kwargs = {"do_sample": False, "max_new_tokens": LENGTH, "eos_token_id": None} | kwargs
        plain = self.model.generate(*args, **kwargs)
        drafter = kwargs.pop("drafter", families.causal_lm(3))
        with specdec.enabled(self.model, drafter, tree=TREE):
            return plain, self.model.generate(*args, **kwargs)


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of different lengths in one batch: text padded on the left, images one after another."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    for row in rows:
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if values[0].shape == rows[0]["input_ids"].shape:
            values = [
                torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=0)
                for value in values
            ]
        batch[name] = torch.cat(values)
    return batch


@pytest.fixture(scope="module", params=["text", "llava", "qwen2_5_vl"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "text":
        rows = [{"input_ids": torch.randint(2, 140, (1, n))} for n in (14, 9)]
        return Case(families.causal_lm(0, layers=3), stacked(rows))
    family = families.build(request.param)
    return Case(family.model, stacked([family.inputs(2, 9), family.inputs(3, 5)]))


DICT: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


def assert_same_dict(fast: Any, plain: Any) -> None:
    assert type(fast) is type(plain)
    assert set(fast) == set(plain)
    assert fast.sequences.tolist() == plain.sequences.tolist()
    for name in set(fast) - {"sequences", "past_key_values"}:
        assert len(fast[name]) == len(plain[name]) == LENGTH
        torch.testing.assert_close(fast[name], plain[name], **CLOSE)
    assert fast.past_key_values.get_seq_length() == plain.past_key_values.get_seq_length()


def test_greedy_generate(case: Case) -> None:
    plain, fast = case.both(**case.inputs)
    assert fast.tolist() == plain.tolist()


@pytest.fixture
def eager(case: Case) -> Any:
    before = case.model.config._attn_implementation
    case.model.set_attn_implementation("eager")
    yield case
    case.model.set_attn_implementation(before)


def test_greedy_generate_dict_outputs(eager: Case) -> None:
    plain, fast = eager.both(**eager.inputs, **DICT)
    assert_same_dict(fast, plain)


def test_sample_generate(case: Case) -> None:
    """Two samples a row; with one token left to choose from, sampling has no freedom."""
    one_choice = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    plain, fast = case.both(**case.inputs, **one_choice)
    assert fast.tolist() == plain.tolist()
    _, free = case.both(**case.inputs, **one_choice | {"top_k": 50, "temperature": 5.0})
    assert free.shape == plain.shape
    assert free.tolist() != plain.tolist()


def test_sample_generate_dict_output(eager: Case) -> None:
    plain, fast = eager.both(
        **eager.inputs, **DICT, do_sample=True, top_k=1, num_return_sequences=2
    )
    assert_same_dict(fast, plain)


@pytest.mark.parametrize("do_sample", [False, True])
def test_beam_search_generate(case: Case, do_sample: bool) -> None:
    with specdec.enabled(case.model, None), pytest.raises(ValueError, match="num_beams=2"):
        case.model.generate(**case.inputs, num_beams=2, do_sample=do_sample, max_new_tokens=3)


def test_generate_without_input_ids(case: Case) -> None:
    plain, fast = case.both(bos_token_id=5)
    assert fast.tolist() == plain.tolist()


@pytest.mark.parametrize("do_sample", [False, True])
def test_assisted_decoding_matches_greedy_search(case: Case, do_sample: bool) -> None:
    """Here also for several rows, which transformers cannot."""
    options: dict[str, Any] = {"top_k": 1, "do_sample": True} if do_sample else {}
    plain, fast = case.both(**case.inputs, **options)
    with specdec.enabled(case.model, None):
        for helper in (case.model, families.causal_lm(3)):
            assisted = case.model.generate(
                **case.inputs,
                **{"do_sample": False} | options,
                max_new_tokens=LENGTH,
                eos_token_id=None,
                assistant_model=helper,
            )
            assert assisted.tolist() == fast.tolist() == plain.tolist()


def test_prompt_lookup_decoding_matches_greedy_search(case: Case) -> None:
    plain, _ = case.both(**case.inputs)
    with specdec.enabled(case.model, None):
        fast = case.model.generate(
            **case.inputs,
            do_sample=False,
            max_new_tokens=LENGTH,
            eos_token_id=None,
            prompt_lookup_num_tokens=2,
            max_matching_ngram_size=2,
        )
    assert fast.tolist() == plain.tolist()


def test_left_padding_compatibility(case: Case) -> None:
    """More padding in front changes nothing."""
    padded = {
        name: torch.nn.functional.pad(value, (7, 0), value=0)
        if value.shape == case.inputs["input_ids"].shape
        else value
        for name, value in case.inputs.items()
    }
    _, fast = case.both(**case.inputs)
    _, behind = case.both(**padded)
    assert behind[:, 7:].tolist() == fast.tolist()


def test_past_key_values_format(case: Case) -> None:
    plain, fast = case.both(**case.inputs, return_dict_in_generate=True)
    for ours, theirs in zip(fast.past_key_values, plain.past_key_values, strict=True):
        assert [part.shape for part in ours[:2]] == [part.shape for part in theirs[:2]]


@pytest.mark.parametrize("with_ids", [False, True])
def test_generate_from_inputs_embeds(case: Case, with_ids: bool) -> None:
    if "pixel_values" in case.inputs:
        pytest.skip("as there: ids and pixels both say where the image is")
    embeds = case.model.get_input_embeddings()(case.inputs["input_ids"]).detach()
    given = {"inputs_embeds": embeds, "attention_mask": case.inputs["attention_mask"]}
    if with_ids:
        given["input_ids"] = case.inputs["input_ids"]
    plain, fast = case.both(**given)
    assert fast.tolist() == plain.tolist()


def continued(case: Case, generate: Callable[..., Any], **first: Any) -> tuple[Tensor, Tensor]:
    """Half the answer, then the rest from its cache."""
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    half = generate(**first, **options, max_new_tokens=5, return_dict_in_generate=True)
    mask = case.inputs["attention_mask"]
    mask = torch.nn.functional.pad(mask, (0, 5), value=1)
    ids = half.sequences
    if "input_ids" not in first:
        ids = torch.cat([case.inputs["input_ids"], ids], 1)
    rest = generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=half.past_key_values,
        **options,
        max_new_tokens=LENGTH - 5,
    )
    return half.sequences, rest


def test_generate_continue_from_past_key_values(case: Case) -> None:
    first = {k: v for k, v in case.inputs.items() if k != "mm_token_type_ids"}
    plain = continued(case, case.model.generate, **first)
    with specdec.enabled(case.model, families.causal_lm(3), tree=TREE):
        fast = continued(case, case.model.generate, **first)
    assert fast[1].tolist() == plain[1].tolist()
    if "pixel_values" not in case.inputs or case.model.config.model_type == "llava":
        whole, _ = case.both(**first)
        assert fast[1].tolist() == whole.tolist()


def test_generate_continue_from_inputs_embeds(case: Case) -> None:
    if "pixel_values" in case.inputs:
        pytest.skip("as there: ids and pixels both say where the image is")
    embeds = case.model.get_input_embeddings()(case.inputs["input_ids"]).detach()
    first = {"inputs_embeds": embeds, "attention_mask": case.inputs["attention_mask"]}
    with specdec.enabled(case.model, families.causal_lm(3), tree=TREE):
        fast = continued(case, case.model.generate, **first)
    whole, _ = case.both(**case.inputs)
    assert fast[1].tolist() == whole.tolist()


@pytest.mark.parametrize("implementation", ["static", "quantized", "offloaded"])
def test_generate_with_other_caches(case: Case, implementation: str) -> None:
    """There: test_generate_with_static_cache and test_generate_with_quant_cache."""
    with (
        specdec.enabled(case.model, None),
        pytest.raises(ValueError, match=f"cache_implementation='{implementation}'"),
    ):
        case.model.generate(**case.inputs, cache_implementation=implementation, max_new_tokens=3)


def test_generate_methods_with_logits_to_keep(case: Case) -> None:
    plain, fast = case.both(**case.inputs, logits_to_keep=0)
    _, kept = case.both(**case.inputs)
    assert fast.tolist() == plain.tolist() == kept.tolist()


def test_inherits_generation_mixin(case: Case) -> None:
    with specdec.enabled(case.model, None):
        assert isinstance(case.model, GenerationMixin)
        assert case.model.can_generate()


def test_eager_matches_sdpa_generate(case: Case) -> None:
    _, sdpa = case.both(**case.inputs)
    case.model.set_attn_implementation("eager")
    try:
        plain, eager = case.both(**case.inputs)
    finally:
        case.model.set_attn_implementation("sdpa")
    assert eager.tolist() == plain.tolist() == sdpa.tolist()


def test_dola_and_contrastive(case: Case) -> None:
    """There: test_dola_decoding_sample and test_contrastive_generate."""
    for name, options in (
        ("dola_layers", {"dola_layers": "low"}),
        ("penalty_alpha", {"penalty_alpha": 0.6, "top_k": 4}),
    ):
        with specdec.enabled(case.model, None), pytest.raises(ValueError, match=name):
            case.model.generate(**case.inputs, **options, max_new_tokens=3)


def row_with_an_image(seed: int, height: int, width: int) -> dict[str, Tensor]:
    """For Qwen2.5-VL: an image of so many patches, four to a token, and 5 to 12 words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, 140, (5 + seed,), generator=generator).tolist()
    image = [152, *[families.IMAGE] * (height * width // 4), 153]
    ids = torch.tensor([[*words[: seed % 3], *image, *words[seed % 3 :]]])
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == families.IMAGE).int(),
        "pixel_values": torch.randn(height * width, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }


def test_eight_rows_with_images_of_different_sizes() -> None:
    """Each row of the batch is what it is alone, and what transformers makes of the batch."""
    family = families.build("qwen2_5_vl")
    rows = [row_with_an_image(seed, 4 + 2 * (seed % 3), 4 + 2 * (seed % 4)) for seed in range(8)]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": None}
    drafter = families.causal_lm(3)
    alone = [
        specdec.generate(family.model, **row, **options, drafter=drafter)[0, -24:].tolist()
        for row in rows
    ]
    batch = stacked(rows)
    plain = family.model.generate(**batch, **options)
    fast = specdec.generate(family.model, **batch, **options, drafter=drafter, tree=TREE)
    assert fast.tolist() == plain.tolist()
    assert fast[:, -24:].tolist() == alone
