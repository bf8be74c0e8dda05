"""Who drafts: specdec's argument, or what users of transformers' assisted decoding pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec.choice import choose, resolve_tree
from specdec.drafters import TextOnlyDrafter
from specdec.drafters.loading import save_drafter
from specdec.tree import Dynamic, Shape, chain, static
from support import families, processors

GREEDY: dict[str, Any] = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=3)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(2, 140, (1, 9))


def test_an_assistant_drafts(model: PreTrainedModel, ids: Tensor) -> None:
    """An assistant that is accepted and then ignored would draft nothing."""
    plain = model.generate(ids, **GREEDY)
    out = specdec.generate(model, ids, **GREEDY, assistant_model=model, num_assistant_tokens=7)
    assert out.tolist() == plain.tolist()
    assert out.stats.mean_acceptance_length > 5  # 16 tokens: the first, then blocks of up to 8
    with specdec.enabled(model, None):
        inside = model.generate(ids, **GREEDY, assistant_model=model)
    assert inside.tolist() == plain.tolist()
    assert inside.stats.num_draft_tokens > 0


def test_prompt_lookup_drafts(model: PreTrainedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7]])
    plain = model.generate(ids, **GREEDY, prompt_lookup_num_tokens=3)
    out = specdec.generate(
        model, ids, **GREEDY, prompt_lookup_num_tokens=3, max_matching_ngram_size=2
    )
    assert out.tolist() == plain.tolist()
    assert out.stats.num_draft_tokens > 0
    chosen = choose(model, None, specdec.chain(5), {"prompt_lookup_num_tokens": 3})
    assert len(chosen.shape) == 6  # a tree that the caller asked for stays


@pytest.mark.parametrize(
    "given",
    [
        {"drafter": "ngram", "prompt_lookup_num_tokens": 3},
        {"drafter": "ngram", "assistant_model": families.causal_lm(3)},
        {"assistant_model": families.causal_lm(3), "prompt_lookup_num_tokens": 3},
    ],
    ids=["lookup", "assistant", "both"],
)
def test_two_drafters_are_refused(
    model: PreTrainedModel, ids: Tensor, given: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=" and ".join(sorted(set(given) - {"drafter"}))):
        specdec.generate(model, ids, **GREEDY, **given)


def test_what_is_no_assistant_is_refused(model: PreTrainedModel, ids: Tensor) -> None:
    small: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    for assistant in (object(), T5ForConditionalGeneration(T5Config(vocab_size=160, **small))):
        with pytest.raises(ValueError, match=rf"assistant_model={type(assistant).__name__}"):
            specdec.generate(model, ids, **GREEDY, assistant_model=assistant)


@pytest.mark.parametrize("size", [130, 160, 192])
def test_vocabularies_may_be_padded_differently(
    model: PreTrainedModel, ids: Tensor, size: int
) -> None:
    """A drafter with fewer or more ids than the verifier: out of range on one side or the other."""
    drafter = families.causal_lm(3, vocab_size=size)
    plain = model.generate(ids, **GREEDY)
    assert specdec.generate(model, ids, **GREEDY, drafter=drafter).tolist() == plain.tolist()
    for seed in range(5):
        out = specdec.generate(
            model,
            ids,
            drafter=TextOnlyDrafter(drafter, "with_replacement"),
            max_new_tokens=12,
            generator=torch.Generator().manual_seed(seed),
            do_sample=True,
        )
        assert int(out.max()) < 160


def test_other_tokenizers_are_refused(model: PreTrainedModel, ids: Tensor) -> None:
    """Given as for universal assisted decoding, which specdec does not do."""
    same, other = processors.build().tokenizer, processors.build().tokenizer
    state = json.loads(other.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    state["model"]["vocab"] = dict(zip(words, [*list(words.values())[7:], *range(7)], strict=True))
    other._tokenizer = type(other._tokenizer).from_str(json.dumps(state))
    given: dict[str, Any] = {**GREEDY, "assistant_model": model, "tokenizer": same}
    plain = model.generate(ids, **GREEDY)
    out = specdec.generate(model, ids, **given, assistant_tokenizer=same)
    assert out.tolist() == plain.tolist()
    with pytest.raises(ValueError, match=r"assistant_tokenizer .* and tokenizer .* different"):
        specdec.generate(model, ids, **given, assistant_tokenizer=other)


def test_drafters_saved_with_another_tokenizer_are_refused(tmp_path: Path) -> None:
    """Same size, other words: every draft would be wrong, and nobody would know why."""
    model, drafter = families.causal_lm(0), families.causal_lm(3)
    words = [f"w{number}" for number in range(160)]
    for name, vocabulary in (("large", words), ("near", words[:150]), ("far", words[::-1])):
        folder = tmp_path / name
        save_drafter(drafter, folder, verifier="large")
        contents = {"model": {"vocab": {word: number for number, word in enumerate(vocabulary)}}}
        (folder / "tokenizer.json").write_text(json.dumps(contents))
    model.config._name_or_path = str(tmp_path / "large")
    model.name_or_path = str(tmp_path / "large")
    assert specdec.load_drafter(tmp_path / "near", model).name == "text_only"
    with pytest.raises(ValueError, match=r"far and verifier .*large have different tokenizers"):
        specdec.load_drafter(tmp_path / "far", model)
    drafter.name_or_path = str(tmp_path / "far")
    with pytest.raises(ValueError, match="different tokenizers"):
        specdec.generate(model, torch.ones(1, 4, dtype=torch.long), drafter=drafter)


class Ended(BaseStreamer):
    """Counts how often it was told that there is no more."""

    def __init__(self) -> None:
        self.count = 0

    def put(self, value: Tensor) -> None:
        pass

    def end(self) -> None:
        self.count += 1


@pytest.mark.parametrize(
    "bad",
    [{"num_beams": 2}, {"drafter": 7}, {"max_length": 3}, {"no_such_argument": 1}],
    ids=["refused", "drafter", "length", "transformers"],
)
def test_streamers_end_whatever_fails(
    model: PreTrainedModel, ids: Tensor, bad: dict[str, Any]
) -> None:
    """A thread that reads from the other end would wait for ever."""
    streamer = Ended()
    with pytest.raises(ValueError, match=r"."):
        specdec.generate(model, ids, streamer=streamer, **bad)
    assert streamer.count == 1


def test_one_process_has_nothing_to_synchronise(model: PreTrainedModel, ids: Tensor) -> None:
    plain = model.generate(ids, **GREEDY)
    out = specdec.generate(model, ids, **GREEDY, synced_gpus=True)
    assert out.tolist() == plain.tolist()


def test_several_processes_are_refused(
    model: PreTrainedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="synced_gpus"):
        specdec.generate(model, ids, **GREEDY, synced_gpus=True)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("0", chain(0)),
        ("4", chain(4)),
        ("3,2,1", static((3, 2, 1))),
        ("dynamic:16", Dynamic(16, 16, 4)),
        ("dynamic:16,8", Dynamic(16, 8, 4)),
        ("dynamic:16,8,2", Dynamic(16, 8, 2)),
    ],
)
def test_trees_have_names(text: str, shape: Shape) -> None:
    """Budget, depth and width in another order would make other trees."""
    assert resolve_tree(text) == shape


@pytest.mark.parametrize(
    "text", ["best", "", "-1", "2,0", "dynamic:", "dynamic:0", "dynamic:1,2,3,4", "static:4"]
)
def test_what_is_no_tree_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of tokens"):
        resolve_tree(text)


@pytest.mark.parametrize("text", ["257", "16,16,16", "dynamic:300"])
def test_trees_that_no_step_can_pay_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="at most 256 are allowed"):
        resolve_tree(text)
