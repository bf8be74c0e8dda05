"""`specdec doctor`: what it finds, and that its exit code says whether something is in the way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import BltConfig, FalconH1Config, MambaConfig

from specdec.commands import doctor
from support import families
from support.command_line import Cli, expect_error


def line(output: str, name: str) -> str:
    """The line of the report about `name`."""
    found = re.findall(rf"^.*\b{name}\b.*$", output, re.MULTILINE)
    assert found, output
    return str(found[0])


def test_versions_and_devices(cli: Cli) -> None:
    result = cli("doctor")
    assert result.exit_code == 0, result.stdout
    for name in ("python", "specdec", "torch", "transformers"):
        assert "✓" in line(result.stdout, name)
    assert line(result.stdout, "cpu")
    assert line(result.stdout, "triton")


@pytest.mark.parametrize(
    "requirement", ["torch>=99", "transformers<6,>=5.99", "no-such-package>=1"]
)
def test_unsatisfied_bound(cli: Cli, requirement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_requirements", lambda: [requirement])
    result = cli("doctor")
    assert result.exit_code == 2
    assert requirement in line(result.stdout, re.split("[<>]", requirement)[0])


@pytest.mark.parametrize(("kind", "name"), [("drafter", "text_only"), ("eagle", "eagle")])
def test_model_and_drafter_that_fit(
    cli: Cli, llava: Path, kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    result = cli("doctor", "--model", llava, "--drafter", request.getfixturevalue(kind))
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "LlavaForConditionalGeneration" in line(result.stdout, "class")
    assert "3 × full_attention" in line(result.stdout, "text tower")
    assert str(families.IMAGE) in line(result.stdout, "visual tokens")
    assert "✓" in line(result.stdout, "supported")
    assert "✓" in line(result.stdout, "fits")
    assert name in line(result.stdout, "kind")


def test_drafter_that_does_not_fit(cli: Cli, llava: Path, tmp_path: Path) -> None:
    families.causal_lm(vocab_size=40).save_pretrained(tmp_path)
    result = cli("doctor", "--model", llava, "--drafter", tmp_path)
    assert result.exit_code == 2
    assert re.search("vocabulary of 40.*160", line(result.stdout, "fits"))


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (MambaConfig(), "linear_attention"),
        (FalconH1Config(), "layers of type hybrid"),
        (BltConfig(), "cannot be made out"),
    ],
)
def test_unsupported_models(cli: Cli, tmp_path: Path, config: MambaConfig, pattern: str) -> None:
    """By configuration alone: none of these has weights, and some would fill a rack."""
    config.save_pretrained(tmp_path)
    result = cli("doctor", "--model", tmp_path)
    assert result.exit_code == 2
    assert re.search(pattern, line(result.stdout, "supported")), result.stdout


def test_incomplete_checkpoint(cli: Cli, llava: Path, tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    result = cli("doctor", "--model", tmp_path)
    assert result.exit_code == 2
    assert "✓" in line(result.stdout, "supported")
    assert "no weights" in line(result.stdout, "weights")
    assert "cannot be loaded" in line(result.stdout, "processor")


def test_mistakes(cli: Cli) -> None:
    expect_error(cli("doctor", "--drafter", "ngram"), "pass --model as well")
    result = cli("doctor", "--model", "no/such")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
