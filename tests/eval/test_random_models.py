"""Known geometries and models with random weights."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig

import specdec
from specdec.eval import random_models, suite
from specdec.eval.known_configs import NAMES, known_config
from specdec.eval.random_models import (
    config_of,
    image_prompt,
    random_eagle,
    random_model,
    toy,
)

PUBLISHED = {"qwen2.5-vl-7b": 8.29, "qwen2.5-vl-3b": 3.75, "llava-1.5-7b": 7.06}  # 1e9 parameters


@pytest.mark.parametrize("name", NAMES)
def test_known_geometries_have_the_published_sizes(name: str) -> None:
    """A layer, a width, a vocabulary or tied embeddings that are not the published model's."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(known_config(name))
    count = sum(each.numel() for each in model.parameters())
    assert count / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize("source", [*NAMES, suite.MODEL])
def test_toys_answer_about_images_like_any_model(source: str) -> None:
    """A toy whose special tokens, positions or patches do not go together; a head whose size is not
    that of the model; weights that end answers early."""
    model = random_model(toy(config_of(source)), torch.float32, "cpu")
    inputs = image_prompt(model, 6)
    plain = model.generate(**inputs, do_sample=False, max_new_tokens=8)
    ours = specdec.generate(
        model, drafter=random_eagle(model), **inputs, do_sample=False, max_new_tokens=8
    )
    assert torch.equal(plain, ours)
    assert ours.shape[1] == inputs["input_ids"].shape[1] + 8
    assert ours.stats.num_draft_tokens > 0


def test_questions_differ_and_the_image_does_not() -> None:
    """Questions about one image that would share nothing, or everything."""
    model = random_model(toy(known_config("llava-1.5-7b")), torch.float32, "cpu")
    one, other = image_prompt(model, 6, seed=0), image_prompt(model, 6, seed=1)
    assert torch.equal(one["pixel_values"], other["pixel_values"])
    assert not torch.equal(one["input_ids"], other["input_ids"])


def test_what_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that swaps itself to death; a traceback from within transformers."""
    with pytest.raises(ValueError, match=r"give a folder with a config\.json, or one of qwen"):
        config_of("no-such-model")
    with pytest.raises(ValueError, match="LlamaConfig is no config of a vision-language model"):
        random_model(LlamaConfig(), torch.float32, "cpu")
    monkeypatch.setattr(random_models, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(ValueError, match=r"take 7\.0 GiB .* and 1\.0 GiB are free on cpu"):
        random_model("qwen2.5-vl-3b", torch.bfloat16, "cpu")
