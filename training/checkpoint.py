"""Checkpoints of a training: any nesting of tensors and plain values in one safetensors file.

The nesting lies in the file's metadata as JSON; nothing that is loaded can run code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any  # a checkpoint's values are whatever an optimizer keeps

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from specdec.files import replacing


def save(path: Path, state: dict[str, Any]) -> None:
    """Write dicts, lists, tensors and JSON values; the file appears, or is replaced, in one
    move.
    """
    tensors: dict[str, torch.Tensor] = {}
    nesting = json.dumps(_pack(state, tensors))
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, {"nesting": nesting})


def load(path: Path) -> dict[str, Any]:
    """The inverse of :func:`save`. Tuples come back as lists."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        state: dict[str, Any] = _unpack(json.loads(file.metadata()["nesting"]), tensors)
    return state


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: JSON would turn keys into strings
        return {"dict": [[key, _pack(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(inner, tensors) for inner in value]}
    return {"value": value}


def _unpack(packed: Any, tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _unpack(inner, tensors) for key, inner in value}
    if kind == "list":
        return [_unpack(inner, tensors) for inner in value]
    return value
