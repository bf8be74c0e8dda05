"""Data sets by name and by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from specdec.training.tables import image_sources, open_dataset


def save(path: Path, rows: int) -> Path:
    """Rows in a file as the hub has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"row": list(range(rows))}).to_parquet(str(path))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_parquet_files_of_several_splits(tmp_path: Path) -> None:
    """Files of one folder must not be mixed across splits, nor a split be read in part."""
    folder = tmp_path / "data"
    save(folder / "test-00000-of-00002.parquet", 2)
    save(folder / "test-00001-of-00002.parquet", 3)
    train = save(folder / "train-00000-of-00001.parquet", 7)
    assert len(open_dataset(str(folder)).dataset) == 7
    assert len(open_dataset(str(folder), "test").dataset) == 5
    with pytest.raises(ValueError, match="has the splits test, train; give one's own folder or"):
        open_dataset(str(folder), "validation")
    found = open_dataset(str(train), "validation")
    assert len(found.dataset) == 7
    assert found.folder == folder


def test_an_arrow_file(tmp_path: Path) -> None:
    """A file of its own is read like its folder."""
    datasets.Dataset.from_dict({"row": [1, 2]}).save_to_disk(str(tmp_path / "saved"))
    [file] = (tmp_path / "saved").glob("*.arrow")
    assert len(open_dataset(str(file)).dataset) == 2
    with pytest.raises(ValueError, match="nowhere is no folder; expected"):
        open_dataset(str(tmp_path / "nowhere"))


def test_the_split_that_is_asked_for(tmp_path: Path) -> None:
    """Benchmarks ask for another split than training; the only one there will do."""
    one = datasets.Dataset.from_dict({"row": [1]})
    both = datasets.DatasetDict({"train": one, "test": datasets.Dataset.from_dict({"row": [1, 2]})})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(open_dataset(str(tmp_path / "both")).dataset) == 1
    assert len(open_dataset(str(tmp_path / "both"), "test").dataset) == 2
    datasets.DatasetDict({"val": one}).save_to_disk(str(tmp_path / "single"))
    assert len(open_dataset(str(tmp_path / "single"), "test").dataset) == 1


def test_configurations_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of three parts has its configuration in the middle."""
    asked = []

    def load(*names: str, split: str) -> datasets.Dataset:
        asked.append((names, split))
        return datasets.Dataset.from_dict({"row": [1]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_dataset("hub:owner/name:part (10):val")
    open_dataset("hub:owner/name", "test")
    assert asked == [(("owner/name", "part (10)"), "val"), (("owner/name",), "test")]


@pytest.mark.parametrize("cell", [None, 5, {"bytes": None, "path": None}, [b"x", None]])
def test_a_cell_without_an_image(cell: Any) -> None:
    """It is named, not passed on."""
    with pytest.raises(ValueError, match="column 'picture' holds no image"):
        image_sources(cell, "picture", Path())


def test_images_of_a_cell() -> None:
    """Bytes come before a path, which may be of another machine; paths are of the data's folder."""
    assert image_sources({"bytes": b"x", "path": "a.png"}, "image", Path()) == [b"x"]
    here = str(Path("/data/a.png"))
    assert image_sources([{"bytes": None, "path": "a.png"}], "image", Path("/data")) == [here]
