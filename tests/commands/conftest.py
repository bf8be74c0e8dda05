"""Tiny checkpoints on disk, and the command line as a function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner, Result

from specdec.cli import app
from specdec.drafters.eagle_files import save_eagle
from specdec.drafters.eagle_head import EagleHead
from specdec.drafters.loading import save_drafter
from specdec.training.answers import Teacher
from specdec.training.kinds import Geometry, head_config
from support import families, processors
from support.command_line import Cli


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line; wide enough that no line is folded."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language checkpoint with its processor."""
    folder = tmp_path_factory.mktemp("llava")
    families.build("llava").model.save_pretrained(folder)
    processors.build().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with its tokenizer, without a chat template and with a context of 32."""
    folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(7)
    config = LlamaConfig(**families.TEXT | {"max_position_embeddings": 32})
    families.sharpen(LlamaForCausalLM(config).eval()).save_pretrained(folder)
    processors.build().tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved drafter that fits both."""
    folder = tmp_path_factory.mktemp("drafter")
    save_drafter(families.causal_lm(8), folder, verifier="llava")
    return folder


@pytest.fixture(scope="session")
def eagle(tmp_path_factory: pytest.TempPathFactory, llava: Path) -> Path:
    """A saved EAGLE head for the vision-language checkpoint, whose embeddings it reads."""
    folder = tmp_path_factory.mktemp("eagle")
    teacher = Teacher(families.build("llava").model, processors.build())
    config = head_config(teacher, Geometry(vision="shared"))
    assert not config.own_embeddings
    save_eagle(EagleHead(config), folder, verifier="llava")
    return folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file."""
    path = tmp_path_factory.mktemp("images") / "picture.png"
    processors.image(0).save(path)
    return path
