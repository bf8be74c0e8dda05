"""The whole engine over the Triton kernels: in their interpreter, or on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specdec.engine import Decoding, Engine
from specdec.interfaces import Prompt
from specdec.kernels import batch, forced, packed, prefix
from specdec.runtime import paged_model
from specdec.tree import static
from specdec.verifiers import TransformersVerifier
from support import families
from support.devices import DEVICES
from support.fake_drafters import GuessingDrafter

NEW_TOKENS = 6


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_answers_are_those_of_generate(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys stored or moved to where the kernel does not look, windows lost between the hook and
    the kernel, or a shared beginning that is read for the wrong requests: two of three requests
    are the same question, so they share pages, and groups form however little they save."""
    monkeypatch.setattr(prefix, "LEAST_SAVED", 1)
    groups: list[prefix.PrefixGroup] = []

    def spy(*args: Any) -> list[prefix.PrefixGroup]:
        found = prefix.prefix_groups(*args)
        groups.extend(found)
        return found

    monkeypatch.setattr(batch, "prefix_groups", spy)
    model, inputs, *_ = families.build(name)
    model.to(device)
    asked = [{k: v.to(device) for k, v in inputs(seed, 9).items()} for seed in (0, 1, 0)]
    plain = [
        model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
        for given in asked
    ]
    lengths = [given["input_ids"].shape[1] for given in asked]
    truth = {tuple(out[:length]): out[length:] for out, length in zip(plain, lengths, strict=True)}
    verifier = TransformersVerifier(model, page_size=4)
    engine = Engine(verifier, GuessingDrafter(truth, right=0.7, seed=1), static((2, 2, 1)))
    requests = []
    with forced("triton"):
        for given, length in zip(asked, lengths, strict=True):
            limits = Decoding(
                max_length=length + NEW_TOKENS, eos_token_ids=frozenset([families.EOS])
            )
            requests += engine.submit(families.prepare(model, given, NEW_TOKENS), limits)
        while engine.has_work:
            engine.step()
    for request, out, length in zip(requests, plain, lengths, strict=True):
        assert request.output == out[length:]
    assert engine.stats.num_accepted_draft_tokens > 0
    assert groups
    verifier.check_integrity()
    assert verifier.pages_taken == 0


@pytest.mark.parametrize("device", DEVICES)
def test_long_prompts_run_in_pieces_beside_others(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that is longer than the kernel takes, or that is masked as a tree."""
    longest = 300
    if device == "cpu":  # where it would take too long
        longest = 20
        monkeypatch.setattr(packed, "MAX_SCRATCH", 16)
        monkeypatch.setattr(paged_model, "PIECE", 16)
    model = families.causal_lm(0, layers=1).to(device)
    verifier = TransformersVerifier(model)
    engine = Engine(verifier, GuessingDrafter(), static((2, 1)))
    generator = torch.Generator().manual_seed(5)
    requests, expected = [], []
    with forced("triton"):
        for length in (5, longest):
            ids = torch.randint(2, 140, (1, length), generator=generator).to(device)
            how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
            out = model.generate(ids, **how, eos_token_id=None)
            expected.append(out[0, length:].tolist())
            prompt = verifier.encode(Prompt(ids, (0,), {}))
            requests += engine.submit(prompt, Decoding(max_length=length + NEW_TOKENS))
            engine.step()
        assert engine.num_running == engine.num_prefilling == 1
        while engine.has_work:
            engine.step()
    assert [request.output for request in requests] == expected
    assert verifier.pages_taken == 0
