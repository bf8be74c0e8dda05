"""`specdec export`: what it writes and says, and one clear line for every mistake."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specdec.drafters.eagle_files import read_eagle, save_eagle
from specdec.drafters.eagle_head import EagleHead
from support import eagle_heads, families, raw_eagle
from support.command_line import Cli, expect_error

FITTING = {
    "hidden_size": families.TEXT["hidden_size"],
    "target_hidden_size": families.TEXT["hidden_size"],
    "vocab_size": families.VOCAB,
    "layers": (1, 2, 3),
}


def head(**changes: Any) -> EagleHead:
    """A head for the vision-language checkpoint."""
    return eagle_heads.head(**FITTING | changes)


@pytest.fixture
def eagle(tmp_path: Path, llava: Path) -> Path:
    save_eagle(head(), tmp_path / "eagle", verifier=str(llava))
    return tmp_path / "eagle"


def served(output: str) -> list[str]:
    """The words of the command that serves the export."""
    return shlex.split(output.split("serve: ")[1])


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_raw(cli: Cli, eagle: Path, llava: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "my export"
    result = cli("export", eagle, "--to", engine, "--out", out)
    assert result.exit_code == 0, result.stderr
    settings, tensors = raw_eagle.read_strictly(out)
    assert settings["max_position_embeddings"] == 512
    assert tensors["fc.weight"].dtype == torch.bfloat16
    assert f"wrote {out}: config.json, model.safetensors (" in result.stdout
    assert f"for {llava}, reading its hidden states 1, 2, 3\n" in result.stdout
    words = served(result.stdout)
    if engine == "sglang":
        assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", str(llava)]
        assert words[5:] == [
            *("--speculative-algorithm", "EAGLE3"),
            *("--speculative-draft-model-path", str(out)),
        ]
    else:
        assert words[:3] == ["vllm", "serve", str(llava)]
        config = {"method": "eagle3", "model": str(out), "num_speculative_tokens": 3}
        assert json.loads(words[4]) == config


def test_speculators(cli: Cli, eagle: Path, llava: Path, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--dtype", "fp32", "--tokens", 5)
    result = cli("export", eagle, "--to", "speculators", *options)
    assert result.exit_code == 0, result.stderr
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    spoken = settings["speculators_config"]
    assert spoken["verifier"]["name_or_path"] == str(llava)
    assert spoken["verifier"]["architectures"] == ["LlavaForConditionalGeneration"]
    assert spoken["proposal_methods"][0]["speculative_tokens"] == 5
    assert served(result.stdout) == ["vllm", "serve", str(tmp_path / "out")]
    assert eagle_heads.same(read_eagle(tmp_path / "out")[0], head())


def test_embeddings_are_those_of_the_verifier(
    cli: Cli, eagle: Path, llava: Path, tmp_path: Path
) -> None:
    """The vision tower of the checkpoint has embeddings as well."""
    options = ("--out", tmp_path / "out", "--dtype", "fp32", "--embeddings")
    result = cli("export", eagle, "--to", "speculators", *options)
    assert result.exit_code == 0, result.stderr
    written = load_file(tmp_path / "out" / "model.safetensors")["embed_tokens.weight"]
    stored = load_file(llava / "model.safetensors")
    names = [name for name in stored if name.endswith("embed_tokens.weight")]
    assert [written.equal(stored[name]) for name in names] == [True]


def test_an_export_can_be_exported(cli: Cli, eagle: Path, llava: Path, tmp_path: Path) -> None:
    """Also where the layers have to be told from the verifier: 2, 3 // 2, 3 − 3."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli("export", eagle, "--to", "sglang", "--out", first).exit_code == 0
    settings = json.loads((first / "config.json").read_text())
    for name in ("eagle_aux_hidden_state_layer_ids", "eagle_config", "specdec"):
        del settings[name]
    (first / "config.json").write_text(json.dumps(settings))
    result = cli("export", first, "--to", "vllm", "--out", second)
    expect_error(result, "cannot be read: .* does not say which layers")
    options = ("--to", "vllm", "--out", second, "--verifier", llava, "--dtype", "auto")
    result = cli("export", first, *options)
    assert result.exit_code == 0, result.stderr
    assert read_eagle(second)[0].config.layers == (2, 1, 0)
    assert load_file(second / "model.safetensors")["fc.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "engine", "pattern"),
    [
        ({"vision": "compressed"}, "vllm", "exported to vllm: .*'compressed' runs in specdec only"),
        ({"vision": "shared", "shared_layer": 1}, "speculators", "'shared' runs in specdec only"),
        ({"norm_before_residual": True}, "sglang", "norm_before_residual, which SGLang"),
        ({"vocab_size": 190}, "vllm", "of vocabulary 190, .* has"),
    ],
)
def test_heads_that_stay_here(
    cli: Cli, llava: Path, tmp_path: Path, changes: dict[str, Any], engine: str, pattern: str
) -> None:
    save_eagle(head(**changes), tmp_path / "eagle", verifier=str(llava))
    result = cli("export", tmp_path / "eagle", "--to", engine, "--out", tmp_path / "out")
    expect_error(result, pattern)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["drafter", "text_model"])
def test_text_only_drafters(
    cli: Cli, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    result = cli("export", folder, "--to", "vllm", "--out", tmp_path / "out")
    expect_error(result, "is a text-only drafter: an ordinary causal language model")


def test_other_mistakes(cli: Cli, eagle: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    expect_error(cli("export", eagle, "--to", "vllm", "--out", full), "is not an empty folder")
    named = ("--to", "vllm", "--out", tmp_path / "out")
    expect_error(cli("export", full, *named), "holds no drafter")
    expect_error(cli("export", eagle, *named, "--embeddings"), "goes with --to speculators")
    result = cli("export", eagle, *named, "--verifier", full)
    expect_error(result, "config of verifier .* cannot be read")
    (eagle / "model.safetensors").unlink()
    expect_error(cli("export", eagle, *named), "cannot be read: .* has no weights")
    save_eagle(head(), eagle, verifier=str(full))
    expect_error(cli("export", eagle, *named), "cannot be read: .*; give --verifier if it lies")
    save_eagle(head(), eagle, verifier="")
    expect_error(cli("export", eagle, *named), "does not say which model .* give --verifier")
