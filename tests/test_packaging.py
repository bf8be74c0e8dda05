"""The package as installed: its folders, its version, and what importing it drags in."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import specdec

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


IMPORTS = """
import importlib, json, pkgutil, re, sys
from collections import defaultdict
from pathlib import Path
import torch

def touched(*args, **kwargs):
    raise AssertionError("import specdec asked CUDA")

kept = {}
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device"):
    kept[name] = getattr(torch.cuda, name)
    setattr(torch.cuda, name, touched)
before = set(sys.modules)
import specdec
for name, function in kept.items():
    setattr(torch.cuda, name, function)
heavy = re.compile(r"triton(\\.|$)|transformers\\.models\\..*\\.(modeling|processing)_")
heavy = sorted(name for name in set(sys.modules) - before if heavy.match(name))

import specdec.drafters, specdec.verifiers, specdec.training, specdec.eval

def modules(package):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)

for name in ("", ".drafters", ".verifiers", ".training", ".eval"):
    modules(sys.modules["specdec" + name])
names = defaultdict(list)
for name, module in list(sys.modules.items()):
    if getattr(module, "__file__", None):
        names[str(Path(module.__file__).resolve())].append(name)
root = Path(specdec.__file__).resolve().parents[1]
twice = {
    file: copies
    for file, copies in names.items()
    if len(copies) > 1 and Path(file).is_relative_to(root) and ".venv" not in file
}
print(json.dumps({"heavy": heavy, "twice": twice}))
"""


@pytest.fixture(scope="module")
def imported() -> Any:
    """What `import specdec` loads, and modules that have two names once all are loaded: of one
    fresh interpreter, since torch takes long to load.
    """
    command = [sys.executable, "-W", "error", "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def folders_with_code(folder: Path) -> list[Path]:
    """The folders that hold Python files, ``folder`` and all below it; links are not followed."""
    found = [folder] if list(folder.glob("*.py")) else []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink():
            found += folders_with_code(child)
    return found


def test_mapping_matches_folders_on_disk() -> None:
    """A new package folder that nobody listed works in a checkout and is missing from the wheel."""
    on_disk = {}
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in folders_with_code(ROOT / folder):
            name = ".".join([package, *path.relative_to(ROOT / folder).parts])
            on_disk[name] = path
    assert sorted(SETUPTOOLS["packages"]) == sorted(on_disk)
    bare = [str(path) for path in on_disk.values() if not (path / "__init__.py").exists()]
    assert not bare, "packages without __init__.py"


def test_packages_come_from_this_checkout() -> None:
    """Tests that run against another installed copy prove nothing about this one."""
    assert Path(specdec.__file__ or "").resolve().is_relative_to(ROOT)


def test_versions_agree() -> None:
    assert importlib.metadata.version("specdec-lvlm") == PROJECT["project"]["version"]


@pytest.mark.parametrize("table", ["dependencies", "train", "serve", "ray", "docs", "dev"])
def test_direct_dependencies_are_pinned(table: str) -> None:
    """An unpinned direct dependency makes two runs of the checks, a week apart, differ."""
    project = PROJECT["project"]
    listed = project.get(table) or project["optional-dependencies"][table]
    pins = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    names = {requirement.split(">=")[0].split("[")[0] for requirement in listed}
    assert names - {project["name"]} <= pins


def test_the_oldest_releases_are_those_that_are_required() -> None:
    """`make test-min` would prove a bound that nobody is held to."""
    required = dict(line.split(">=") for line in PROJECT["project"]["dependencies"] if ">=" in line)
    lines = (ROOT / "constraints-min.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for name in ("torch", "transformers"):
        assert pins[name].removesuffix(".0") == required[name].split(",")[0]


def test_import_is_light(imported: Any) -> None:
    """``import specdec`` must not load triton or a model, nor ask CUDA anything: on a server that
    forks its workers, a CUDA context made at import time breaks every child."""
    assert imported["heavy"] == []


def test_no_module_is_loaded_twice(imported: Any) -> None:
    """A module imported under two names has two copies of every class, and isinstance fails between
    them. The links of ``make links`` and the names of the root folders both invite that."""
    assert imported["twice"] == {}
