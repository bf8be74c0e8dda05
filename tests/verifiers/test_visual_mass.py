"""How much of a node's attention goes to visual tokens, against transformers' own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import specdec
from specdec.kernels import forced
from specdec.kernels.dispatch import BackendName
from specdec.tree import DraftTree, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.devices import DEVICES

BACKENDS = [pytest.param("reference", "cpu")]
BACKENDS += [pytest.param("triton", *device.values, marks=device.marks) for device in DEVICES]


def eager_mass(model: Any, given: dict[str, Tensor], tokens: list[int]) -> list[Tensor]:
    """Per layer, of the last of ``tokens`` fed behind the prompt: attention weights ``(Hq,)``
    summed over visual tokens."""
    ids = given["input_ids"]
    every = torch.cat([ids, torch.tensor([tokens])], dim=1)
    inputs = given | {"input_ids": every}
    if "token_type_ids" in given:
        extra = torch.zeros(1, len(tokens), dtype=torch.int)
        inputs["token_type_ids"] = torch.cat([given["token_type_ids"], extra], dim=1)
    if "mm_token_type_ids" in given:
        extra = torch.zeros(1, len(tokens), dtype=torch.int)
        inputs["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], extra], dim=1)
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(before)
    visual = every[0] == families.IMAGE
    return [layer[0, :, -1, visual].sum(-1) for layer in weights]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_mass_is_what_transformers_attends_with(
    name: str, backend: BackendName, device: str, record_property: Any
) -> None:
    """Flags of the wrong pages, lost where a page is copied, left by a page's former owner, or
    heads and layers in another order.

    Two requests with their images at different places: computed, found in the cache, and computed
    again in pages that others had.
    """
    model, inputs, *_ = families.build(name)
    prompts = [inputs(seed, 9) for seed in (0, 1)]
    if device == "cuda":
        model.to(device)
    verifier = TransformersVerifier(model, page_size=4, visual_mass=True)
    worst = 0.0
    with torch.no_grad(), forced(backend):
        for turn in range(3):
            if turn == 2:
                verifier.shares = False
                prompts.reverse()
                allocator = verifier._paged.kv.allocator
                allocator.limit = allocator.num_pages
            handles = []
            for given in prompts:
                moved = {key: value.to(device) for key, value in given.items()}
                handles += verifier.prefill(families.prepare(model, moved, 8), room=40).handles
            shapes = [static((2, 1)), chain(2)]
            trees = [
                DraftTree(shape, tuple(torch.randint(2, 140, (len(shape),)).tolist()))
                for shape in shapes
            ]
            mass = verifier.verify(handles, trees).visual_mass
            row = 0
            for given, tree in zip(prompts, trees, strict=True):
                for node in range(len(tree)):
                    path = [tree.tokens[step] for step in tree.topology.path(node)]
                    expected = eager_mass(model.cpu(), given, path)
                    assert len(mass) == len(expected)
                    for layer, right in zip(mass, expected, strict=True):
                        worst = max(worst, float((layer[row].cpu() - right).abs().max()))
                    row += 1
            model.to(device)
            for handle in handles:
                verifier.release(handle)
    record_property("max_abs_error", worst)
    assert worst <= 2e-5
    assert max(float(layer.max()) for layer in mass) > 0.1


def test_models_that_have_none_to_give_say_so() -> None:
    """An empty answer would be taken for a model that does not look at its image."""
    with pytest.raises(ValueError, match="visual mass"):
        TransformersVerifier(families.build("mllama").model, visual_mass=True)
    model, inputs, *_ = families.build("kimi_k25")
    verifier = TransformersVerifier(model, visual_mass=True)
    with torch.no_grad():
        handles = verifier.prefill(families.prepare(model, inputs(0, 9), 8), room=40).handles
        with pytest.raises(ValueError, match="no visual mass"):
            verifier.verify(handles, [DraftTree(chain(0), (5,))])


def test_a_cache_that_is_handed_in_is_refused() -> None:
    """Its visual tokens would count as text, and the mass would be 0."""
    model, inputs, *_ = families.build("llava")
    verifier = TransformersVerifier(model, visual_mass=True)
    cache = DynamicCache(config=model.config)
    options = {"past_key_values": cache, "max_new_tokens": 3, "do_sample": False}
    said = model.generate(**inputs(0, 9), **options)
    with pytest.raises(ValueError, match="visual_mass=True does not go with past_key_values"):
        specdec.generate(model, input_ids=said, drafter="ngram", verifier=verifier, **options)
    assert verifier.pages_taken == 0


def test_no_mass_unless_asked_for() -> None:
    model, inputs, *_ = families.build("llava")
    verifier = TransformersVerifier(model)
    with torch.no_grad():
        handles = verifier.prefill(families.prepare(model, inputs(0, 9), 8), room=40).handles
        assert verifier.verify(handles, [DraftTree(chain(0), (5,))]).visual_mass == []
