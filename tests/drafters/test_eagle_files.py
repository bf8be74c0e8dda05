"""Files of EAGLE heads: what is written comes back, and what is wrong is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec.drafters.eagle_files import eagle_form, read_eagle, save_eagle
from specdec.drafters.eagle_raw import export_raw
from specdec.drafters.eagle_speculators import export_speculators
from support import eagle_heads
from support.eagle_heads import VERIFIER

IDS = "eagle_aux_hidden_state_layer_ids"
WEIGHTS = "model.safetensors"


def change(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Replace settings; None removes one."""
    settings = json.loads((folder / name).read_text()) | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / name).write_text(json.dumps(kept))


def swap(folder: Path, **changes: Any) -> None:
    """Replace tensors, their names with __ for dots; None removes one."""
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({n: t for n, t in tensors.items() if t is not None}, folder / WEIGHTS)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    export_raw(eagle_heads.head(), tmp_path, VERIFIER, engine="sglang")
    return tmp_path


@pytest.fixture
def speculators(tmp_path: Path) -> Path:
    export_speculators(eagle_heads.head(), tmp_path, VERIFIER)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        *eagle_heads.KINDS.values(),
        {"vision": "compressed", "queries": 3},
        {"vision": "shared", "shared_layer": 5, "keep": 0.25},
    ],
    ids=[*eagle_heads.KINDS, "compressed", "shared"],
)
def test_a_saved_head_comes_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    head = eagle_heads.head(**changes).bfloat16()
    save_eagle(head, tmp_path / "new" / "folder", verifier="org/v", seed=3)
    read, facts = read_eagle(tmp_path / "new" / "folder")
    assert eagle_heads.same(head, read)
    assert not read.training
    assert facts == {"verifier": "org/v", "seed": 3}
    assert eagle_form(tmp_path / "new" / "folder") == "native"


def read_layers(path: Path, **options: Any) -> tuple[int, ...]:
    return read_eagle(path, **options)[0].config.layers


def test_layers_of_a_raw_folder(raw: Path) -> None:
    """The ids in eagle_config are outputs of layers if they start at 1: SGLang's own reading."""
    eagle = {"use_aux_hidden_state": True, IDS: [1, 3, 4]}
    change(raw, **{IDS: None, "eagle_config": eagle})
    assert read_layers(raw) == (2, 4, 5)
    change(raw, eagle_config={IDS: [2, 4, 5]})
    with pytest.warns(UserWarning, match="can mean inputs or outputs"):
        assert read_layers(raw) == (2, 4, 5)
    change(raw, eagle_config=None)
    with pytest.raises(ValueError, match="does not say which layers"):
        read_eagle(raw)
    assert read_layers(raw, verifier_layers=28) == (2, 14, 25)


def test_layers_of_a_speculators_folder(speculators: Path) -> None:
    change(speculators, **{IDS: None})
    with pytest.raises(ValueError, match="does not say which layers"):
        read_eagle(speculators)
    assert read_layers(speculators, verifier_layers=32) == (2, 16, 29)


def test_the_default_of_norm_before_residual(speculators: Path) -> None:
    change(speculators, norm_before_residual=None)
    with pytest.warns(UserWarning, match="does not say norm_before_residual"):
        assert not read_eagle(speculators)[0].config.norm_before_residual


def test_tensors_of_the_verifier_are_left(speculators: Path) -> None:
    swap(
        speculators,
        verifier_lm_head__weight=torch.ones(31, 24),
        verifier_norm__weight=torch.ones(24),
    )
    assert eagle_heads.same(read_eagle(speculators)[0], eagle_heads.head())


def test_legacy_positions(raw: Path) -> None:
    """Qwen2-VL's sections, as its drafters were published: {"type": "mrope"}."""
    change(raw, rope_theta=1e6, rope_scaling={"type": "mrope", "mrope_section": [2, 2, 1]})
    assert read_eagle(raw)[0].config.rope_parameters == eagle_heads.SECTIONS


def test_tables_that_may_be_left_out(tmp_path: Path) -> None:
    export_raw(eagle_heads.head(), tmp_path / "some", VERIFIER, engine="vllm")
    swap(tmp_path / "some", t2d=None)
    assert eagle_heads.same(read_eagle(tmp_path / "some")[0], eagle_heads.head())
    swap(tmp_path / "some", d2t=None)
    with pytest.raises(ValueError, match="31 of 97 tokens and lacks d2t"):
        read_eagle(tmp_path / "some")
    every = eagle_heads.head(draft_vocab_size=97)
    export_raw(every, tmp_path / "all", VERIFIER, engine="vllm")
    swap(tmp_path / "all", t2d=None, d2t=None)
    assert eagle_heads.same(read_eagle(tmp_path / "all")[0], every)


