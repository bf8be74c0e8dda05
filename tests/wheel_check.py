"""Builds the sdist, the wheel from it, installs the wheel and uses it from outside the repository.

Run by ``make check``. Builds from a copy of the tracked and untracked-but-not-ignored files, so
neither the links of ``make links`` nor an old ``build/`` can lend the wheel a file it lacks. The
wheel goes into an environment of its own that sees this one's third-party packages but not its
editable install.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOT_FOLDERS = ("drafters", "verifiers", "training", "eval")

# Runs inside the new environment: imports every module of the package and says where it came from.
# Those that need triton are passed over where there is none.
IMPORT_ALL = """
import importlib, json, pkgutil, sys
import specdec
found = {"specdec": specdec.__file__}
for module in pkgutil.walk_packages(specdec.__path__, "specdec."):
    try:
        found[module.name] = importlib.import_module(module.name).__file__
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
print(json.dumps(found))
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"wheel_check: {' '.join(map(str, command))} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(condition: bool, message: str) -> None:
    if not condition:
        sys.exit(f"wheel_check: {message}")


def source_files() -> list[Path]:
    """Paths, relative to the root, of what a commit of everything would hold."""
    if (ROOT / ".git").exists():
        listed = run(
            "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
        )
        return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]
    skipped = {".venv", "build", "dist", "runs"}
    return [
        path.relative_to(ROOT)
        for path in ROOT.rglob("*")
        if path.is_file() and not skipped.intersection(path.relative_to(ROOT).parts)
    ]


def build_wheel(workspace: Path) -> Path:
    source = workspace / "source"
    for name in source_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    out = workspace / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=workspace)
    (wheel,) = out.glob("*.whl")
    return wheel


def expected_members() -> set[str]:
    """What the wheel must hold: every module and asset, under the name it is imported by."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {folder: package for package, folder in settings["package-dir"].items()}
    members = set()
    for name in source_files():
        top = name.parts[0]
        if top not in folders or "__pycache__" in name.parts:
            continue
        module_or_page = name.suffix in {".py", ".html", ".css", ".js"}
        if module_or_page or name.parts[:2] == ("specdec", "assets"):
            members.add(str(Path(*folders[top].split("."), *name.parts[1:])))
    return members


def install(wheel: Path, environment: Path) -> tuple[Path, Path]:
    """Its interpreter and site-packages."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    site = Path(paths["purelib"])
    # A path in a .pth file is searched, but the .pth files found there, editable installs among
    # them, are not read.
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    quiet = ("--quiet", "--disable-pip-version-check")
    run(
        *(sys.executable, "-m", "pip", "--python", python),
        *("install", "--no-deps", "--no-index", *quiet, wheel),
        cwd=environment,
    )
    return python, site


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="specdec-wheel-") as name:
        workspace = Path(name).resolve()
        wheel = build_wheel(workspace)
        members = set(zipfile.ZipFile(wheel).namelist())
        lacking = sorted(expected_members() - members)
        expect(not lacking, f"the wheel lacks {', '.join(lacking)}")
        tops = {member.split("/")[0] for member in members}
        stray = sorted(top for top in tops if top != "specdec" and not top.endswith(".dist-info"))
        expect(not stray, f"the wheel puts {', '.join(stray)} into site-packages")

        python, site = install(wheel, workspace / "venv")
        outside = workspace / "elsewhere"
        outside.mkdir()
        found = json.loads(run(python, "-c", IMPORT_ALL, cwd=outside).splitlines()[-1])
        for module, file in found.items():
            expect(Path(file).is_relative_to(site), f"{module} was imported from {file}")
        for folder in ROOT_FOLDERS:
            expect(not (site / folder).exists(), f"{folder} reached site-packages")
            expect(f"specdec.{folder}" in found, f"specdec.{folder} is not in the wheel")
        run(workspace / "venv" / "bin" / "specdec", "--help", cwd=outside)
        size = wheel.stat().st_size / 2**20
        print(f"{wheel.name}: {size:.1f} MiB, {len(found)} modules imported outside the repository")


if __name__ == "__main__":
    main()
