"""Exported heads in the speculators package's own model: `python tests/speculators_check.py`.

Needs an environment with that package, which the project itself does not depend on; CONTRIBUTING.md
says how to make one. Loads each export with the package's classes, runs its training forward over
three steps, each on the states of the one before, and compares the logits with EagleHead's. Both
compute in fp32 on the CPU and differ in the order of sums only. Exits with 1 if it is more than
that.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from loguru import logger
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from specdec.drafters.eagle_export import read_embeddings, read_verifier
from specdec.drafters.eagle_head import EagleHead
from specdec.drafters.eagle_speculators import export_speculators
from support import eagle_heads

TOLERANCE = 1e-4
LENGTH, STEPS = 17, 3
CASES: dict[str, dict[str, Any]] = {
    "verifier's embeddings": {},
    "own embeddings": {"own_embeddings": True},
    "norm_before_residual": {"norm_before_residual": True},
    "all tokens": {"draft_vocab_size": 97},
    "sections of M-RoPE": {"rope_parameters": eagle_heads.SECTIONS},
    "YaRN": {"rope_parameters": eagle_heads.YARN},
}


def theirs(folder: Path, tokens: Tensor, states: Tensor) -> list[Tensor]:
    """Logits ``(T, draft_vocab)`` of each step in the package's model."""
    config = Eagle3SpeculatorConfig.from_pretrained(str(folder))
    config.transformer_layer_config._attn_implementation = "eager"
    model = SpeculatorModel.from_pretrained(str(folder), config=config, dtype=torch.float32).eval()
    assert isinstance(model, Eagle3DraftModel)
    logits: list[Tensor] = []
    model.lm_head.register_forward_hook(lambda _, __, out: logits.append(out[0]))
    with torch.no_grad():
        documents = torch.zeros(1, LENGTH, dtype=torch.long)
        model(states[None], tokens[None], documents, ttt_steps=STEPS)
    return logits


def ours(head: EagleHead, embeddings: Tensor, tokens: Tensor, states: Tensor) -> list[Tensor]:
    """The same of the head: in each step, row t reads the keys of the first step up to t, and its
    own of all steps since.
    """
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        values.append(v)
        once = torch.eye(LENGTH, dtype=torch.bool)
        before = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        mask = torch.cat([before, *[once] * (len(keys) - 1)], -1)
        return scaled_dot_product_attention(
            q, torch.cat(keys, -2), torch.cat(values, -2), attn_mask=mask, enable_gqa=True
        )

    logits = []
    with torch.no_grad():
        features = head.fuse(states)[None]
        for step in range(STEPS):
            shifted = torch.cat([tokens[step:], tokens.new_zeros(step)])
            positions = torch.arange(LENGTH)[None] + step
            features = head(embeddings[shifted][None], features, positions, attend)
            logits.append(head.logits(features)[0])
    return logits


def difference(name: str, changes: dict[str, Any], verifier: LlamaForCausalLM, at: Path) -> float:
    """The largest difference of any logit, in all steps."""
    head = eagle_heads.head(7, **changes)
    folder = at / name.replace(" ", "-")
    facts = read_verifier(str(at / "verifier"))
    export_speculators(head, folder, facts, embeddings=read_embeddings(facts))
    tokens, states = torch.randint(97, (LENGTH,)), torch.randn(LENGTH, 3 * 24)
    own = head.embed_tokens or verifier.get_input_embeddings()
    pairs = zip(theirs(folder, tokens, states), ours(head, own.weight, tokens, states), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def main() -> None:
    """Print a line for each kind of head."""
    logger.remove()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=8,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    verifier = LlamaForCausalLM(config).eval()
    print(f"speculators {version('speculators')}, transformers {version('transformers')}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        verifier.save_pretrained(Path(folder) / "verifier")
        for name, changes in CASES.items():
            found = difference(name, changes, verifier, Path(folder))
            worst = max(worst, found)
            print(f"{name:24} {found:.1e}")
    if not worst <= TOLERANCE:  # nan too
        sys.exit(f"logits differ by {worst:.1e}, at most {TOLERANCE:.0e} is rounding")


if __name__ == "__main__":
    main()
