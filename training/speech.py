"""Stages 2 to 4: the decoder learns to say what the tower sees, tersely, then in full, then with
words that only the text decides.
"""

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
STEADINESS = 3.0  # weight of words that change with the image


class Stage(NamedTuple):
    """A stage of the decoder: its data, the seed they start from, its share of the learning
    rates, and whether words are held steady (see `moved`), which takes twins.
    """

    name: str
    mix: packing.Mix
    seed: int
    pace: float = 1.0
    steady: bool = False


TERSE = Stage("terse", packing.Mix(rows=4, brief=8, full=0), 1 << 24)
FULL = Stage("full", packing.Mix(rows=4, brief=4, full=4), 1 << 26)
STEADY = Stage("steady", packing.Mix(rows=4, brief=1, full=5, twins=True), 1 << 27, 0.3, True)


def loss_of(
    model: LlavaForConditionalGeneration,
    batch: packing.Batch,
    named: gaze.Names,
    heads: sight.Heads | None = None,
    other: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a packed batch, and how badly the guided heads look (see `gaze`).

    The weighted next-token loss. With `heads` the tower learns too, kept to its reading by the
    dense labels of stage 1; without, tower and projector get no gradient. With `other`, `swapped`
    (a batch of twins) or `blank`, how far words move with such images is added (see `moved`).
    `named` is `gaze.names`.
    """
    with torch.set_grad_enabled(heads is not None):
        seen = lvlm.visual(model, lvlm.pixels(batch.images.numpy()))
    aims, looks = gaze.aims(batch, named), []

    def look(layer: int, hidden: torch.Tensor, turned: tuple[torch.Tensor, torch.Tensor]) -> None:
        looks.append(gaze.missed(language.layers[layer], hidden, turned, aims))

    language = model.model.language_model
    logits = _told(model, batch, seen, look)
    weights = batch.weights[:, 1:]
    heavy = weights[weights > 0]
    losses = F.cross_entropy(logits, batch.ids[:, 1:][weights > 0], reduction="none")
    loss = (losses * heavy).sum() / heavy.sum()
    if heads is not None:
        loss = loss + DENSE * sight.loss_of(heads(seen), batch.labels)
    if other is not None:
        loss = loss + STEADINESS * moved(model, batch, seen, logits, other)
    return loss, torch.stack(looks).mean()


def moved(
    model: LlavaForConditionalGeneration,
    batch: packing.Batch,
    seen: torch.Tensor,
    logits: torch.Tensor,
    other: str,
) -> torch.Tensor:
    """How far the probabilities of words that state no fact are from `logits`, those with the right
    images `seen`, when the images are blank or each other's twins: their mean KL divergence.

    Near ties would else be decided by whatever the picture happens to be.
    """
    if other == "blank":
        white = lvlm.pixels(torch.full_like(batch.images[:1], 255).numpy())
        with torch.no_grad():
            wrong = lvlm.visual(model, white).expand_as(seen)
    else:
        wrong = seen.roll(len(seen) // 2, 0)
    weights = batch.weights[:, 1:]
    plain = weights[weights > 0] == 1.0
    right = logits.detach()[plain].log_softmax(-1)
    without = _told(model, batch, wrong)[plain].log_softmax(-1)
    return F.kl_div(without, right, reduction="batchmean", log_target=True)


def _told(
    model: LlavaForConditionalGeneration,
    batch: packing.Batch,
    seen: torch.Tensor,
    look: Callable[[int, torch.Tensor, tuple[torch.Tensor, torch.Tensor]], None] | None = None,
) -> torch.Tensor:
    """Logits of the batch's loss tokens; `look` gets what enters the guided layers."""
    language = model.model.language_model
    embeds = language.embed_tokens(batch.ids)
    hidden = embeds.masked_scatter((batch.ids == lvlm.IMAGE)[..., None], seen.to(embeds.dtype))
    mask, turned = packing.block_mask(batch.segments), language.rotary_emb(hidden, batch.positions)
    for i, layer in enumerate(language.layers):
        if look is not None and i in gaze.GUIDED:
            look(i, hidden, turned)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=turned)
    # The token before a loss token is always of the same branch: a question comes first.
    told: torch.Tensor = model.lm_head(language.norm(hidden)[:, :-1][batch.weights[:, 1:] > 0])
    return told


def train(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    stage: Stage,
    minutes: float,
    file: Path,
    tasks: tuple[str, ...],
    assess_with: Callable[[LlavaForConditionalGeneration], None],
    heads: sight.Heads | None = None,
    autocast: bool = False,
) -> None:
    """Train for `minutes`; resumes from `file` and leaves the result there.

    The decoder learns; with `heads` also tower and projector, at a quarter of its rates.
    `assess_with` is called with the model every ten minutes and at the end. `autocast` computes in
    bf16 what can be; the weights stay in fp32.
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
        other = ("swapped", "blank")[step % 2] if stage.steady else None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, looked = loss_of(model, next(loader), named, heads, other)
        (loss + GUIDANCE * looked).backward()
        for opt in opts:
            opt.step(stage.pace * optim.rate(spent / minutes))
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
