"""A folder as a reader has it: a clone's assets, a picture, drafters that were trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from specdec.demo import ASSETS


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever is written lands here, and not in the checkout."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "specdec").mkdir()
    (folder / "specdec" / "assets").symlink_to(ASSETS)
    (folder / "runs").mkdir()
    (folder / "runs" / "eagle").symlink_to(ASSETS / "eagle-shared")
    return folder


@pytest.fixture
def reader(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as where one is."""
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "400")
    return clone
