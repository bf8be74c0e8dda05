"""Answers with made-up features, as a verifier would have left them."""

from __future__ import annotations

import torch

from specdec.drafters.eagle_head import EagleConfig, EagleHead, Vision
from specdec.training.examples import Example
from specdec.training.features import Features

VOCAB, HIDDEN, IMAGE = 40, 16, 39


def head(vision: Vision = "hidden", rows: int = 1, seed: int = 0, **changes: object) -> EagleHead:
    """A small head with random weights, in float64, for verifiers with positions of that many
    rows.
    """
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": 100.0}
    if rows > 1:
        rope["mrope_section"] = [1, 2, 1]
    settings: dict[str, object] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "draft_vocab_size": VOCAB,
        "target_hidden_size": HIDDEN,
        "layers": (0, 1),
        "rope_parameters": rope,
        "own_embeddings": True,
        "vision": vision,
        "queries": 2,
    }
    torch.manual_seed(seed)
    made = EagleHead(EagleConfig.from_dict(settings | changes)).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def example(
    layout: str, answer: int, seed: int = 0, rows: int = 1, dtype: torch.dtype = torch.float64
) -> Example:
    """An answer of so many tokens behind a prompt: a letter a token, ``i`` a visual one."""
    generator = torch.Generator().manual_seed(seed)
    total = len(layout) + answer
    visual = torch.tensor([letter == "i" for letter in layout] + [False] * answer)
    tokens = torch.randint(0, IMAGE, (total,), generator=generator).masked_fill(visual, IMAGE)
    positions = torch.arange(total).expand(rows, -1).clone()
    if rows > 1:  # an image's rows differ; whatever follows goes on from their largest
        positions[-2:, visual] += torch.randint(0, 4, (2, int(visual.sum())), generator=generator)
        positions[:, len(layout) :] += 3
    p = torch.randn(answer, VOCAB, generator=generator).softmax(-1).topk(4)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    read = visual.nonzero()[:, 0]
    features = Features(
        positions,
        drawn(total, 2 * HIDDEN),
        drawn(total, HIDDEN),
        drawn(len(read), 2, 8),
        drawn(len(read), 2, 8),
        read,
    )
    return Example(tokens, len(layout), visual, p.indices, p.values, 0.0, "", (0, 0), features)
