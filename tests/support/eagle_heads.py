"""Small EAGLE heads with random weights, and a verifier's facts that fit them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from specdec.drafters.eagle_export import VerifierFacts
from specdec.drafters.eagle_head import EagleConfig, EagleHead

# Odd sizes, all different, so that no wrong shape can pass for a right one.
GEOMETRY: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": 97,
    "draft_vocab_size": 31,
    "target_hidden_size": 24,
    "layers": (2, 4, 5),
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
VERIFIER = VerifierFacts("org/verifier", ("SomeForConditionalGeneration",), 8, 24, 97, 512)
SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 1]}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Changes to GEOMETRY.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norm_before_residual": {"norm_before_residual": True},
    "own-embeddings": {"own_embeddings": True},
    "all-tokens": {"draft_vocab_size": 97},
    "narrow": {"hidden_size": 12, "own_embeddings": True},
    "m-rope": {"rope_parameters": SECTIONS},
    "yarn": {"rope_parameters": YARN},
    "partial": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.6,
        }
    },
}


def head(seed: int = 0, **changes: Any) -> EagleHead:
    """A head of :data:`GEOMETRY` but for ``changes``; no norm is one, so that none can be lost or
    swapped. It proposes every third token.
    """
    torch.manual_seed(seed)
    config = EagleConfig(**{**GEOMETRY, **changes})
    made = EagleHead(config).eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.uniform_(0.5, 2.0)
    step = config.vocab_size // config.draft_vocab_size
    made.speak(torch.arange(config.draft_vocab_size) * step)
    return made


def same(one: EagleHead, other: EagleHead) -> bool:
    """Whether two heads are of one configuration and hold the same bits."""
    ours, theirs = one.state_dict(), other.state_dict()
    return (
        one.config == other.config
        and ours.keys() == theirs.keys()
        and all(ours[name].dtype == theirs[name].dtype for name in ours)
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
    )


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a head over all that came before."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
