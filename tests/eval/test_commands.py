from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from specdec.drafters.loading import save_drafter
from specdec.eval.mismatches import mismatches
from specdec.eval.sharing import sharing
from support import processors


@pytest.fixture(scope="module")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its processor, a saved drafter, and a suite of questions."""
    folder = tmp_path_factory.mktemp("suite")
    small.model.save_pretrained(folder / "lvlm")
    small.processor.save_pretrained(folder / "lvlm")
    save_drafter(small.drafter, folder / "drafter", verifier="small")
    rows = []
    for i in range(3):
        processors.image(i).save(folder / f"{i}.png")
        rows.append({"task": "t", "images": [f"{i}.png"], "messages": processors.messages(i)})
    (folder / "questions.json").write_text(json.dumps(rows))
    return folder


def _run(command: Any, folder: Path, *options: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    saved = ["--model", folder / "lvlm", "--drafter", folder / "drafter", "--suite", folder]
    return CliRunner().invoke(app, [*map(str, saved), "--max-new-tokens", "6", *options])


def test_mismatches_counts_every_answer_token(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mismatches.json"
    result = _run(mismatches, folder, "--questions", "3", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())["total"]["tokens"] == 18


def test_sharing_needs_two_questions_about_one_image(folder: Path, tmp_path: Path) -> None:
    """Also that what the second one finds is counted, that its answer passes the gate, and that
    three requests hold one copy of their image."""
    assert _run(sharing, folder).exit_code == 2
    rows = json.loads((folder / "questions.json").read_text())
    rows.append({**rows[0], "messages": rows[1]["messages"]})
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    out = tmp_path / "sharing.json"
    options = ["--suite", str(tmp_path), "--out", str(out), "--requests", "3"]
    result = _run(sharing, folder, *options)
    assert result.exit_code == 0, result.output
    record = json.loads(out.read_text())
    assert record["pairs"] == 1
    assert 16 <= record["cached_tokens"] < record["prompt_tokens"]
    assert record["image_pages_of_all"] == record["image_pages_of_one"] > 0