def test_shards(raw: Path) -> None:
    tensors = load_file(raw / WEIGHTS)
    (raw / WEIGHTS).unlink()
    places = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, raw / shard)
    index = raw / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert eagle_heads.same(read_eagle(raw)[0], eagle_heads.head())
    (raw / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks part-1\.safetensors"):
        read_eagle(raw)
    index.write_text(json.dumps({"weight_map": {"fc.weight": "../x.safetensors"}}))
    with pytest.raises(ValueError, match=r"points outside of its folder: \.\./x"):
        read_eagle(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d2t": eagle_heads.head().spoken}, "leads to token 120 of 97.*difference"),
        ({"d2t": torch.zeros(30, dtype=torch.long)}, r"d2t is \(30,\), its config says \(31,\)"),
        ({"d2t": torch.full((31,), 5)}, "d2t and t2d do not mean the same tokens"),
        ({"d2t": -torch.arange(31)}, "not in ascending order"),
        ({"d2t": torch.zeros(31)}, r"d2t is of type torch\.float32"),
        ({"norm__weight": None, "lm_head__weight": None}, r"lacks lm_head\.weight, norm\.weight$"),
        ({"input_norm__weight": torch.ones(72)}, r"no EAGLE head has: input_norm\.weight"),
        ({"fc__weight": torch.ones(24, 48)}, r"fc\.weight is \(24, 48\), .* says \(24, 72\)"),
    ],
)
@pytest.mark.parametrize("form", ["native", "raw"])
def test_wrong_tensors_are_refused(
    tmp_path: Path, form: str, changes: dict[str, Any], message: str
) -> None:
    """An engine that loads what fits and leaves the rest as it is."""
    if form == "native":
        save_eagle(eagle_heads.head(), tmp_path, verifier="v")
    else:
        export_raw(eagle_heads.head(), tmp_path, VERIFIER, engine="vllm")
    swap(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_eagle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2 is not supported"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"norm_before_fc": True}, "norm_before_fc = True"),
        ({"fc_norm": True}, "fc_norm = True"),
        ({"norm_output": True}, "norm_output = True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "is not EAGLE-3"),
        ({"hidden_size": None, "vocab_size": None}, "config lacks hidden_size, vocab_size"),
    ],
)
def test_other_networks_are_refused(raw: Path, changes: dict[str, Any], message: str) -> None:
    change(raw, **changes)
    with pytest.raises(ValueError, match=message):
        read_eagle(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculators_model_type": "dflash"}, "'dflash' is not 'eagle3'"),
        ({"transformer_layer_config": None}, "lacks transformer_layer_config"),
        ({"transformer_layer_config": {"model_type": "qwen3"}}, "model_type = 'qwen3'"),
        ({"transformer_layer_config": {}}, "model_type = 'qwen3'"),
        ({"norm_output": True}, "norm_output = True"),
    ],
)
def test_other_speculators_are_refused(
    speculators: Path, changes: dict[str, Any], message: str
) -> None:
    change(speculators, **changes)
    with pytest.raises(ValueError, match=message):
        read_eagle(speculators)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 9}, "format 9, this specdec reads 1"),
        ({"eagle": None}, "lacks the settings of the head"),
        ({"eagle": {"layers": [1]}}, "settings of an EAGLE head are incomplete"),
        ({"eagle": {"depth": 2}}, "unknown settings of an EAGLE head: depth"),
        ({"kind": "text_only"}, "holds no EAGLE drafter"),
    ],
)
def test_wrong_native_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_eagle(eagle_heads.head(), tmp_path, verifier="v")
    change(tmp_path, "drafter.json", **changes)
    with pytest.raises(ValueError, match=message):
        read_eagle(tmp_path)


def test_damaged_files(raw: Path) -> None:
    (raw / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is damaged"):
        read_eagle(raw)
    (raw / WEIGHTS).rename(raw / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, a pickle.*convert it"):
        read_eagle(raw)
    (raw / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="has no weights"):
        read_eagle(raw)
    (raw / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_eagle(raw)
    (raw / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no EAGLE drafter"):
        read_eagle(raw)


def test_a_name_that_the_format_uses_is_no_fact(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be named kind"):
        save_eagle(eagle_heads.head(), tmp_path, verifier="v", kind="other")
