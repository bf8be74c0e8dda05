"""Drafters that are models of their own: they learn what they are asked."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.training.batches import TextCollator, VisionCollator
from specdec.training.examples import Example, without_visual
from specdec.training.losses import top_divergence
from specdec.training.small import Size, build, build_small_lvlm
from specdec.training.students import TextStudent, VisionStudent
from support import families

SIZE = Size(layers=1, hidden=32, intermediate=48, heads=2, kv_heads=1)
FAMILIES = ("llava", "qwen2_5_vl")


def _answered(inputs: Mapping[str, Tensor], seed: int, length: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    told = torch.randint(2, 100, (length,), generator=generator)
    tokens = torch.cat([inputs["input_ids"][0], told])
    p = torch.randn(length, families.VOCAB, generator=generator).softmax(-1).topk(4)
    visual = tokens == families.IMAGE
    return Example(
        tokens, inputs["input_ids"].shape[1], visual, p.indices, p.values, 1.0, "", (0, 0)
    )


def _case(family: families.Family) -> tuple[list[Example], list[Mapping[str, Tensor]]]:
    """Three prompts of unlike lengths, one with two images, and answers."""
    inputs = [family.inputs(seed, 4 + 2 * seed) for seed in range(3)]
    return [_answered(given, seed, 5 - seed) for seed, given in enumerate(inputs)], inputs


def _weigh(example: Example) -> Tensor:
    return 1.0 + torch.arange(len(example.top_ids))


def _plain(model: PreTrainedModel, example: Example, **images: Tensor) -> Tensor:
    """Loss of an answer alone: each token is predicted at the one before it."""
    logits = model(input_ids=example.tokens[None], **images).logits[
        0, example.prompt_length - 1 : -1
    ]
    mixture = {"ce": 0.5, "kl": 0.5}
    losses = top_divergence(logits, example.top_ids, example.top_p, mixture)
    return (losses * _weigh(example)).sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_with_images_is_its_answers_alone(name: str) -> None:
    """Padding, another answer's image, or positions of a grid that padding moves would show.
    1e-4 relative: fp32, other shapes.
    """
    family = families.build(name)
    examples, inputs = _case(family)
    by_length = {len(e.tokens): given for e, given in zip(examples, inputs, strict=True)}
    model = families.sharpen(build_small_lvlm(family.model, SIZE), 3.0).eval()
    batch = VisionCollator(lambda example: by_length[len(example.tokens)], _weigh)(examples)
    assert float(batch.pop("total")) == sum(float(_weigh(e).sum()) for e in examples)
    assert int(batch.pop("tokens")) == 12
    with torch.no_grad():
        loss = VisionStudent(model)(**batch)
        wanted = torch.zeros(())
        for example, given in zip(examples, inputs, strict=True):
            rest = {n: x for n, x in given.items() if n != "input_ids"}
            if "mm_token_type_ids" in rest:
                zeros = torch.zeros(1, len(example.top_ids), dtype=torch.int32)
                rest["mm_token_type_ids"] = torch.cat([rest["mm_token_type_ids"], zeros], 1)
            wanted = wanted + _plain(model, example, **rest)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=0)


def test_a_batch_of_text_is_its_answers_alone() -> None:
    family = families.build("llava")
    examples, _ = _case(family)
    model = families.sharpen(build(family.model, SIZE, 0), 3.0).eval()
    batch = TextCollator(_weigh)(examples)
    del batch["total"], batch["tokens"]
    assert not (batch["ids"] == families.IMAGE).any()
    with torch.no_grad():
        loss = TextStudent(model)(**batch)  # type: ignore[arg-type]  # sharpen returns what it gets
        wanted = sum(float(_plain(model, without_visual(example))) for example in examples)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_lvlm_sees_with_the_verifiers_tower(name: str) -> None:
    """A tower that is not the verifier's, that learns, or a projector that does not; a drafter
    that draws from the generator of whoever builds it.
    """
    family = families.build(name)
    state = torch.get_rng_state()
    model = build_small_lvlm(family.model, SIZE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = dict(family.model.named_parameters())
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(torch.equal(weight, theirs[n]) for n, weight in frozen.items())
    inputs = [family.inputs(0, 5)]
    examples = [_answered(inputs[0], 0, 4)]
    batch = VisionCollator(lambda example: inputs[0])(examples)
    del batch["total"], batch["tokens"]
    VisionStudent(model)(**batch).backward()
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert any("projector" in n or "merger" in n for n in learning)
    for n, parameter in learning.items():
        assert parameter.grad is not None, n
    assert not learning.keys() & frozen.keys()
    assert family.model.config.get_text_config().hidden_size == 64
    again = build_small_lvlm(family.model, SIZE, seed=1)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_what_cannot_be_made_small_is_named() -> None:
    with pytest.raises(ValueError, match=r"Gemma3.*only of llava, qwen2_5_vl"):
        build_small_lvlm(families.build("gemma3").model, SIZE)
    with pytest.raises(ValueError, match=r"\[2, 3, 3\], which heads of 20"):
        build_small_lvlm(families.build("qwen2_5_vl").model, Size(1, 40, 48, 2, 1))
