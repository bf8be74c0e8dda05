"""`specdec.decoder`, through transformers' own door: what passes it, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import specdec
from support import families

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=3)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(2, 140, (2, 9))


def test_caches_and_states_pass(model: PreTrainedModel, ids: Tensor) -> None:
    """In place, as for generate; the drafter is heard, so it did pass."""
    through = specdec.decoder(model)
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    asked = {"return_dict_in_generate": True, "output_hidden_states": True}
    plain = model.generate(ids, **GREEDY, **asked, past_key_values=caches[0])
    fast = model.generate(
        ids, **GREEDY, **asked, past_key_values=caches[1], custom_generate=through
    )
    assert fast.sequences.tolist() == plain.sequences.tolist()
    assert len(fast.hidden_states) == len(plain.hidden_states)
    assert fast.stats.mean_acceptance_length > 3
    more = torch.cat([plain.sequences, ids], 1)
    after = [
        model.generate(more, **GREEDY, past_key_values=cache, custom_generate=custom).tolist()
        for cache, custom in zip(caches, (None, through), strict=True)
    ]
    assert after[0] == after[1]
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == more.shape[1] + 11


def test_embeddings_and_samples_pass(model: PreTrainedModel, ids: Tensor) -> None:
    embeds = model.get_input_embeddings()(ids).detach()
    given: dict[str, Any] = {"inputs_embeds": embeds, "num_return_sequences": 2, **GREEDY}
    given |= {"do_sample": True, "top_k": 1}
    fast = model.generate(**given, custom_generate=specdec.decoder("ngram"))
    assert fast.tolist() == model.generate(**given).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"use_cache": False}, "use_cache=False"),
        ({"stop_strings": ["x"]}, "tokenizer"),
    ],
    ids=["beams", "cache", "stop_strings"],
)
def test_what_does_not_pass_is_refused(
    model: PreTrainedModel, ids: Tensor, options: dict[str, Any], message: str
) -> None:
    """transformers hands beams over without a word."""
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **GREEDY, **options, custom_generate=specdec.decoder("ngram"))


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.values.append(value.flatten().tolist())

    def end(self) -> None:
        pass


def test_streamers_get_the_prompt_only(model: PreTrainedModel, ids: Tensor) -> None:
    """docs/generate.md says so; if transformers changes it, so should that."""
    streamer = Collect()
    through = specdec.decoder("ngram")
    model.generate(ids, **GREEDY, streamer=streamer, custom_generate=through)
    assert streamer.values == [ids.flatten().tolist()]
