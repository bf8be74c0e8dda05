"""A disk that is full while something is written: what was there stays, and the message says what
could not be written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from specdec.drafters import checkpoint_files
from specdec.drafters.checkpoint_files import write_checkpoint
from specdec.files import replacing, write_json, write_text
from specdec.reliance import Probe
from specdec.saved_reliance import save_reliance
from specdec.training import checkpoint, feature_shards, saving
from specdec.training.skipped import Skipped, write_skipped

FULL = OSError(errno.ENOSPC, "No space left on device")


def _fail(*_: object, **__: object) -> None:
    raise FULL


def _fail_half_way(_: object, path: Path, *__: object, **___: object) -> None:
    with path.open("wb") as file:
        file.write(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


def _reliance(folder: Path) -> None:
    probe = Probe(torch.ones(4), torch.zeros(()))
    save_reliance(
        folder,
        probe,
        None,
        fingerprint="f",
        verifier="v",
        drafter="d",
        layers=1,
        heads=0,
        facts={},
    )


WRITERS: dict[str, Callable[[Path], object]] = {
    "record.json": lambda folder: write_json(folder / "record.json", {"a": 1}),
    "log.txt": lambda folder: write_text(folder / "log.txt", "lines"),
    "skipped.jsonl": lambda f: write_skipped(f / "skipped.jsonl", [Skipped("here", "so")]),
    "model.safetensors": lambda f: write_checkpoint(f, {"a": torch.ones(2)}, "drafter.json", {}),
    "state.safetensors": lambda folder: checkpoint.save(
        folder / "state.safetensors", {"a": torch.ones(2)}
    ),
    "reliance.safetensors": _reliance,
}


@pytest.mark.parametrize("when", ["writing", "moving"])
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    """A checkpoint cut off in the middle, in the place of the one that was whole; or a file of
    gigabytes with another ending, on a disk that is full already."""
    WRITERS[name](tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if when == "moving":
        monkeypatch.setattr(Path, "replace", _fail)
    else:
        monkeypatch.setattr(Path, "write_text", _fail)
        monkeypatch.setattr(Path, "write_bytes", _fail)
        for module in (checkpoint, checkpoint_files):
            monkeypatch.setattr(module, "save_file", _fail_half_way)
    with pytest.raises(OSError, match="No space left") as caught:
        WRITERS[name](tmp_path)
    monkeypatch.undo()
    assert str(tmp_path / name) in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_shards_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are the largest of all files, and the first that a full disk meets."""

    def half(_: object, path: Path, *__: object) -> None:
        path.write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(feature_shards, "save_file", half)
    shards = feature_shards.FeatureShards.__new__(feature_shards.FeatureShards)
    shards.folder = tmp_path
    monkeypatch.setattr(shards, "_about", lambda index: {}, raising=False)
    with pytest.raises(OSError, match=r"features-00003\.safetensors"):
        shards.write(3, [])
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training's checkpoint is several files; the last ones meet a full disk. The one before it
    must be there to resume from, and nothing of the new one."""
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / saving.WEIGHTS).write_bytes(b"whole")
    monkeypatch.setattr(saving, "save_weights", lambda trainer, file: file.write_bytes(b"weights"))
    monkeypatch.setattr(saving, "_optimizer_state", lambda trainer: {})
    monkeypatch.setattr(checkpoint, "save_file", _fail_half_way)
    trainer: Any = SimpleNamespace(
        folder=tmp_path,
        state=SimpleNamespace(global_step=20),
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
        args=SimpleNamespace(should_save=True, process_index=0),
    )
    with pytest.raises(OSError, match=r"no checkpoint was written: .*No space.*checkpoint-20"):
        saving.save(trainer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert saving.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_folders_are_cleared_away(tmp_path: Path) -> None:
    """Whatever it was that ended the writing, Ctrl-C for instance."""

    def interrupted() -> None:
        with replacing(tmp_path / "folder") as unfinished:
            unfinished.mkdir()
            (unfinished / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
