"""The yardstick: speculative decoding as one would write it by hand over transformers' own cache.

A chain of k drafts, batch 1, greedy, no pages, no trees, no processors, no streaming: nothing but
the two models and ``DynamicCache.crop``. What specdec adds must not cost more than it brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from specdec.stats import AcceptanceStats
from specdec.verifiers.spec import read_spec


@torch.no_grad()
def chain_loop(
    model: PreTrainedModel,
    drafter: PreTrainedModel,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    k: int = 4,
    on_token: Callable[[], object] = lambda: None,
) -> tuple[list[int], AcceptanceStats]:
    """Greedy answer to one prompt, and what was accepted.

    Args:
        model: the verifier.
        drafter: a causal language model with the same tokenizer; it never sees visual tokens.
        inputs: what the verifier's forward takes, one row, no padding.
        max_new_tokens: longest answer.
        k: drafts per step.
        on_token: called with every token of the answer.
    """
    spec, stats = read_spec(model), AcceptanceStats()
    cache, draft_cache = DynamicCache(), DynamicCache()
    out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    answer = [int(out.logits[0, -1].argmax())]
    on_token()
    prompt = inputs["input_ids"][0].tolist()
    unread = [token for token in prompt if token not in spec.visual_token_ids] + answer
    while len(answer) < max_new_tokens and answer[-1] not in spec.eos_token_ids:
        drafts, feed = list[int](), unread
        depth = min(k, max_new_tokens - len(answer) - 1)
        for _ in range(depth):
            read = {"past_key_values": draft_cache, "use_cache": True, "logits_to_keep": 1}
            draft = drafter(input_ids=torch.tensor([feed]), **read)
            feed = [int(draft.logits[0, -1].argmax())]
            drafts += feed
        nodes = torch.tensor([[answer[-1], *drafts]])
        out = model(input_ids=nodes, past_key_values=cache, use_cache=True)
        wanted = out.logits[0].argmax(-1).tolist()
        kept = next((i for i in range(depth) if drafts[i] != wanted[i]), depth)
        stats.record_step(depth, kept, depth)
        if kept < depth:
            cache.crop(kept - depth)
        # The drafter has read all its drafts but the last.
        if kept < depth - 1:
            draft_cache.crop(kept - depth + 1)
        unread = wanted[depth - 1 : depth + 1] if kept == depth > 0 else [wanted[kept]]
        for token in wanted[: kept + 1]:
            answer.append(token)
            on_token()
            if token in spec.eos_token_ids:
                break
    stats.num_generated_tokens = len(answer)
    return answer, stats
