"""Stages 2 and 3: the decoder learns to say what the frozen tower sees, tersely, then in full."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from specdec.training import assess, checkpoint, gaze, lvlm, optim, packing, sight

MUON_LR, ADAM_LR = 0.02, 3e-3
GUIDANCE = 0.3  # weight of that beside the language loss
DENSE = 0.1  # weight of the tower's dense labels beside the language loss


class Stage(NamedTuple):
    """A stage of the decoder: its data and the seed they start from."""

    name: str
    mix: packing.Mix
    seed: int


TERSE = Stage("terse", packing.Mix(rows=4, brief=8, full=0), 1 << 24)
FULL = Stage("full", packing.Mix(rows=4, brief=4, full=4), 1 << 26)


def loss_of(
    model: LlavaForConditionalGeneration,
    batch: packing.Batch,
    named: gaze.Names,
    heads: sight.Heads | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted next-token loss of a packed batch, and how badly the guided heads look (see `gaze`).

    With `heads` the tower learns too, kept to its reading by the dense labels of stage 1; without,
    tower and projector get no gradient. `named` is `gaze.names`.
    """
    language = model.model.language_model
    embeds = language.embed_tokens(batch.ids)
    with torch.set_grad_enabled(heads is not None):
        seen = lvlm.visual(model, lvlm.pixels(batch.images.numpy()))
    hidden = embeds.masked_scatter((batch.ids == lvlm.IMAGE)[..., None], seen)
    mask, turned = packing.block_mask(batch.segments), language.rotary_emb(hidden, batch.positions)
    aims, looks = gaze.aims(batch, named), []
    for i, layer in enumerate(language.layers):
        if i in gaze.GUIDED:
            looks.append(gaze.missed(layer, hidden, turned, aims))
        hidden = layer(hidden, attention_mask=mask, position_embeddings=turned)
    hidden = language.norm(hidden)
    # The token before a loss token is always of the same branch: a question comes first.
    weights = batch.weights[:, 1:]
    told = weights > 0
    logits = model.lm_head(hidden[:, :-1][told])
    losses = F.cross_entropy(logits, batch.ids[:, 1:][told], reduction="none")
    heavy = weights[told]
    loss = (losses * heavy).sum() / heavy.sum()
    if heads is not None:
        loss = loss + DENSE * sight.loss_of(heads(seen), batch.labels)
    return loss, torch.stack(looks).mean()


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    stage: Stage,
    minutes: float,
    file: Path,
    tasks: tuple[str, ...],
    assess_with: Callable[[LlavaForConditionalGeneration], None],
    heads: sight.Heads | None = None,
) -> None:
    """Train for `minutes`; resumes from `file` and leaves the result there.

    The decoder learns; with `heads` also tower and projector, at a quarter of its rates.
    `assess_with` is called with the model every ten minutes and at the end.
    """
    language = model.model.language_model
    opts = [optim.Optimizers([language], MUON_LR, ADAM_LR)]
    sights = [model.model.vision_tower, model.model.multi_modal_projector]
    if heads is not None:
        opts.append(optim.Optimizers([*sights, heads], MUON_LR / 4, ADAM_LR / 4))
    parts = nn.ModuleList([language, *sights, *([] if heads is None else [heads])])
    spent, step = 0.0, 0
    if file.exists():
        state = checkpoint.load(file)
        parts.load_state_dict(state["parts"])
        if state["spent"] >= minutes:
            return
        for opt, saved_opt in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved_opt)
        spent, step = state["spent"], state["step"]
    for layer in language.layers:
        layer.compile(dynamic=True)
    first = stage.seed + step * stage.mix.rows
    packs = packing.Packs(packing.Encoder(processor.tokenizer), first, stage.mix, tasks)
    loader = iter(DataLoader(packs, batch_size=None, num_workers=1, prefetch_factor=8))
    start, saved, assessed = time.time() - spent * 60, time.time(), time.time()
    running, looking = 0.0, 0.0
    named = gaze.names(processor.tokenizer)
    while True:
        spent = (time.time() - start) / 60
        done = spent >= minutes
        if done or time.time() - saved > 120:
            held = [opt.state_dict() for opt in opts]
            state = {"parts": parts.state_dict(), "opts": held, "spent": spent, "step": step}
            checkpoint.save(file, state)
            saved = time.time()
        if done or time.time() - assessed > 600:
            assess_with(model)
            assessed = time.time()
            if done:
                return
        loss, looked = loss_of(model, next(loader), named, heads)
        (loss + GUIDANCE * looked).backward()
        for opt in opts:
            opt.step(optim.rate(spent / minutes))
        running = loss.item() if running == 0 else 0.95 * running + 0.05 * loss.item()
        looking = looked.item() if looking == 0 else 0.95 * looking + 0.05 * looked.item()
        step += 1
        if step % 20 == 0:
            left = minutes - spent
            print(
                f"{stage.name} step {step} loss {running:.4f} gaze {looking:.3f}"
                f", {left:.1f} min left",
                flush=True,
            )


def report(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, asked: list[assess.Sample]
) -> str:
    """Free-running accuracy per task as one line each."""
    model.eval()
    table = assess.grade(asked, assess.answer(model, processor, asked))
    model.train()
    lines = [
        f"{t:16s} n {a.answers:4d} exact {a.exact / a.answers:.3f} fields {a.right / a.fields:.3f}"
        for t, a in table.items()
    ]
    return "\n".join(lines)
