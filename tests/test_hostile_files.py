"""Checkpoints, drafters and policies as strangers may have written them: whatever they hold, the
answer is that they are refused, by name, or that they load."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from specdec.commands import UserError
from specdec.commands.checkpoint import load_model, load_processor, open_checkpoint
from specdec.demo import ASSETS
from specdec.files import read_json
from specdec.saved_reliance import load_reliance
from support import families

ODD_VALUES: tuple[Any, ...] = (
    *(None, -1, 0, True, 10**30, 10**400, 1e308, float("nan")),
    *("x" * 100, "../../etc/passwd", [], {}, [[]], {"a": 1}, [None] * 3),
)
ODD_FILES = (
    *(b"", b"\xff\xfe\x00", b"[]", b"null", b"NaN", b"{}", b'{"kind": ["eagle"]}'),
    *(b"[" * 200_000, b'{"a":' * 200_000, b'{"a": ' + b"9" * 5000 + b"}"),
)
Change = Callable[[random.Random, bytes], bytes]


def changed_json(dice: random.Random, data: bytes) -> bytes:
    """One value of another kind or size, or gone, or the whole file of another kind."""
    if dice.random() < 0.15:
        return dice.choice(ODD_FILES)
    record = json.loads(data)
    at, key = dice.choice(list(_places(record)))
    if dice.random() < 0.1:
        del at[key]
    else:
        at[key] = copy.deepcopy(dice.choice(ODD_VALUES))
    return json.dumps(record).encode()


def _places(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for key, value in record.items():
        if key not in ("plan", "figures", "acceptance", "training"):  # for people to read
            yield record, key
            if isinstance(value, dict):
                yield from _places(value)


def changed_tensors(dice: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header lies, is cut off or no header, or whose values are none."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = dice.choice([each for each in header if each != "__metadata__"])
    entry, kind = header[name], dice.randrange(7)
    if kind == 0:
        lengths = (0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1)
        return struct.pack("<Q", dice.choice(lengths)) + data[8:]
    if kind == 1:
        return data[: dice.choice((0, 5, len(data) // 2, len(data) - 1))]
    if kind == 2:
        text = dice.choice(ODD_FILES)
        return struct.pack("<Q", len(text)) + text + body
    if kind == 3:
        start, end = entry["data_offsets"]
        return data[: 8 + length] + body[:start] + b"\xff" * (end - start) + body[end:]
    if kind == 4:
        entry["dtype"] = dice.choice(("F64", "F16", "I64", "BOOL", "F8_E4M3", "X", None, 5))
    elif kind == 5:
        entry["shape"] = dice.choice(([], [0], [-1], [2**62, 4], [10**30], None, "x"))
    else:
        offsets = ([0, 0], [0, 10**12], [-1, 5], [5, 3], [0], [2**63, 2**64], None)
        entry["data_offsets"] = dice.choice(offsets)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _reliance(folder: Path) -> None:
    load_reliance(folder, "combined")


def _checkpoint(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    load_processor(checkpoint)
    load_model(checkpoint, torch.float32)


def _policy(folder: Path) -> None:
    model = families.causal_lm(0)
    if not (folder / "policy.json").exists():
        specdec.save_policy(folder / "policy.json", specdec.Relaxed(0.2, budget=3.0), model)
    specdec.load_policy(folder / "policy.json", model)


def _refusal(load: Callable[[Path], object], folder: Path) -> str | None:
    try:
        load(folder)
    except (UserError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("assets", "load", "changes", "count"),
    [
        ("drafter", specdec.load_drafter, {"drafter.json": changed_json}, 15),
        ("drafter", specdec.load_drafter, {"config.json": changed_json}, 40),
        ("drafter", specdec.load_drafter, {"model.safetensors": changed_tensors}, 25),
        ("eagle-shared", specdec.load_drafter, {"drafter.json": changed_json}, 40),
        ("eagle-hidden", specdec.load_drafter, {"model.safetensors": changed_tensors}, 30),
        ("lvlm/reliance", _reliance, {"reliance.json": changed_json}, 60),
        ("lvlm/reliance", _reliance, {"reliance.safetensors": changed_tensors}, 60),
        ("lvlm", _checkpoint, {"config.json": changed_json}, 20),
        ("lvlm", _checkpoint, {"model.safetensors": changed_tensors}, 8),
        ("lvlm", _checkpoint, {"processor_config.json": changed_json}, 8),
        (None, _policy, {"policy.json": changed_json}, 60),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.filterwarnings("ignore")  # transformers' advice about configurations that are odd
def test_whatever_a_file_holds(
    tmp_path: Path,
    assets: str | None,
    load: Callable[[Path], object],
    changes: Mapping[str, Change],
    count: int,
) -> None:
    """A KeyError or an AssertionError tells a user nothing, and ends a server that reloads."""
    folder = tmp_path / "folder"
    shutil.copytree(ASSETS / assets, folder) if assets else folder.mkdir()
    load(folder)
    dice, refused = random.Random(1), 0
    for name, change in changes.items():
        data = (folder / name).read_bytes()
        for _ in range(count):
            (folder / name).write_bytes(change(dice, data))
            message = _refusal(load, folder)
            assert message is None or str(folder) in message
            refused += message is not None
        (folder / name).write_bytes(data)
    assert refused >= count / 10


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    """With one NaN a probe says NaN of every token, a drafter draws from nothing; and who calls it
    learns so in the middle of somebody's answer."""
    for assets in ("drafter", "eagle-hidden"):
        file = shutil.copytree(ASSETS / assets, tmp_path / assets) / "model.safetensors"
        tensors = load_file(file)
        tensors["norm.weight" if assets == "eagle-hidden" else "model.norm.weight"][3] = torch.nan
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rf"{assets}: .*norm.weight has values that are no"):
            specdec.load_drafter(file.parent)
    folder = shutil.copytree(ASSETS / "lvlm" / "reliance", tmp_path / "reliance")
    tensors = load_file(folder / "reliance.safetensors")
    tensors["probe.weight"][3] = torch.inf
    save_file(tensors, folder / "reliance.safetensors")
    facts = json.loads((folder / "reliance.json").read_text())
    digest = hashlib.sha256((folder / "reliance.safetensors").read_bytes()).hexdigest()
    (folder / "reliance.json").write_text(json.dumps(facts | {"tensors_sha256": digest}))
    with pytest.raises(ValueError, match=r"reliance.safetensors: probe.weight is not of finite"):
        load_reliance(folder)


