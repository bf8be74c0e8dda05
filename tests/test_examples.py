"""The examples do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

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


def test_an_application_of_ones_own_answers_as_generate() -> None:
    """An engine that is not closed with the application, or an answer that lost its last word."""
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
        assert client.post("/read", content=b"x" * (module.LARGEST + 1)).status_code == 413
        engine = client.app.state.engine  # type: ignore[attr-defined]  # an application's
        assert engine.stats.pages_taken == 0
    assert engine.stats.draining
