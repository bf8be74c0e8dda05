"""The examples do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException, Request
from fastapi.testclient import TestClient

import specdec
from specdec import demo

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> Any:  # Any: a module
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_drafter_is_exported_every_time(tmp_path: Path) -> None:
    """The drafter of the run before, served in silence because its export is still there."""
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").touch()
    command = tmp_path / "specdec"
    command.write_text("#!/bin/sh\necho $*\nexit 3\n")
    command.chmod(0o755)
    ran = subprocess.run(
        ["bash", EXAMPLES / "drafter_in_vllm.sh", "drafter", "verifier"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, "export drafter --to vllm --out exported" in ran.stdout) == (3, True)


def test_an_upload_without_a_length_is_not_read_whole() -> None:
    """A body in pieces that says nothing of its size, and fills the memory."""
    module = example("fastapi_app")
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": b"x" * (1 << 18), "more_body": True}

    request = Request({"type": "http", "headers": []}, receive)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(module.upload(request))
    assert (refused.value.status_code, sent) == (413, 5)


def test_an_application_of_ones_own_answers_as_generate() -> None:
    """An engine that is not closed with the application, an answer that lost its last word, a few
    bytes that take all memory.
    """
    module = example("fastapi_app")
    model, processor, _ = demo.load()
    path = demo.ASSETS / "images" / "000.png"
    inputs = module.encode(processor, demo.Image.open(path), "Read row 1, column 1.")
    out = specdec.generate(model, **inputs, max_new_tokens=64)
    expected = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    with TestClient(module.create_app()) as client:
        answer = client.post("/read?row=1&column=1", content=path.read_bytes())
        assert (answer.status_code, answer.text) == (200, expected)
        assert client.post("/read", content=b"no image").status_code == 400
        for width in (4000, 14000):  # more than is read, more than Pillow reads
            bomb = io.BytesIO()
            demo.Image.new("1", (width, width)).save(bomb, "PNG")
            refused = client.post("/read", content=bomb.getvalue())
            assert (refused.status_code, "pixels" in refused.text) == (400, True)
        assert client.post("/read", content=b"x" * (module.LARGEST + 1)).status_code == 413
        engine = client.app.state.engine  # type: ignore[attr-defined]  # an application's
        assert engine.stats.pages_taken == 0
    assert engine.stats.draining
