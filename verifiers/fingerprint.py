"""Whether two models are the same one, from a small sample of their weights."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

_SAMPLE = 16  # values of every parameter
_ESSENTIAL = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256, in hex, over the size of the text tower and a few values of every parameter.

    Values are rounded to bfloat16, so a checkpoint has the same fingerprint in every dtype that it
    is loaded in. The names of parameters play no part: releases of transformers differ in them.

    Raises:
        ValueError: weights are not in memory, as where parts of a model are kept on disk.
    """
    text = model.config.get_text_config(decoder=True)
    shapes, samples = [], defaultdict[torch.device, list[Tensor]](list)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"{type(model).__name__} has no fingerprint while weights such as {name} are "
                "not in memory"
            )
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE].bfloat16().float()
        shapes.append((parameter.device, len(sample), tuple(parameter.shape)))
        samples[parameter.device].append(sample)
    # One transfer a device.
    values = {device: iter(torch.cat(parts).tolist()) for device, parts in samples.items()}
    rows = [
        (shape, [next(values[device]) for _ in range(count)]) for device, count, shape in shapes
    ]
    sizes = {name: getattr(text, name, None) for name in _ESSENTIAL}
    # repr: JSON has no name for infinity or nan, and weights may be anything.
    return hashlib.sha256((json.dumps(sizes) + repr(sorted(rows, key=repr))).encode()).hexdigest()
