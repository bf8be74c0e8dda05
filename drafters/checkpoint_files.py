"""Files of a checkpoint, in a folder or on the hub: safetensors and JSON, never a pickle.

Knows no model: what the tensors are is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from specdec.files import read_json, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DENSEST = 4  # parameters a byte: of two bits each
_SMALL = 2**24  # parameters that are no burden to anybody
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt")


def find(path: str, name: str) -> Path | None:
    """The file of that name in a folder, or of a hub id; None if there is none."""
    folder = Path(path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        found = cached_file(path, name)
    except OSError:
        return None
    return Path(found) if found else None


def read_tensors(path: str, ending: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, in one file or in shards.

    Args:
        path: a folder, or a hub id.
        ending: of the names of those that are wanted.

    Raises:
        ValueError: there are none, a shard is missing, or a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for shard in _shards(path, ending):
        file = find(path, shard)
        if file is None:
            raise ValueError(f"{path} lacks {shard}, which {INDEX} lists")
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                tensors |= {
                    name: opened.get_tensor(name) for name in names if name.endswith(ending)
                }
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    if odd := not_finite(tensors):
        raise ValueError(f"{path}: {odd} has values that are no numbers, or infinite")
    return tensors


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity; nothing that it drafts means a thing."""
    for name, tensor in tensors.items():
        # A sum is none if a value is none, and takes no memory. Types of one byte have no sums.
        summed = tensor.is_floating_point() and tensor.element_size() > 1
        if summed and not bool(tensor.sum(dtype=torch.float64).isfinite()):
            return name
    return None


def refuse_hollow(path: str, model: nn.Module) -> None:
    """Refuse weights that are far fewer than a model has: its memory would be taken all the same.

    Args:
        path: a folder, or a hub id.
        model: as its configuration describes it, without weights.

    Raises:
        ValueError: naming both sizes.
    """
    files = [file for shard in _shards(path, "") if (file := find(path, shard))]
    stored = sum(file.stat().st_size for file in files)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > _DENSEST * stored + _SMALL:
        raise ValueError(
            f"{path}: its config.json describes a model of {parameters / 1e6:.1f} million "
            f"parameters, its weights are {stored / 1e6:.1f} MB; they do not belong together"
        )


def write_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], name: str, record: Mapping[str, Any]
) -> None:
    """Write tensors, then the JSON ``record`` as ``name``; each file appears whole or not at all.

    Who finds the record finds the tensors too.
    """
    path.mkdir(parents=True, exist_ok=True)
    unfinished = path / "model.tmp"
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    save_file(plain, unfinished, metadata={"format": "pt"})
    unfinished.replace(path / WEIGHTS)
    write_json(path / name, record)


def _shards(path: str, ending: str) -> list[str]:
    """Names of the files that hold the tensors whose names end so."""
    index = find(path, INDEX)
    if index is None:
        if find(path, WEIGHTS):
            return [WEIGHTS]
        _refuse_pickles(path)
        raise ValueError(f"{path} has no weights: no {WEIGHTS}, no {INDEX}")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict):
        raise ValueError(f"{index} has no weight_map")
    names = {file for name, file in places.items() if name.endswith(ending)}
    shards = sorted(map(str, names))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise ValueError(f"{index} points outside of its folder: {outside[0]}")
    return shards


def _refuse_pickles(path: str) -> None:
    for name in _PICKLES:
        if find(path, name):
            raise ValueError(
                f"{path} has its weights in {name}, a pickle, which executes what it likes when it "
                "is loaded; convert it to safetensors with a tool that you trust, on a machine "
                f"that has nothing to lose, and name the result {WEIGHTS}"
            )
