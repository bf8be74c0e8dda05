"""The README's Python examples run as they stand, one after the other, like a reader's session."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import specdec
from specdec.demo import ASSETS

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.skipif(not (ASSETS / "lvlm").exists(), reason="no demonstration model here yet")
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that does not run is worse than none. The three that are greedy and lossless must
    agree, too.
    """
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    Image.new("RGB", (112, 112), "white").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    session: dict[str, Any] = {}
    answers = []
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)
        if "out" in session:
            answers.append(session["out"].tolist())
    greedy, _sampled, through_transformers, drafted_badly, _relaxed = answers
    assert greedy == through_transformers == drafted_badly
    assert isinstance(session["out"].stats, specdec.AcceptanceStats)
    assert session["out"].ledger[0]