def test_shards_elsewhere(tmp_path: Path) -> None:
    """An index that lists ../../home/somebody/model.safetensors must not read it."""
    outside = shutil.copytree(ASSETS / "drafter", tmp_path / "outside")
    for name in ("drafter", "eagle-hidden", "lvlm"):
        folder = shutil.copytree(ASSETS / name, tmp_path / name)
        (folder / "model.safetensors").unlink()
        for place in ("../outside/model.safetensors", str(outside / "model.safetensors")):
            index = {"metadata": {}, "weight_map": {"lm_head.weight": place}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            load = _checkpoint if name == "lvlm" else specdec.load_drafter
            with pytest.raises((UserError, ValueError), match="points outside of its folder"):
                load(folder)


def test_pickles(tmp_path: Path) -> None:
    """A pickle runs code when it is loaded, and this one would say so."""

    class Run:
        def __reduce__(self) -> tuple[object, ...]:
            return pytest.fail, ("the pickle was loaded",)

    for name in ("drafter", "eagle-hidden", "lvlm"):
        folder = shutil.copytree(ASSETS / name, tmp_path / name)
        (folder / "model.safetensors").unlink()
        torch.save(Run(), folder / "pytorch_model.bin")
        load = _checkpoint if name == "lvlm" else specdec.load_drafter
        with pytest.raises((UserError, ValueError), match="pickle"):
            load(folder)


def test_models_that_would_take_all_memory(tmp_path: Path) -> None:
    """A configuration is a few bytes, and what it describes is built before weights are read."""
    sizes = {"num_hidden_layers": 10**9, "vocab_size": 2**40, "hidden_size": 2**20}
    for name, value in sizes.items():
        folder = shutil.copytree(ASSETS / "drafter", tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))
        for load in (specdec.load_drafter, _checkpoint):
            with pytest.raises(
                (UserError, ValueError), match=rf"says {name} = |do not belong together"
            ):
                load(folder)


def test_huge_json(tmp_path: Path) -> None:
    """A file of gigabytes is refused before it is read."""
    file = tmp_path / "policy.json"
    with file.open("wb") as opened:
        opened.truncate(2**33)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"policy.json has 8589934592 bytes, too many"):
        read_json(file)
