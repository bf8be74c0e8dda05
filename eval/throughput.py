"""What the engine does with many requests at once, at an acceptance that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.arguments import prepare
from specdec.engine import Engine
from specdec.engine.request import Decoding, Request
from specdec.eval.filled import milliseconds
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import image_prompt, parameter_bytes, text_tokens
from specdec.eval.replay import ReplayedVerifier, ReplayingDrafter
from specdec.interfaces import Drafter, Prompt, reads_of
from specdec.stats import AcceptanceStats
from specdec.tree import chain

_TOGETHER = 8  # rows of text that are prefilled at once


def throughput(
    model: PreTrainedModel,
    behind: Drafter | None,
    acceptance: Acceptance,
    *,
    batch: int,
    context: int,
    depth: int,
    tokens: int,
) -> dict[str, Any]:  # Any: JSON values
    """Tokens a second of ``batch`` requests, decoded plainly and with replayed chains of ``depth``;
    prompts are left out of the time.

    Args:
        model: with any weights.
        behind: whose drafting time is counted.
        acceptance: what is replayed.
        batch: how many requests.
        context: tokens of their prompts, text only.
        depth: of the chains.
        tokens: longest answer.
    """
    verifier = ReplayedVerifier(model, taps=reads_of(behind).layers)
    verifier.shares = False  # these prompts have nothing in common
    generator = torch.Generator().manual_seed(2)
    rows = [text_tokens(model, context, generator) for _ in range(batch)]
    groups = [rows[start : start + _TOGETHER] for start in range(0, batch, _TOGETHER)]
    prompts = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in (torch.tensor(group, device=model.device) for group in groups)
    ]
    found: dict[str, Any] = {"batch": batch, "context": context, "depth": depth}
    for name, deep in (("plain", 0), ("replayed", depth)):
        drafter = ReplayingDrafter(acceptance, behind) if deep else None
        stats, seconds = _decode(verifier, drafter, deep, prompts, tokens)
        decoded = stats.num_generated_tokens - batch
        found[name] = {
            "tokens": decoded,
            "seconds": seconds,
            "tokens_per_second": decoded / seconds,
            "mean_acceptance_length": stats.mean_acceptance_length,
            "shares": _shares(stats),
        }
    rates = [found[name]["tokens_per_second"] for name in ("replayed", "plain")]
    return {**found, "speedup_at_replayed_acceptance": rates[0] / rates[1]}


def _decode(
    verifier: ReplayedVerifier,
    drafter: Drafter | None,
    depth: int,
    prompts: Sequence[Mapping[str, Any]],
    tokens: int,
) -> tuple[AcceptanceStats, float]:
    """Acceptance, and seconds behind the prompts."""
    engine = Engine(verifier, drafter, chain(depth))
    try:
        for inputs in prompts:
            submit(engine, verifier.model, inputs, tokens)
        for _ in prompts:
            engine.step()

        def run() -> None:
            while engine.has_work:
                engine.step()

        seconds = milliseconds(verifier.model.device, run) / 1000
    finally:
        engine.close()
    return engine.stats, seconds


def submit(
    engine: Engine, model: PreTrainedModel, inputs: Mapping[str, Any], tokens: int
) -> list[Request]:
    """Queue what ``generate`` would take, for greedy answers of that many tokens."""
    prepared = prepare(model, {**inputs, "do_sample": False, "max_new_tokens": tokens})
    prompt = Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)
    return engine.submit(prompt, Decoding(max_length=prepared.input_ids.shape[1] + tokens))


def _shares(stats: AcceptanceStats) -> dict[str, float]:
    """Of the steps' time. Accepting is part of verifying here: on a GPU it is what waits for it."""
    times = stats.times
    verify = times.verify + times.accept
    parts = {"draft": times.draft, "verify": verify, "commit": times.commit}
    return {phase: seconds / times.step for phase, seconds in parts.items()}


def on_one_image(
    model: PreTrainedModel,
    behind: Drafter | None,
    acceptance: Acceptance,
    *,
    requests: int,
    words: int,
    tokens: int,
    depth: int,
) -> dict[str, Any]:  # Any: JSON values
    """What ``requests`` questions about one image take in memory while they are answered together.

    ``kv_bytes_apart`` is what their keys would take without pages in common; ``peak_bytes`` is what
    the device held at most, weights and everything else included, ``None`` on a CPU.
    """
    device = model.device
    on_gpu = device.type == "cuda"
    verifier = ReplayedVerifier(model, taps=reads_of(behind).layers)
    drafter = ReplayingDrafter(acceptance, behind)
    engine = Engine(verifier, drafter, chain(depth))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    lengths, pages, own = [], 0, 0
    try:
        for number in range(requests):
            inputs = image_prompt(model, words, seed=number)
            lengths.append(inputs["input_ids"].shape[1])
            submit(engine, model, inputs, tokens)
        while engine.has_work:
            engine.step()
            pages = max(pages, verifier.pages_taken)
            own = max(own, getattr(behind, "bytes_taken", 0))
    finally:
        engine.close()
    apart = sum(-(-(length + tokens + depth) // 16) for length in lengths)
    return {
        "requests": requests,
        "prompt_tokens": lengths[0],
        "cached_prompt_tokens": engine.stats.num_cached_tokens,
        "answer_tokens": tokens,
        "weights_bytes": parameter_bytes(model),
        "kv_bytes": pages * verifier.bytes_per_page,
        "kv_bytes_apart": apart * verifier.bytes_per_page,
        "drafter_kv_bytes": own,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }
