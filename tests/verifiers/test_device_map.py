"""A model that accelerate has spread: layers in memory, embeddings and others on disk between two
forwards. Other devices than the CPU are not to be had here; where they meet is the same.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

import specdec
from specdec.serving import ThreadedEngine
from specdec.tree import static
from support import families

ON_DISK = ("model.language_model.embed_tokens", "model.language_model.layers.1", "lm_head")


@pytest.fixture(scope="module")
def family() -> families.Family:
    return families.build("llava")


@pytest.fixture(scope="module")
def spread(family: families.Family, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("spread")
    family.model.save_pretrained(folder)
    rest = [f"model.language_model.layers.{layer}" for layer in (0, 2)]
    rest += ["model.vision_tower", "model.multi_modal_projector"]
    rest += ["model.language_model.norm", "model.language_model.rotary_emb"]
    where = dict.fromkeys(ON_DISK, "disk") | dict.fromkeys(rest, "cpu")
    model: PreTrainedModel = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=where, offload_folder=folder / "aside", dtype=torch.float32
    )
    model.generation_config = family.model.generation_config
    assert model.get_input_embeddings().weight.device.type == "meta"
    return model


def test_a_dispatched_model_answers_as_the_whole(
    family: families.Family, spread: PreTrainedModel
) -> None:
    """Tokens put where the weights lie between two forwards, which is nowhere."""
    inputs = family.inputs(1, 9)
    how = {"max_new_tokens": 24, "do_sample": False}
    expected = family.model.generate(**inputs, **how)
    for drafter in (families.causal_lm(3), "self_pruned"):
        out = specdec.generate(spread, **inputs, **how, drafter=drafter, tree=static((2, 2)))
        assert torch.equal(out, expected)


def test_an_engine_runs_a_dispatched_model(
    family: families.Family, spread: PreTrainedModel
) -> None:
    """The same where prompts are run piece by piece, their images looked at beforehand."""
    asked = [family.inputs(seed, 6 + seed) for seed in range(3)]
    how = {"max_new_tokens": 12, "do_sample": False}
    expected = [family.model.generate(**inputs, **how)[0].tolist() for inputs in asked]
    with ThreadedEngine(spread, families.causal_lm(3), tree=2) as engine:
        streams = [engine.submit(**inputs, **how) for inputs in asked]
        said = [[emission.token for emission in stream] for stream in streams]
    for inputs, answer, whole in zip(asked, said, expected, strict=True):
        assert inputs["input_ids"][0].tolist() + answer == whole
