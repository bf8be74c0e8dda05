"""Stage 1: the vision tower and the projector learn to read, with no language in sight.

Every visual token is asked by linear heads for the facts of its patch (`render.HEADS`). The heads
see the projected token as the decoder's first norm will see it, so whatever they can read the
decoder can read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaForConditionalGeneration

from specdec.training import checkpoint, lvlm, optim, render, scenes

BATCH = 16
_WEIGHT = {"ones": 2.0, "tens": 1.0, "char": 1.0, "name": 1.0, "color": 1.0, "count": 1.0}
_Pair = tuple[torch.Tensor, torch.Tensor]


class Stream(IterableDataset[_Pair]):
    """Endless batches from a seed on: uint8 images (B, 192, 192, 3), labels (B, heads, 144)."""

    def __init__(self, first: int, split: scenes.Split, kinds: tuple[str, ...], batch: int = BATCH):
        self.first, self.split, self.kinds, self.batch = first, split, kinds, batch

    def __iter__(self) -> Iterator[_Pair]:
        seed = self.first
        while True:
            made = [self._scene(seed + i) for i in range(self.batch)]
            seed += self.batch
            images = np.stack([render.render(scene) for scene in made])
            labels = np.stack([render.dense_labels(scene) for scene in made])
            yield torch.from_numpy(images), torch.from_numpy(labels)

    def _scene(self, seed: int) -> scenes.Scene:
        """Of one kind after the other; three grids in four are full sheets of handwriting."""
        kind = self.kinds[seed % len(self.kinds)]
        if kind == "grid" and seed // len(self.kinds) % 4:
            return scenes.make_sheet(seed, self.split)
        return scenes.make_scene(seed, self.split, kind)


class Heads(nn.Module):
    """One linear reader for each head, over the direction of a projected visual token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = list(render.HEADS.values())
        self.read = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Logits per head, each (B, 144, classes)."""
        normed = F.rms_norm(tokens, tokens.shape[-1:])
        return list(self.read(normed).split(self.sizes, -1))


def loss_of(logits: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy of the heads; empty patches weigh a tenth."""
    total = torch.zeros(())
    for i, (name, size) in enumerate(render.HEADS.items()):
        weight = torch.ones(size)
        weight[0] = 0.1
        total = total + _WEIGHT.get(name, 0.5) * F.cross_entropy(
            logits[i].flatten(0, 1), labels[:, i].flatten(), weight
        )
    return total


@torch.no_grad()
def accuracy(
    model: LlavaForConditionalGeneration, heads: Heads, kinds: tuple[str, ...], batches: int = 8
) -> dict[str, float]:
    """Held-out accuracy per head over non-empty patches, and of handwriting by cell (`scan`)."""
    right: dict[str, int] = dict.fromkeys((*render.HEADS, "scan"), 0)
    seen = dict(right)
    for b in range(batches):
        made = [scenes.make_scene(b * 48 + i, "held_out", kinds[i % len(kinds)]) for i in range(48)]
        images = np.stack([render.render(s) for s in made])
        labels = torch.from_numpy(np.stack([render.dense_labels(s) for s in made]))
        logits = heads(lvlm.visual(model, lvlm.pixels(images)))
        for i, name in enumerate(render.HEADS):
            full = labels[:, i] > 0
            right[name] += int((logits[i].argmax(-1) == labels[:, i])[full].sum())
            seen[name] += int(full.sum())
        ones = (
            logits[list(render.HEADS).index("ones")]
            .log_softmax(-1)
            .view(48, scenes.SIDE, scenes.SIDE, -1)
        )
        for i, scene in enumerate(made):
            for e in scene.entities if scene.kind == "grid" else ():
                x0, y0, x1, y1 = (edge // scenes.PATCH for edge in e.box)
                right["scan"] += int(ones[i, y0:y1, x0:x1].mean((0, 1)).argmax()) == e.value + 1
                seen["scan"] += 1
    return {name: right[name] / max(1, seen[name]) for name in right}


def train(
    model: LlavaForConditionalGeneration, kinds: tuple[str, ...], minutes: float, file: Path
) -> Heads:
    """Train tower and projector on scenes of `kinds` for `minutes`; resumes from `file` and leaves
    the result there.
    """
    heads = Heads(lvlm.WIDTH)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    parts = nn.ModuleDict({"tower": tower, "projector": projector, "heads": heads})
    opt = optim.Optimizers([tower, projector, heads], muon_lr=0.02, adam_lr=2e-3)
    spent, step = 0.0, 0
    if file.exists():
        state = checkpoint.load(file)
        parts.load_state_dict(state["parts"])
        if state["spent"] >= minutes:
            return heads
        opt.load_state_dict(state["opt"])
        spent, step = state["spent"], state["step"]
    tower.encoder.compile()  # a third faster on CPU
    start, logged, running = time.time() - spent * 60, time.time(), 0.0
    loader = iter(
        DataLoader(
            Stream(step * BATCH, "train", kinds),
            batch_size=None,
            num_workers=1,
            prefetch_factor=8,
        )
    )
    while True:
        spent = (time.time() - start) / 60
        done = spent >= minutes
        if done or time.time() - logged > 180:
            found = accuracy(model, heads, kinds)
            table = " ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(
                f"sight {spent:5.1f}/{minutes:g} min step {step} loss {running:.3f} | {table}",
                flush=True,
            )
            state = {
                "parts": parts.state_dict(),
                "opt": opt.state_dict(),
                "spent": spent,
                "step": step,
            }
            checkpoint.save(file, state)
            logged = time.time()
            if done:
                return heads
        images, labels = next(loader)
        loss = loss_of(heads(lvlm.visual(model, lvlm.pixels(images.numpy()))), labels)
        loss.backward()
        opt.step(optim.rate(spent / minutes), clip=5.0)
        if step % 25 == 0:
            print(f"{time.time() - start:.0f} s step {step} {loss.item():.3f}", flush=True)
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        step += 1


@torch.no_grad()
def settle(model: LlavaForConditionalGeneration, kinds: tuple[str, ...]) -> None:
    """Scale the projector so that a visual token is as long as a text embedding."""
    made = [scenes.make_scene(i, "train", kinds[i % len(kinds)]) for i in range(32)]
    tokens = lvlm.visual(model, lvlm.pixels(np.stack([render.render(scene) for scene in made])))
    factor = lvlm.EMBED_STD / tokens.pow(2).mean().sqrt()
    projector = model.model.multi_modal_projector
    projector.linear_2.weight.mul_(factor)
    projector.linear_2.bias.mul_(factor)
