"""Where the decoder should look before it says a fact, and how badly it does.

Every fact word (a digit, a colour, a name) is shown by certain patches. Which of the image's
sevens is meant follows from the facts said just before it, in the question or in the answer: the
patches of a fact are narrowed to those that show the earlier facts as well, as long as any are
left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from specdec.training import lvlm, packing, render, scenes

GUIDED = (2, 4, 6)  # layers whose first head is told where to look
MEMORY = 5  # earlier facts that may narrow the patches of a fact
_START, _END = 2, 2 + lvlm.VISUAL_TOKENS  # the image's place in a row


class Names(NamedTuple):
    """What tokens name, and the tokens that announce an address."""

    classes: torch.Tensor  # (vocabulary, heads) int64, -2 for none
    announce: dict[int, str]  # token id to head: the number that follows is a class of that head
    digits: dict[int, int]
    space: int


class Aims(NamedTuple):
    """Fact words of a batch: the place before each, and the patches to look at from there."""

    rows: torch.Tensor  # (facts,) int64
    columns: torch.Tensor  # (facts,) int64
    shown: torch.Tensor  # (facts, 144) bool, never empty


def fact_words() -> dict[str, list[tuple[str, int]]]:
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


def names(tokenizer: PreTrainedTokenizerFast) -> Names:
    """The fact words in token ids."""
    classes = torch.full((lvlm.VOCABULARY, len(render.HEADS)), -2)

    def single(word: str) -> list[int]:
        forms = (tokenizer.encode(form, add_special_tokens=False) for form in (word, " " + word))
        return [ids[0] for ids in forms if len(ids) == 1]

    for word, named in fact_words().items():
        for token in single(word):
            for head, index in named:
                classes[token, list(render.HEADS).index(head)] = index
    announce = {t: head for word, head in (("row", "row"), ("column", "col")) for t in single(word)}
    digits = {token: d for d in range(10) for token in single(str(d))}
    return Names(classes, announce, digits, tokenizer.encode(" ", add_special_tokens=False)[0])


def aims(batch: packing.Batch, named: Names) -> Aims:
    """The fact words of all rows with a single image."""
    heads = list(render.HEADS)
    ids, segments = batch.ids.tolist(), batch.segments.tolist()
    wanted = (batch.weights == packing.FACT_WEIGHT).tolist()
    found: list[tuple[int, int, torch.Tensor]] = []
    image = -1
    for row, tokens in enumerate(ids):
        images = tokens.count(lvlm.IMAGE) // lvlm.VISUAL_TOKENS
        image += images
        if images != 1:
            continue
        labels = batch.labels[image]
        before: list[torch.Tensor] = []
        for c in range(_END, len(tokens)):
            if segments[row][c] != segments[row][c - 1]:
                before = []
            lead = tokens[c - 2] if tokens[c - 1] == named.space else tokens[c - 1]
            if lead in named.announce and tokens[c] in named.digits:
                shown = labels[heads.index(named.announce[lead])] == named.digits[tokens[c]]
            elif (classes := named.classes[tokens[c]]).max() > 0:
                shown = (labels == classes[:, None]).any(0)
            else:
                continue
            narrowed = shown
            for earlier in reversed(before[-MEMORY:]):
                if not (narrowed & earlier).any():
                    break
                narrowed = narrowed & earlier
            before.append(shown)
            if wanted[row][c] and shown.any():
                found.append((row, c - 1, narrowed))
    if not found:
        nothing = torch.zeros(0, dtype=torch.long)
        return Aims(nothing, nothing, torch.zeros(0, lvlm.VISUAL_TOKENS, dtype=torch.bool))
    rows, columns = (torch.tensor([f[i] for f in found], dtype=torch.long) for i in (0, 1))
    return Aims(rows, columns, torch.stack([shown for _, _, shown in found]))


def missed(
    layer: Qwen2DecoderLayer,
    hidden: torch.Tensor,
    turned: tuple[torch.Tensor, torch.Tensor],
    aimed: Aims,
) -> torch.Tensor:
    """Mean negative log share of attention that the layer's first head gives to the right patches.

    Its alternatives are the patches of the image and the token itself. `hidden` (B, L, width)
    enters the layer, `turned` are the cosines and sines of its positions.
    """
    rows, columns, shown = aimed
    if len(rows) == 0:
        return hidden.new_zeros(())
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    size = attention.head_dim

    def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat([-right, left], -1) * sin

    cos, sin = turned
    key_weight, key_bias = attention.k_proj.weight[:size], attention.k_proj.bias[:size]
    query_weight, query_bias = attention.q_proj.weight[:size], attention.q_proj.bias[:size]
    own, own_cos, own_sin = normed[rows, columns], cos[rows, columns], sin[rows, columns]
    queries = turn(F.linear(own, query_weight, query_bias), own_cos, own_sin)
    itself = turn(F.linear(own, key_weight, key_bias), own_cos, own_sin)
    keys = turn(
        F.linear(normed[:, _START:_END], key_weight, key_bias),
        cos[:, _START:_END],
        sin[:, _START:_END],
    )
    scores = torch.einsum("fd,fkd->fk", queries, keys[rows])
    scores = torch.cat([scores, (queries * itself).sum(-1, keepdim=True)], 1) * size**-0.5
    shares = scores.log_softmax(-1)[:, :-1].masked_fill(~shown, -torch.inf)
    looked: torch.Tensor = -shares.logsumexp(-1).mean()
    return looked
