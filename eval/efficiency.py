"""What the bare forwards of a benchmark's models take, and how much of their promise is kept.

    η = measured speedup of decoding / (τ · t(1) / (t(n + 1) + k · t_draft))

with t(m) the verifier's forward over m tokens behind a prompt, n drafted tokens on k levels, and
t_draft the drafter's forward over one token, all through transformers' own cache and without any
code of specdec's around them. So 1 - η is what that code costs, and it may be above 1 where
``generate``, which the speedup refers to, costs something itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from specdec.drafters import NgramDrafter, TextOnlyDrafter
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_head import EagleHead
from specdec.eval.bench_methods import Inputs
from specdec.interfaces import Drafter
from specdec.stats import AcceptanceStats
from specdec.tree import Topology
from specdec.verifiers.spec import read_spec

REPEATS = 3


class Forwards(NamedTuple):
    """Median milliseconds, one question at a time.

    Attributes:
        prefill: the verifier's over a prompt with its images.
        vision: of that, the vision tower's; 0 if there is none.
        one: over a token behind it.
        nodes: over so many tokens.
        levels: by drafter its forward over a token; of those for which that says what a level of a
            draft takes.
    """

    prefill: float
    vision: float
    one: float
    nodes: dict[int, float]
    levels: dict[str, float]

    def to_dict(self, labels: Mapping[str, str]) -> dict[str, Any]:  # Any: JSON values
        """For the record; ``labels``: what drafters are called there."""
        return {
            "prefill_ms": self.prefill,
            "vision_ms": self.vision,
            "one_ms": self.one,
            "nodes_ms": {str(count): ms for count, ms in self.nodes.items()},
            "level_ms": {labels[name]: ms for name, ms in self.levels.items()},
        }


Times = dict[str, list[float]]  # milliseconds of each kind of forward


@torch.no_grad()
def bare_forwards(
    model: PreTrainedModel, drafters: Mapping[str, Drafter], inputs: Inputs, nodes: Sequence[int]
) -> Times:
    """Time them behind a prompt, a single row.

    Args:
        drafters: by name.
        nodes: numbers of tokens that a verifier's forward is timed with.
    """
    times: Times = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        began = time.perf_counter()
        run()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.setdefault(name, []).append(1000 * (time.perf_counter() - began))

    def steps(name: str, network: PreTrainedModel, cache: DynamicCache, count: int) -> None:
        ids = torch.full((1, count), 7, device=network.device)
        for _ in range(REPEATS):
            timed(name, partial(network, input_ids=ids, past_key_values=cache, use_cache=True))
            cache.crop(-count)

    cache = DynamicCache()
    how = {**inputs, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    with _watched(model, times):
        timed("prefill", partial(model, **how))
    for count in sorted({1, *nodes}):
        steps(f"nodes {count}", model, cache, count)
    visual = read_spec(model).visual_token_ids
    text = [token for token in inputs["input_ids"][0].tolist() if token not in visual]
    for name, drafter in drafters.items():
        if isinstance(drafter, TextOnlyDrafter):
            own = DynamicCache()
            ids = torch.tensor([text], device=drafter.model.device)
            drafter.model(input_ids=ids, past_key_values=own, use_cache=True)
            steps(f"level {name}", drafter.model, own, 1)
        elif isinstance(drafter, EagleDrafter):
            few = drafter.head.config.vision == "compressed"  # reads queries for images
            level = _head_level(drafter.head, len(text) if few else inputs["input_ids"].shape[1])
            for _ in range(REPEATS):
                timed(f"level {name}", level)
        elif isinstance(drafter, NgramDrafter):
            times[f"level {name}"] = [0.0]
    return times


def summed_up(times: Sequence[Times]) -> Forwards | None:
    """Medians over all prompts; ``None`` without any."""
    if not times:
        return None
    every: Times = {}
    for name, values in (item for each in times for item in each.items()):
        every.setdefault(name, []).extend(values)
    medians = {name: statistics.median(values) for name, values in every.items()}
    nodes = {int(name.split()[1]): ms for name, ms in medians.items() if name.startswith("nodes ")}
    levels = {
        name.removeprefix("level "): ms for name, ms in medians.items() if name.startswith("level ")
    }
    return Forwards(medians["prefill"], medians.get("vision", 0.0), nodes.pop(1), nodes, levels)


def efficiency(
    forwards: Forwards, drafter: str, tree: Topology, stats: AcceptanceStats, speedup: float
) -> float | None:
    """η; ``None`` where nobody knows what the drafter's level takes.

    Args:
        speedup: of decoding, as measured.
    """
    level = forwards.levels.get(drafter)
    if level is None or not forwards.nodes:
        return None
    drafted = stats.num_draft_tokens / max(stats.num_spec_steps, 1)
    depth = tree.depth * drafted / max(len(tree) - 1, 1)  # less near the ends of answers
    counts, ms = zip(*sorted({1: forwards.one, **forwards.nodes}.items()), strict=True)
    promised = stats.mean_acceptance_length * forwards.one
    promised /= float(np.interp(1 + drafted, counts, ms)) + depth * level
    return speedup / promised


@contextmanager
def _watched(model: PreTrainedModel, times: Times) -> Iterator[None]:
    """Within, what the vision tower takes, if the model has one."""
    finder: Any = model  # get_encoder is not declared to take a modality
    tower: nn.Module = finder.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        yield
        return
    began = 0.0

    def start(*_: Any) -> None:
        nonlocal began
        began = time.perf_counter()

    def stop(*_: Any) -> None:
        times.setdefault("vision", []).append(1000 * (time.perf_counter() - began))

    hooks = tower.register_forward_pre_hook(start), tower.register_forward_hook(stop)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _head_level(head: EagleHead, length: int) -> Callable[[], Tensor]:
    """A forward of an EAGLE head over one token behind so many."""
    config, dtype = head.config, head.fc.weight.dtype
    device = head.fc.weight.device
    size = (1, config.num_key_value_heads, length, config.head_dim)
    keys, values = torch.randn(2, *size, dtype=dtype, device=device)
    row = torch.randn(1, 1, config.hidden_size, dtype=dtype, device=device)
    positions = torch.tensor([[length]], device=device)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        k, v = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        return F.scaled_dot_product_attention(query, k, v, enable_gqa=True)

    def level() -> Tensor:
        return head.logits(head(row, row, positions, attend)[0]).argmax(-1)

    return level
