"""Saved drafters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec.drafters import TextOnlyDrafter, VisionPrunedDrafter, load_drafter, loading
from specdec.drafters.calibration import Calibration
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_files import save_eagle
from specdec.drafters.loading import CONFIG_NAME, save_drafter, save_vision_pruned
from support import eagle_heads, families


def test_a_saved_drafter_comes_back(tmp_path: Path) -> None:
    model = families.causal_lm(0)
    save_drafter(model, tmp_path / "drafter", verifier="a verifier", seed=3)
    loaded = load_drafter(tmp_path / "drafter", families.causal_lm(1, layers=2))
    assert isinstance(loaded, TextOnlyDrafter)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    facts = json.loads((tmp_path / "drafter" / CONFIG_NAME).read_text())
    assert (facts["kind"], facts["verifier"], facts["seed"]) == ("text_only", "a verifier", 3)


def test_calibrations_come_back(tmp_path: Path) -> None:
    """Of each kind that is saved; without one, probabilities are taken as they are."""
    verifier, found = families.build("llava").model, Calibration(0.8, -0.25)
    head = eagle_heads.head(own_embeddings=True)
    facts = {"verifier": "a verifier", "calibration": found.to_dict()}
    save_drafter(families.causal_lm(0), tmp_path / "text", **facts)
    save_vision_pruned(verifier, tmp_path / "vision", ratio=0.5, **facts)
    save_eagle(head, tmp_path / "eagle", **facts)
    for name in ("text", "vision"):
        drafter = load_drafter(tmp_path / name)
        assert isinstance(drafter, (TextOnlyDrafter, VisionPrunedDrafter))
        assert drafter.calibration == found
    assert isinstance(eagle := load_drafter(tmp_path / "eagle"), EagleDrafter)
    assert eagle.calibration == found
    save_drafter(families.causal_lm(0), tmp_path / "plain", verifier="a verifier")
    assert isinstance(plain := load_drafter(tmp_path / "plain"), TextOnlyDrafter)
    assert plain.calibration == Calibration()


def test_any_causal_language_model_drafts(tmp_path: Path) -> None:
    families.causal_lm(0).save_pretrained(tmp_path)
    assert isinstance(load_drafter(tmp_path), TextOnlyDrafter)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ('{"kind": "oracle", "format_version": 1}', "kind 'oracle'"),
        ('{"kind": "text_only", "format_version": 9}', "format 9"),
        ("{", "not JSON"),
        (
            '{"kind": "text_only", "format_version": 1, "calibration": {"slope": -1, "shift": 0}}',
            "slope above 0",
        ),
        ('{"kind": "text_only", "format_version": 1, "calibration": {"slope": 1}}', "a shift"),
        ('{"kind": "text_only", "format_version": 1, "calibration": 3}', "calibration"),
    ],
    ids=["kind", "version", "broken", "slope", "incomplete", "number"],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, contents: str, message: str) -> None:
    families.causal_lm(0).save_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text(contents)
    with pytest.raises(ValueError, match=message):
        load_drafter(tmp_path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """transformers draws what is missing at random and only warns."""
    families.causal_lm(0).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model\.norm\.weight"):
        load_drafter(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    families.causal_lm(0).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="no drafter could be loaded"):
        load_drafter(tmp_path)


def test_weights_in_another_format_are_refused(tmp_path: Path) -> None:
    """A pickle executes what it likes when it is loaded."""
    families.causal_lm(0).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle, which executes"):
        load_drafter(tmp_path)


@pytest.mark.parametrize(
    "path", ["./eagle", "/nowhere/eagle", "~/eagle", "here/eagle", "a/b/eagle"]
)
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A slip of the pen took a minute and a half of the hub's retries."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(loading, "_load", lambda *_: pytest.fail("it was looked for"))
    for given in (path, Path(path)):
        with pytest.raises(ValueError, match="there is no such folder; expected"):
            load_drafter(given)


def test_what_is_not_on_the_hub_is_not_here_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message spoke of a connection, and the folder was what was missing."""

    def offline(*_: object) -> None:
        raise OSError("we couldn't connect")

    monkeypatch.setattr(loading, "_load", offline)
    with pytest.raises(ValueError, match="there is no such folder here, and from the hub no"):
        load_drafter("runs-elsewhere/eagle")
