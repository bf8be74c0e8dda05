"""Decoding at a given acceptance."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec.eval.known_configs import known_config
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import image_prompt, random_eagle, random_model, toy
from specdec.eval.replay import ReplayedVerifier, ReplayingDrafter, successor
from specdec.eval.throughput import on_one_image, throughput
from specdec.stats import AcceptanceStats
from specdec.tree import chain, static


@cache
def small(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return random_model(toy(known_config("qwen2.5-vl-3b")), dtype, "cpu")


def replay(acceptance: Acceptance, tokens: int, shape: Any, behind: Any = None) -> AcceptanceStats:
    """Statistics of an answer, after its tokens were checked."""
    model = small(torch.bfloat16)
    taps = behind.reads.layers if behind is not None else ()
    inputs = image_prompt(model, 6)
    ids = specdec.generate(
        model,
        drafter=ReplayingDrafter(acceptance, behind),
        tree=shape,
        verifier=ReplayedVerifier(model, taps=taps),
        **inputs,
        do_sample=False,
        max_new_tokens=tokens,
    )
    said = ids[0, inputs["input_ids"].shape[1] - 1 :].tolist()
    assert said[1:] == [successor(token, 256) for token in said[:-1]]
    stats: AcceptanceStats = ids.stats
    return stats


@pytest.mark.parametrize("shape", [chain(3), static((2, 2, 1))], ids=["chain", "tree"])
def test_acceptance_is_what_was_asked_for(shape: Any) -> None:
    """Rates taken for products of rates, positions mixed up, drafts that are right by mistake, an
    answer that depends on what is accepted.

    Of about 750 steps, a share within 0.13 of its probability: by Hoeffding's bound wrong with a
    probability of 2·exp(−2·750·0.13²) < 3e-11 each.
    """
    wanted = (0.9, 0.5, 0.4)
    stats = replay(Acceptance(wanted, "", 0.5), 2100, shape)
    assert stats.num_spec_steps > 700
    shares = [count / stats.num_spec_steps for count in stats.num_accepted_tokens_per_pos]
    assert shares == pytest.approx(wanted, abs=0.13)


def test_the_drafter_behind_has_its_time_counted() -> None:
    """A head that is never asked, or never gets its states."""
    eagle = random_eagle(small(torch.bfloat16))
    stats = replay(Acceptance.constant(0.8), 30, chain(3), eagle)
    assert stats.num_accepted_draft_tokens > 0
    assert eagle.model_seconds > 0


def test_throughput_counts_decoded_tokens_only() -> None:
    """Tokens of prompts, or of the other method, in a rate; requests that are not run together."""
    model = small()
    found = throughput(
        model,
        random_eagle(model),
        Acceptance.constant(1.0),
        batch=10,
        context=20,
        depth=3,
        tokens=9,
    )
    assert found["plain"]["tokens"] == found["replayed"]["tokens"] == 10 * 8
    assert found["plain"]["mean_acceptance_length"] == 1.0
    assert found["replayed"]["mean_acceptance_length"] == 4.0
    for each in (found["plain"], found["replayed"]):
        assert each["tokens_per_second"] == pytest.approx(80 / each["seconds"])
        assert sum(each["shares"].values()) == pytest.approx(1.0)
    rates = [found[name]["tokens_per_second"] for name in ("replayed", "plain")]
    assert found["speedup_at_replayed_acceptance"] == pytest.approx(rates[0] / rates[1])


def test_one_image_is_kept_once() -> None:
    """Questions that do not find the image's pages, or a peak that is taken when they have gone."""
    model = random_model(toy(known_config("llava-1.5-7b")), torch.float32, "cpu")
    found = on_one_image(
        model, random_eagle(model), Acceptance.constant(0.8), requests=3, words=8, tokens=6, depth=2
    )
    # A start token, 16 for the image and 8 words; the image ends a page, which two others find.
    assert found["prompt_tokens"] == 25
    assert found["cached_prompt_tokens"] == 2 * 17
    assert 0 < found["kv_bytes"] < found["kv_bytes_apart"]
    assert found["drafter_kv_bytes"] > 0
    assert found["peak_bytes"] is None
