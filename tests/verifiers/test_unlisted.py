"""Families that nobody listed: they answer as in transformers, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import specdec
from specdec.tree import chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.fake_drafters import GuessingDrafter
from support.families.grids import MLA
from support.families.towers import TEXT, redraw

FOUR = TEXT | {"num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_n_groups": 1}
DELTA = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


def lfm2() -> PreTrainedModel:
    types = ["conv", "full_attention"] * 2
    config = transformers.Lfm2Config(**FOUR, layer_types=types, block_auto_adjust_ff_dim=False)
    return transformers.Lfm2ForCausalLM(config)


def qwen3_next() -> PreTrainedModel:
    config = transformers.Qwen3NextConfig(
        **FOUR | DELTA | EXPERTS,
        head_dim=16,
        num_experts=4,
        shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "full_attention"] * 2,
    )
    return transformers.Qwen3NextForCausalLM(config)


def bamba() -> PreTrainedModel:
    config = transformers.BambaConfig(**FOUR | MAMBA, attn_layer_indices=[1, 3])
    return transformers.BambaForCausalLM(config)


def deepseek_v2() -> PreTrainedModel:
    return transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**TEXT | MLA))


def diffllama() -> PreTrainedModel:
    """Changes its values after caching them, and leaves the keys."""
    return transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**TEXT))


def gpt_oss() -> PreTrainedModel:
    """With attention sinks."""
    config = transformers.GptOssConfig(
        **TEXT, head_dim=16, sliding_window=6, num_local_experts=4, num_experts_per_tok=2
    )
    return transformers.GptOssForCausalLM(config)


def gemma2() -> PreTrainedModel:
    """With softcaps."""
    config = transformers.Gemma2Config(**TEXT, head_dim=16, sliding_window=6)
    return transformers.Gemma2ForCausalLM(config)


@pytest.mark.parametrize(
    "build",
    [lfm2, qwen3_next, bamba, deepseek_v2, diffllama, gpt_oss, gemma2],
    ids=lambda build: build.__name__,
)
def test_answers_are_those_of_generate(build: Callable[[], PreTrainedModel]) -> None:
    """A mechanism that happens to fit the listed families only."""
    torch.manual_seed(1)
    model = build().eval()
    redraw(model, "experts.gate_up_proj", "experts.down_proj")
    families.sharpen(model, 4.0)
    chains_only = TransformersVerifier(model).spec.chains_only
    tree = chain(4) if chains_only else static((2, 2, 1))
    said: set[int] = set()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, 140, (1, 5 + 3 * seed), generator=generator)
        plain = model.generate(ids, max_new_tokens=24, do_sample=False)
        answer = plain[0, ids.shape[1] :].tolist()
        said |= set(answer)
        drafter = GuessingDrafter({tuple(ids[0].tolist()): answer}, right=0.6, seed=2)
        out = specdec.generate(
            model, ids, max_new_tokens=24, do_sample=False, drafter=drafter, tree=tree
        )
        assert out.tolist() == plain.tolist()
    assert len(said) > 12, "answers that do not vary prove little"


def jamba() -> PreTrainedModel:
    """Forgets its state when it is given several tokens."""
    config = transformers.JambaConfig(
        **FOUR, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, num_experts=2
    )
    return transformers.JambaForCausalLM(config)


def mamba() -> PreTrainedModel:
    config = transformers.MambaConfig(vocab_size=160, hidden_size=64, num_hidden_layers=2)
    return transformers.MambaForCausalLM(config)


def falcon_h1() -> PreTrainedModel:
    config = transformers.FalconH1Config(
        **TEXT, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1
    )
    return transformers.FalconH1ForCausalLM(config)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (jamba, "Jamba.* type linear_attention, which go on from a state"),
        (mamba, "Mamba.* type linear_attention, which go on from a state"),
        (falcon_h1, "FalconH1.* layers of type hybrid"),
    ],
    ids=["jamba", "mamba", "falcon_h1"],
)
def test_what_cannot_be_exact_is_refused(build: Callable[[], PreTrainedModel], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        specdec.generate(build(), torch.tensor([[5, 6]]), drafter="ngram")
