from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from specdec.verifiers.fingerprint import fingerprint
from support import families


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_same_checkpoint_in_every_dtype(tmp_path: Path, stored: torch.dtype) -> None:
    """An estimator that was trained in fp32 must be accepted for the model in bf16."""
    model: Any = families.build("llava").model
    model.to(stored).save_pretrained(tmp_path)
    load = AutoModelForImageTextToText.from_pretrained
    loaded = [load(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert len({fingerprint(each) for each in [model, *loaded]}) == 1


def test_other_weights_and_other_sizes_show() -> None:
    one = families.causal_lm(0)
    assert fingerprint(one) == fingerprint(families.causal_lm(0))
    assert fingerprint(one) != fingerprint(families.causal_lm(1))
    assert fingerprint(one) != fingerprint(families.causal_lm(0, layers=2))


def test_training_on_shows() -> None:
    """A fine-tuned model has other hidden states, and only a part of its weights may have moved."""
    model = families.causal_lm(0)
    before = fingerprint(model)
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight *= 1.02
    assert fingerprint(model) != before


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    model = families.causal_lm(0)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="no fingerprint while weights such as"):
        fingerprint(empty)
