"""Where the decoder starts from: words meet what the tower reads, and attention starts as copying.

The embedding of a fact word (a digit, a colour, a name) is set to the direction in which stage 1
reads that fact off a visual token. The embeddings are tied to the output, so a copied visual token
already votes for its word, and a word of the question already resembles the patches that show it.
Queries and keys start alike and outputs undo values, after Trockman and Kolter, "Mimetic
initialization of self-attention layers", 2023. Without this start the decoder takes far longer to
look at the image at all.
"""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from specdec.training import gaze, lvlm, render, sight

COPY = 0.4  # strength of the initial copying


@torch.no_grad()
def align(
    model: LlavaForConditionalGeneration, heads: sight.Heads, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Set the decoder's embeddings of fact words and its attention; leaves the tower alone."""
    readers = dict(zip(render.HEADS, heads.read.weight.split(heads.sizes), strict=True))
    table = model.model.language_model.embed_tokens.weight
    for word, classes in gaze.fact_words().items():
        direction = torch.zeros(table.shape[1])
        for head, index in classes:
            reader = readers[head] - readers[head][1:].mean(0)
            direction += reader[index] / reader[index].norm()
        for form in (word, " " + word):
            ids = tokenizer.encode(form, add_special_tokens=False)
            if len(ids) == 1:
                table[ids[0]] = (
                    direction / direction.norm() * lvlm.EMBED_STD * table.shape[1] ** 0.5
                )
    size, share = lvlm.WIDTH // lvlm.QUERY_HEADS, lvlm.QUERY_HEADS // lvlm.KEY_HEADS
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        keys = torch.linalg.qr(torch.randn(lvlm.WIDTH, lvlm.KEY_HEADS * size))[0].T
        values = torch.linalg.qr(torch.randn(lvlm.WIDTH, lvlm.KEY_HEADS * size))[0].T
        wide = slice(0, lvlm.QUERY_HEADS * size)
        every = torch.arange(wide.stop).view(
            -1, share, size
        )  # rows of the query heads of each key head
        for group in range(lvlm.KEY_HEADS):
            own = slice(group * size, (group + 1) * size)
            for rows in every[group]:
                attention.q_proj.weight[rows] = keys[own] + 0.2 * torch.randn(size, lvlm.WIDTH) / 16
                attention.o_proj.weight[:, rows] = COPY * values[own].T
        attention.k_proj.weight.copy_(keys)
        attention.v_proj.weight.copy_(values)
        attention.q_proj.bias.zero_()
        attention.k_proj.bias.zero_()
