from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specdec.training.answers import Teacher
from support import families, processors
from support.small import Small, build


@pytest.fixture(scope="session")
def small() -> Small:
    return build()


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    return Teacher(families.build("llava").model, processors.build(), max_new_tokens=8, top=4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that tests start: sums are the same to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of prompts: two thirds with one image, the rest with two."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = []
    for i in range(30):
        processors.image(i).save(folder / f"{i}.png")
        text = processors.messages(i)[0]["content"][-1]["text"]
        images = {"image": f"{i}.png"} if i % 3 else {"images": [f"{i}.png", "0.png"]}
        rows.append(json.dumps({**images, "prompt": text}))
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return folder
