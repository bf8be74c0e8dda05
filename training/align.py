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

from specdec.training import lvlm, render, scenes, sight

COPY = 0.4  # strength of the initial copying


def _words() -> dict[str, list[tuple[str, int]]]:
    """For every fact word the classes that it names, as (head, class)."""
    words: dict[str, list[tuple[str, int]]] = {}

    def name(word: str, head: str, index: int) -> None:
        words.setdefault(word, []).append((head, index))

    for i, color in enumerate(scenes.COLORS):
        name(color, "color", i + 1)
    for i, thing in enumerate(render.NAMES):
        name(thing, "name", i + 1)
    for i, letter in enumerate(scenes.COLUMNS):
        name(letter, "head", i + 1)
    for digit in range(10):
        name(str(digit), "ones", digit + 1)
        name(str(digit), "tens", digit + 1)
    for index, ways in enumerate((("top", "upper"), (), ("bottom", "lower"))):
        for way in ways:
            name(way, "row", index + 1)
    name("left", "col", 1)
    name("right", "col", 3)
    return words


def evidence(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """For every token and head the class that the token names, else -2; (vocabulary, heads)."""
    table = torch.full((lvlm.VOCABULARY, len(render.HEADS)), -2)
    for word, classes in _words().items():
        for form in (word, " " + word):
            ids = tokenizer.encode(form, add_special_tokens=False)
            if len(ids) == 1:
                for head, index in classes:
                    table[ids[0], list(render.HEADS).index(head)] = index
    return table


@torch.no_grad()
def align(
    model: LlavaForConditionalGeneration, heads: sight.Heads, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Set the decoder's embeddings of fact words and its attention; leaves the tower alone."""
    readers = dict(zip(render.HEADS, heads.read.weight.split(heads.sizes), strict=True))
    table = model.model.language_model.embed_tokens.weight
    for word, classes in _words().items():
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
