"""The step: several requests at once, their statistics, and sampling that follows the target."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters import TextOnlyDrafter
from specdec.engine import Decoding, Emission, Engine, Request
from specdec.interfaces import Prompt
from specdec.stats import AcceptanceStats
from specdec.tree import Siblings, Topology, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.chi_square import assert_counts_follow
from support.fake_drafters import GuessingDrafter
from support.laws import sequence_distribution


def prompt_of(ids: Tensor) -> Prompt:
    return Prompt(ids, (0,) * ids.shape[0], {})


def finish(engine: Engine) -> list[Emission]:
    emissions = []
    while engine.has_work:
        emissions += engine.step()
    return emissions


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


def test_requests_may_join_at_any_step(model: PreTrainedModel) -> None:
    """Answers that depend on what else is in the batch."""
    prompts = [torch.randint(2, 140, (1, length)) for length in (5, 9, 3, 12)]
    expected = [model.generate(p, max_new_tokens=20, do_sample=False)[0].tolist() for p in prompts]
    verifier = TransformersVerifier(model, page_size=4)
    engine = Engine(verifier, TextOnlyDrafter(families.causal_lm(4)), static((2, 2)))
    requests: list[Request] = []
    for index, ids in enumerate(prompts):
        limit = ids.shape[1] + 20
        requests += engine.submit(prompt_of(ids), Decoding(max_length=limit))
        for _ in range(3 * index):
            engine.step()
            verifier.check_integrity()
    finish(engine)
    for request, ids, answer in zip(requests, prompts, expected, strict=True):
        eos = families.EOS
        assert ids[0].tolist() + request.output == answer or eos in answer
    assert verifier.pages_taken == 0


def test_emissions_and_statistics_agree(model: PreTrainedModel) -> None:
    ids = torch.randint(2, 140, (1, 6))
    answer = model.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)[0].tolist()
    drafter = GuessingDrafter({tuple(answer[:6]): answer[6:]}, right=0.7)
    engine = Engine(TransformersVerifier(model), drafter, chain(3))
    (request,) = engine.submit(prompt_of(ids), Decoding(max_length=46))
    emissions = finish(engine)
    stats = engine.stats
    assert [emission.token for emission in emissions] == request.output == answer[6:]
    assert stats.num_generated_tokens == 40
    assert sum(emission.drafted for emission in emissions) == stats.num_accepted_draft_tokens
    # Prefill yields the first token, each step one of the verifier's own besides the accepted ones.
    assert 1 + stats.num_spec_steps + stats.num_accepted_draft_tokens == 40
    assert sum(stats.acceptance_histogram.values()) == stats.num_spec_steps
    assert drafter.released == [request.view.id]
    times = stats.times
    assert 0 < times.model_forward < times.step
    assert times.prefill > 0


def test_close_gives_everything_back(model: PreTrainedModel) -> None:
    verifier, drafter = TransformersVerifier(model), GuessingDrafter()
    engine = Engine(verifier, drafter, chain(2))
    engine.submit(prompt_of(torch.randint(2, 140, (3, 6))), Decoding(max_length=30))
    engine.step()
    engine.step()
    assert verifier.pages_taken > 0
    engine.close()
    assert verifier.pages_taken == 0
    assert sorted(drafter.released) == [0, 1, 2]
    assert not engine.has_work


def test_a_prompt_without_room_is_refused(model: PreTrainedModel) -> None:
    engine = Engine(TransformersVerifier(model), None)
    with pytest.raises(ValueError, match=r"6 tokens, max_length=6.*raise max_length"):
        engine.submit(prompt_of(torch.ones(1, 6, dtype=torch.long)), Decoding(max_length=6))


@pytest.mark.parametrize(
    ("shape", "siblings"),
    [
        (chain(2), "without_replacement"),
        (static((2, 2)), "without_replacement"),
        (static((2, 1)), "with_replacement"),
        (static((2, 2)), "deterministic"),
    ],
    ids=["chain", "without", "with", "deterministic"],
)
def test_sampled_answers_follow_the_target(shape: Topology, siblings: Siblings) -> None:
    """The whole engine with two real models over a vocabulary of 6: counts of all 216 answers of
    three tokens against their exact probabilities. A q of the wrong node, a uniform used twice, or
    a cache row of a refused branch would show. χ² with a false-failure probability of 1e-10 each.
    """
    verifier_model = families.causal_lm(1, layers=2, vocab_size=6, pad_token_id=None)
    drafter_model = families.causal_lm(2, layers=1, vocab_size=6, pad_token_id=None)
    for part in (verifier_model, drafter_model):
        part.lm_head.weight.data.mul_(0.35)
    ids = torch.tensor([[2, 4, 3]])
    expected = sequence_distribution(verifier_model, ids, 3)
    engine = Engine(
        TransformersVerifier(verifier_model), TextOnlyDrafter(drafter_model, siblings), shape
    )
    trials, counts = 1500, Counter[tuple[int, ...]]()
    for _ in range(trials // 500):
        decoding = Decoding(max_length=6, do_sample=True)
        requests = engine.submit(prompt_of(ids.expand(500, -1)), decoding)
        finish(engine)
        counts.update(tuple(request.output) for request in requests)
    assert 0.1 < engine.stats.draft_acceptance_rate < 0.9
    assert_counts_follow(counts, expected, trials)


def test_merged_statistics_are_those_of_the_engine(model: PreTrainedModel) -> None:
    engine = Engine(TransformersVerifier(model), GuessingDrafter(), chain(2))
    requests = engine.submit(prompt_of(torch.randint(2, 140, (3, 6))), Decoding(max_length=20))
    finish(engine)
    merged = AcceptanceStats()
    for request in requests:
        merged.merge(request.stats)
    merged.times = engine.stats.times
    assert merged == engine.stats
