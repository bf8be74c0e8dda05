"""The model that comes with the package, loaded from assets made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import specdec
from specdec.demo import load, questions
from specdec.drafters.loading import save_drafter
from specdec.engine import Emission
from support import families, processors


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in bf16, as it is shipped; two questions, one about two images."""
    folder = tmp_path_factory.mktemp("assets")
    families.build("llava").model.bfloat16().save_pretrained(folder / "lvlm")
    processors.build().save_pretrained(folder / "lvlm")
    save_drafter(families.causal_lm().bfloat16(), folder / "drafter", verifier="lvlm")
    rows = []
    for seed in range(2):
        names = [f"{seed}-{index}.png" for index in range(seed + 1)]
        for index, name in enumerate(names):
            processors.image(10 * seed + index).save(folder / name)
        messages = processors.messages(seed, images=len(names))
        row = {"task": f"kind_{seed}", "images": names, "messages": messages}
        rows.append({**row, "fields": {"number": str(seed)}})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


def test_load_gives_model_processor_and_drafter(assets: Path) -> None:
    """Both in float32, in which tokens are exact, however they were saved."""
    model, processor, drafter = load(assets)
    assert (model.dtype, drafter.model.dtype) == (torch.float32, torch.float32)
    assert not model.training
    assert type(processor).__name__ == "LlavaProcessor"
    assert load(assets, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_questions_become_inputs_of_generate(assets: Path) -> None:
    """Speculatively and plainly alike, with one image and with two."""
    model, processor, drafter = load(assets)
    for number, question in enumerate(questions(assets)):
        assert question.fields == {"number": str(number)}
        inputs = question.encode(processor)
        assert (inputs["input_ids"] == families.IMAGE).sum() == 16 * (number + 1)
        assert inputs["pixel_values"].shape[0] == number + 1
        how = {"max_new_tokens": 8, "do_sample": False}
        plain = model.generate(**inputs, **how)
        assert specdec.generate(model, drafter=drafter, **inputs, **how).tolist() == plain.tolist()


@pytest.mark.parametrize("missing", ["lvlm/model.safetensors", "drafter/model.safetensors"])
def test_missing_assets_are_named(assets: Path, tmp_path: Path, missing: str) -> None:
    copy = shutil.copytree(assets, tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing.*make train-demo"):
        load(copy)


def test_missing_questions_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"questions\.json is missing"):
        questions(tmp_path)


@pytest.mark.parametrize("rows", [1, 2])
def test_emissions_are_the_answer_with_its_origins(rows: int) -> None:
    """A token that is emitted twice, late, or under another row's number."""
    model, drafter = families.causal_lm(1, layers=2), families.causal_lm(1, layers=2)
    ids = torch.arange(5, 5 + 3 * rows).view(rows, 3)
    emissions: list[Emission] = []
    out = specdec.generate(
        model,
        ids,
        attention_mask=torch.ones_like(ids),
        drafter=drafter,
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        on_emission=emissions.append,
    )
    for row in range(rows):
        assert [e.token for e in emissions if e.request_id == row] == out[row, 3:].tolist()
    # The drafter is the model, so every draft is kept. 1 token from prefill; 4 drafted and 1 own;
    # and 3 are left, of which the last cannot be drafted.
    assert [e.drafted for e in emissions if e.request_id == 0] == [
        *(False, True, True, True, True, False, True, True, False)
    ]
