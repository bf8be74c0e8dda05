from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from specdec.eval import suite
from specdec.eval.chain_loop import chain_loop

LENGTH = 20


class Prompter:
    """A drafter that knows the text, and drafts another token at the places in ``wrong``.

    Its cache holds what it has read, so it notices when too much or too little of it is cropped.
    """

    def __init__(self, text: list[int], wrong: set[int], k: int) -> None:
        self.text, self.wrong, self.k = text, wrong, k

    def __call__(self, input_ids: Tensor, past_key_values: DynamicCache, **how: Any) -> Any:
        new = input_ids[:, None, :, None].float()
        read = past_key_values.update(new, new, 0)[0].flatten().long().tolist()
        settled = max(len(read) - self.k, 0)
        assert read[:settled] == self.text[:settled], "a rejected draft was left in the cache"
        shifted = [i for i, token in enumerate(read) if token != self.text[i]]
        assert self.wrong.issuperset(shifted), "too much or too little was cropped"
        place = len(read)
        token = self.text[place] if place < len(self.text) else 0
        logits = torch.zeros(1, 1, 160)
        logits[0, 0, token + (place in self.wrong)] = 1
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("k", [0, 1, 4, 8])
@pytest.mark.parametrize("period", [1, 3, 7, 100])
def test_equals_generate(small: Any, k: int, period: int) -> None:
    """A yardstick with a cache that is cropped one token too far or too little would be measured
    against for speed and yet answer something else. In fp32 the tokens are the same, to the last,
    whether all, some or none of the drafts are right.
    """
    for question in small.questions[:2]:
        inputs = suite.model_inputs(small.model, small.processor, [question])
        plain = small.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0].tolist()
        prompt = inputs["input_ids"].shape[1]
        text = [token for token in plain if token != small.model.config.image_token_id]
        wrong = {i for i in range(len(text)) if i % period == period - 1}
        drafter: Any = Prompter(text, wrong, k)
        tokens, stats = chain_loop(small.model, drafter, inputs, max_new_tokens=LENGTH, k=k)
        assert tokens == plain[prompt:]
        assert stats.num_generated_tokens == len(tokens)
        if period == 100 and k:
            assert stats.draft_acceptance_rate == 1
        if period == 1:
            assert stats.num_accepted_draft_tokens == 0


def test_stops_behind_the_end_of_the_answer(small: Any) -> None:
    """Tokens behind an accepted end-of-answer token must not be handed out; nor more tokens than
    were asked for.
    """
    inputs = suite.model_inputs(small.model, small.processor, small.questions[1:2])
    plain = small.model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0].tolist()
    text = [token for token in plain if token != small.model.config.image_token_id]
    drafter: Any = Prompter(text, set(), 4)
    answer = plain[inputs["input_ids"].shape[1] :]
    for length in range(1, 8):
        tokens, _ = chain_loop(small.model, drafter, inputs, max_new_tokens=length)
        assert tokens == answer[:length]
    ending = small.model.generation_config.eos_token_id
    small.model.generation_config.eos_token_id = answer[7]
    try:
        cut, _ = chain_loop(small.model, drafter, inputs, max_new_tokens=LENGTH)
    finally:
        small.model.generation_config.eos_token_id = ending
    assert cut == answer[: answer.index(answer[7]) + 1]
