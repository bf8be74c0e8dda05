"""A small causal language model learns to predict a verifier's answers from their text alone.

Batches, loss and a training loop that goes on after an interruption exactly where it was: bit for
bit the weights of an uninterrupted run when its length is given in steps. Knows nothing of images;
prompts come without visual tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specdec.training.examples import Example

WINDOW = 16  # batches that are sorted by length together
WARMUP = 0.03  # share of the training
TINY = 1e-6


@dataclass(frozen=True)
class Size:
    """Geometry of the drafter. The defaults make 0.6 million parameters with 1,024 tokens.

    One wide layer: on a CPU a step costs what its number of operations costs, hardly what their
    size does, and a second layer found no more in a few thousand answers.
    """

    layers: int = 1
    hidden: int = 192
    intermediate: int = 512
    heads: int = 4
    kv_heads: int = 2


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        batch: answers per step.
        rate: peak learning rate of AdamW; a cosine takes it to zero.
        soft: weight of the verifier's probabilities in the loss; the rest is its argmax, which is
            all that counts in greedy decoding.
        seed: of the initial weights and of the order of the answers.
        minutes: how long, if ``steps`` is not given.
        steps: how many steps.
    """

    batch: int = 32
    rate: float = 4e-3
    soft: float = 0.5
    seed: int = 0
    minutes: float = 6.0
    steps: int | None = None

    def spent(self, step: int, seconds: float) -> float:
        """The share of the training that is done."""
        return step / self.steps if self.steps is not None else seconds / (60 * self.minutes)


class Batch(NamedTuple):
    """N is the number of answer tokens in the batch.

    ``ids``: int64 ``(B, L)``, padded on the right. ``places``: int64 ``(N,)``, where in the
    flattened ids each answer token is predicted: at the token before it. ``top_ids``, ``top_p``:
    ``(N, K)``, the verifier's most probable tokens there.
    """

    ids: Tensor
    places: Tensor
    top_ids: Tensor
    top_p: Tensor


class State(NamedTuple):
    """How far the training is."""

    step: int
    seconds: float
    loss: float


def build(verifier: PreTrainedModel, size: Size, seed: int) -> LlamaForCausalLM:
    """A freshly initialised drafter for ``verifier``: its vocabulary, its special tokens."""
    text, generation = verifier.config.get_text_config(decoder=True), verifier.generation_config
    config = LlamaConfig(
        vocab_size=text.vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=text.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=generation.bos_token_id if generation else None,
        eos_token_id=generation.eos_token_id if generation else None,
        pad_token_id=generation.pad_token_id if generation else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(config).float()
    return model


def collate(examples: Sequence[Example]) -> Batch:
    """One batch of these answers."""
    longest = max(len(e.tokens) for e in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    places = []
    for row, example in enumerate(examples):
        ids[row, : len(example.tokens)] = example.tokens
        first = row * longest + example.prompt_length - 1
        places.append(torch.arange(first, first + len(example.top_ids)))
    return Batch(
        ids,
        torch.cat(places),
        torch.cat([e.top_ids for e in examples]),
        torch.cat([e.top_p for e in examples]),
    )


def loss_of(model: LlamaForCausalLM, batch: Batch, soft: float) -> Tensor:
    """Cross-entropy with the verifier's argmax, and with its K largest probabilities.

    With P the verifier, q the drafter and everything beyond the K tokens as one class:
        (1 - soft) · -log q(argmax P)  +  soft · -( Σ_k P_k log q_k + P_rest log q_rest )
    """
    # Causal attention never looks at the padding on the right, so no mask is needed.
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden.flatten(0, 1)[batch.places])
    log_q = logits.log_softmax(-1).gather(1, batch.top_ids)
    rest_p = (1 - batch.top_p.sum(-1)).clamp_min(0)
    rest_q = (1 - log_q.exp().sum(-1)).clamp_min(TINY)
    spread = -(batch.top_p * log_q).sum(-1) - rest_p * rest_q.log()
    loss: Tensor = ((1 - soft) * -log_q[:, 0] + soft * spread).mean()
    return loss


@torch.no_grad()
def agreement(model: LlamaForCausalLM, examples: Sequence[Example], batch: int = 64) -> float:
    """Share of answer tokens where drafter and verifier have the same argmax, given the text."""
    right, total = 0, 0
    for start in range(0, len(examples), batch):
        part = collate(examples[start : start + batch])
        hidden = model.model(input_ids=part.ids, use_cache=False).last_hidden_state
        said = model.lm_head(hidden.flatten(0, 1)[part.places]).argmax(-1)
        right += int((said == part.top_ids[:, 0]).sum())
        total += len(said)
    return right / max(total, 1)


class Order:
    """Which answers make up the batch of a step: a pure function of seed and step.

    Every epoch is a new shuffle; answers of like length meet, to save padding.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._batch = batch
        self._seed = seed
        self._epoch = -1
        self._batches: list[list[int]] = []

    def __call__(self, step: int) -> list[int]:
        count = -(-len(self._lengths) // self._batch)
        if step // count != self._epoch:
            self._epoch = step // count
            self._batches = self._shuffled()
        return self._batches[step % count]

    def _shuffled(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        batches: list[Tensor] = []
        for window in order.split(WINDOW * self._batch):
            near = window[self._lengths[window].argsort(stable=True)]
            batches += near.split(self._batch)
        turns = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[turn].tolist() for turn in turns]


def train(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    recipe: Recipe,
    checkpoint: Path,
    *,
    save_every: float = 30.0,
    report: Callable[[State], None] = lambda state: None,
) -> State:
    """Train ``model`` in place, from ``checkpoint`` if that exists, and leave the result there.

    Args:
        save_every: seconds between checkpoints.
        report: called after every step.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    order = Order([len(e.tokens) for e in examples], recipe.batch, recipe.seed)
    state = _load(checkpoint, model, optimizer) if checkpoint.exists() else State(0, 0.0, 0.0)
    began, saved = time.perf_counter() - state.seconds, time.perf_counter()
    model.train()
    while (spent := recipe.spent(state.step, state.seconds)) < 1:
        optimizer.param_groups[0]["lr"] = recipe.rate * _schedule(spent)
        loss = loss_of(model, collate([examples[i] for i in order(state.step)]), recipe.soft)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now = time.perf_counter()
        state = State(state.step + 1, now - began, loss.item())
        if now - saved >= save_every:
            _save(checkpoint, model, optimizer, state)
            saved = now
        report(state)
    _save(checkpoint, model, optimizer, state)
    model.eval()
    return state


def _schedule(spent: float) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if spent < WARMUP:
        return max(spent, TINY) / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (spent - WARMUP) / (1 - WARMUP))


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Weights and moments in one file, which appears, or is replaced, in one move."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished, {name: repr(value) for name, value in state._asdict().items()})
    unfinished.replace(path)


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """The inverse of :func:`_save`.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    with safe_open(path, "pt") as file:
        there = set(file.keys())
        expected = {
            f"{part}.{name}"
            for name, _ in model.named_parameters()
            for part in ("model", *_MOMENTS)
        }
        if there != expected:
            raise ValueError(f"{path} is a checkpoint of another model; choose another folder")
        facts = file.metadata()
        step = int(facts["step"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = file.get_tensor(f"model.{name}")
                if stored.shape != parameter.shape:
                    raise ValueError(
                        f"{path}: {name} is {tuple(stored.shape)}, "
                        f"the model's {tuple(parameter.shape)}"
                    )
                parameter.copy_(stored)
                moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return State(step, float(facts["seconds"]), float(facts["loss"]))
