from __future__ import annotations

import base64
from typing import Any

import pytest

from specdec.demo import ASSETS, Demo, load


@pytest.fixture(scope="session")
def demo() -> Demo:
    return load()


@pytest.fixture(scope="session")
def image_url() -> str:
    data = base64.b64encode((ASSETS / "images/000.png").read_bytes()).decode()
    return f"data:image/png;base64,{data}"


@pytest.fixture(scope="session")
def messages(image_url: str) -> list[dict[str, Any]]:
    """A conversation of one turn, with an image."""
    image = {"type": "image_url", "image_url": {"url": image_url}}
    text = {"type": "text", "text": "Read row 1, column 1."}
    return [{"role": "user", "content": [image, text]}]
