"""Relaxed acceptance within the engine: the ledger is true, budgets and guards hold.

The answer is read again by the model itself, in one forward, and everything that the ledger says is
computed a second time from that.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec import baselines
from specdec.guards import Guards
from specdec.ledger import Entry
from specdec.policies import Relaxed
from specdec.relaxation import toward
from specdec.reliance import Constant, Divergence, Evidence, Need, Probe
from specdec.sampling import normalised, total_variation
from specdec.tree import chain, static
from support import families
from support.fake_drafters import GuessingDrafter

LENGTH = 40
TREES = {"chain": chain(4), "tree": static((3, 2, 1))}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


@pytest.fixture(scope="module")
def drafter() -> PreTrainedModel:
    return families.causal_lm(4)


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(2, 140, (1, 7), generator=torch.Generator().manual_seed(3))


def answer(model: PreTrainedModel, drafter: Any, acceptance: Any, ids: Tensor, **how: Any) -> Any:
    how = {"do_sample": False, "max_new_tokens": LENGTH, "tree": 4} | how
    return specdec.generate(model, input_ids=ids, drafter=drafter, acceptance=acceptance, **how)


def relaxed(epsilon: float, **how: Any) -> Relaxed:
    return Relaxed(epsilon, **{"reliance": Constant(0.25), "guards": (), "floor": 0.0} | how)


@torch.no_grad()
def read_again(model: PreTrainedModel, sequences: Tensor, prompt: int) -> Tensor:
    """float32 logits ``(A, V)`` that the tokens of the answer were chosen from."""
    logits: Tensor = model(input_ids=sequences).logits
    return logits[0, prompt - 1 : -1].float()


def check_greedy(ledger: list[Entry], logits: Tensor, epsilon: float) -> None:
    """Every token is the target's argmax or within the bound, at the regret that was recorded."""
    for entry, row in zip(ledger, logits, strict=True):
        p = row.double().softmax(-1)
        ratio = float(p[entry.token] / p.max())
        assert entry.own == int(row.argmax())
        assert (entry.rule == "relaxed") == (entry.token != entry.own)
        assert entry.spent == pytest.approx(-math.log(ratio), abs=1e-4)
        if entry.rule == "relaxed":
            assert ratio >= 1 - entry.epsilon - 1e-4
            assert entry.epsilon == pytest.approx(epsilon)


@pytest.mark.parametrize("tree", TREES)
def test_the_ledger_of_a_greedy_answer_is_true(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor, tree: str
) -> None:
    """A regret that was not recorded, or against another node's distribution, shows here."""
    out = answer(model, drafter, relaxed(0.9, gamma=2.0), ids, tree=TREES[tree])
    (ledger,) = out.ledger
    assert [entry.token for entry in ledger] == out[0, ids.shape[1] :].tolist()
    check_greedy(ledger, read_again(model, out, ids.shape[1]), 0.9 * 0.75**2)
    stats, rules = out.stats, Counter(entry.rule for entry in ledger)
    assert stats.num_relaxed_tokens == rules["relaxed"] > 0
    assert stats.num_accepted_draft_tokens == rules["relaxed"] + rules["matched"]
    assert stats.bound_spent == pytest.approx(sum(entry.spent for entry in ledger))
    assert stats.epsilon_allowed == pytest.approx(sum(entry.epsilon for entry in ledger))


def test_the_ledger_of_a_sampled_answer_is_true(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    """TV of the relaxed target at each position, from both models' own distributions."""
    generator = torch.Generator().manual_seed(2)
    how = {"do_sample": True, "temperature": 0.8, "top_k": 0, "generator": generator}
    out = answer(model, drafter, relaxed(0.3, gamma=1.0), ids, **how)
    (ledger,) = out.ledger
    p = (read_again(model, out, ids.shape[1]) / 0.8).softmax(-1)
    q = read_again(drafter, out, ids.shape[1])
    q[:, list(specdec.TransformersVerifier(model).spec.visual_token_ids)] = -math.inf
    q = (q / 0.8).softmax(-1)
    stops = torch.zeros(p.shape[-1], dtype=torch.bool)
    stops[families.EOS] = True
    spent = 0.0
    for place, entry in enumerate(ledger):
        assert entry.token == int(out[0, ids.shape[1] + place])
        assert entry.spent <= entry.epsilon
        if entry.epsilon > 0:
            expected = toward(normalised(p[place]), normalised(q[place]), 0.3 * 0.75, stops)[1]
            assert entry.spent == pytest.approx(float(expected), abs=1e-4)
            spent += entry.spent
    assert out.stats.bound_spent == pytest.approx(spent)
    assert any(entry.rule == "relaxed" for entry in ledger)


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("tree", TREES)
def test_no_tolerance_answers_as_losslessly(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor, tree: str, sample: bool
) -> None:
    """The same tokens from the same generator, and as many uniforms taken from it."""
    answers, states = [], []
    for acceptance in ("lossless", relaxed(0.0), relaxed(0.7, reliance=Constant(1.0))):
        generator = torch.Generator().manual_seed(7)
        how = {"do_sample": sample, "top_k": 0, "generator": generator, "tree": TREES[tree]}
        answers.append(answer(model, drafter, acceptance, ids, **how).tolist())
        states.append(generator.get_state().tolist())
    assert answers[0] == answers[1] == answers[2]
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("sample", [False, True])
def test_a_budget_ends_relaxation_not_generation(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor, sample: bool
) -> None:
    """Spending that is only looked at between steps would go over it."""
    how = {"do_sample": sample, "top_k": 0, "max_new_tokens": 60, "eos_token_id": None}
    free = answer(model, drafter, relaxed(0.9), ids, **how, generator=torch.Generator())
    budget = 0.4 * free.stats.bound_spent
    out = answer(
        model, drafter, relaxed(0.9, budget=budget), ids, **how, generator=torch.Generator()
    )
    assert out.shape[1] == ids.shape[1] + 60
    assert 0 < out.stats.bound_spent <= budget + 1e-9
    (ledger,) = out.ledger
    assert sum(entry.rule == "relaxed" for entry in ledger) > 0
    if sample:  # the last of it is spent to the last bit
        assert out.stats.bound_spent == pytest.approx(budget)


def test_each_row_has_its_own_ledger_and_budget(
    model: PreTrainedModel, drafter: PreTrainedModel
) -> None:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 140, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    ids[1, :4] = families.PAD
    out = answer(model, drafter, relaxed(0.9, budget=1.5), ids, attention_mask=mask)
    for row, ledger in enumerate(out.ledger):
        alone = answer(model, drafter, relaxed(0.9, budget=1.5), ids[row, mask[row].bool()][None])
        assert [entry.token for entry in ledger] == alone[0, int(mask[row].sum()) :].tolist()
        assert 0 < sum(entry.spent for entry in ledger) <= 1.5
    assert out.stats.num_relaxed_tokens == sum(
        entry.rule == "relaxed" for ledger in out.ledger for entry in ledger
    )


def test_the_end_is_never_relaxed(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    """Neither into nor out of what ends this very call: ended where it had been relaxed before, the
    answer has the model's own token there.
    """
    free = answer(model, drafter, relaxed(1.0), ids, eos_token_id=None)
    (ledger,) = free.ledger
    places = [place for place, entry in enumerate(ledger) if entry.rule == "relaxed"]
    assert len(places) > 3
    for place in places[:4]:
        before = [entry.token for entry in ledger[:place]]
        for end in (ledger[place].own, ledger[place].token):
            if end in before:
                continue
            out = answer(model, drafter, relaxed(1.0), ids, eos_token_id=[end])
            said = out.ledger[0]
            assert [entry.token for entry in said[:place]] == before
            assert said[place].token == said[place].own == ledger[place].own
            assert said[place].rule != "relaxed"


@pytest.mark.parametrize("sample", [False, True])
def test_what_processors_exclude_stays_excluded(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor, sample: bool
) -> None:
    banned = list(range(2, 40))
    how = {"suppress_tokens": banned, "do_sample": sample, "top_k": 0}
    out = answer(model, drafter, relaxed(1.0), ids, **how)
    assert out.stats.num_relaxed_tokens > 0
    assert not set(out[0, ids.shape[1] :].tolist()) & set(banned)


def test_guards_hold(model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor) -> None:
    """No token of a guarded half of the vocabulary is relaxed into or out of, and nothing is while
    the text is closed.
    """

    class Strict(Guards):
        def closed(self, state: Any) -> bool:
            return self.last % 2 == 0

        def advance(self, state: Any, token: int) -> Any:
            self.last = token
            return state

    guards = Strict(None, 160, (), stop_tokens=range(0, 160, 5))
    how = {"max_new_tokens": 200, "eos_token_id": None}
    policy = relaxed(1.0, reliance=Constant(0.0), guards=guards)
    (ledger,) = answer(model, drafter, policy, ids, **how).ledger
    deep = 0  # relaxed behind a drafted token, so not at the root of a tree
    for before, entry in itertools.pairwise(ledger):
        if entry.rule == "relaxed":
            assert entry.token % 5
            assert entry.own % 5
            assert before.token % 2 == 1
            deep += before.rule != "verifier"
    assert deep > 3


def test_divergence_is_that_of_drafter_and_verifier(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    """Greedy: both at temperature 1, though nothing is drawn."""
    out = answer(model, drafter, relaxed(0.9, reliance=Divergence()), ids)
    p = read_again(model, out, ids.shape[1]).softmax(-1)
    q = read_again(drafter, out, ids.shape[1]).softmax(-1)
    expected = total_variation(p, q).tolist()
    checked = 0
    for entry, distance in zip(out.ledger[0], expected, strict=True):
        if entry.epsilon > 0:
            assert entry.reliance == pytest.approx(distance, abs=1e-4)
            checked += 1
    assert checked > 10


def test_a_probe_reads_the_hidden_state_of_its_own_node(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    """In a tree and in a batch of several rows, whose packed nodes could be mixed up."""
    width = model.config.hidden_size
    weight = torch.randn(width, generator=torch.Generator().manual_seed(1))
    probe = Probe(weight, torch.tensor(0.0))
    rows = torch.cat([ids, ids.flip(1)])
    out = answer(model, drafter, relaxed(0.9, reliance=probe), rows, tree=TREES["tree"])
    for row, ledger in enumerate(out.ledger):
        said = out[row : row + 1, : ids.shape[1] + len(ledger)]
        with torch.no_grad():
            hidden = model(input_ids=said, output_hidden_states=True).hidden_states[-1][0]
        values = (hidden[ids.shape[1] - 1 : -1] @ weight).sigmoid().tolist()
        known = [entry for entry in ledger if entry.reliance is not None]
        assert len(known) == len(ledger) - 1  # all but the one that prefill yields
        for entry, value in zip(ledger, values, strict=True):
            if entry.reliance is not None:
                assert entry.reliance == pytest.approx(value, abs=1e-4)


def test_a_kept_verifier_must_give_what_is_read(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    probe = Probe(torch.zeros(model.config.hidden_size), torch.tensor(0.0))
    with pytest.raises(ValueError, match="TransformersVerifier\\(model, hidden=True\\)"):
        answer(
            model,
            drafter,
            relaxed(0.5, reliance=probe),
            ids,
            verifier=specdec.TransformersVerifier(model),
        )
    kept = specdec.TransformersVerifier(model, hidden=True)
    answer(model, drafter, relaxed(0.5, reliance=probe), ids, verifier=kept)


def test_divergence_needs_a_drafter_with_distributions(model: PreTrainedModel) -> None:
    """Silently strict would be a policy that does nothing."""
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    with pytest.raises(ValueError, match="drafter's distributions"):
        answer(model, "ngram", relaxed(0.5, reliance=Divergence()), ids)


def test_emissions_say_what_was_relaxed(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    emissions: list[Any] = []
    out = answer(model, drafter, relaxed(1.0), ids, on_emission=emissions.append)
    rules = [entry.rule for entry in out.ledger[0]]
    assert [emission.relaxed for emission in emissions] == [rule == "relaxed" for rule in rules]
    assert [emission.drafted for emission in emissions] == [rule != "verifier" for rule in rules]


def test_lossless_keeps_no_ledger(model: PreTrainedModel, ids: Tensor) -> None:
    out = answer(model, GuessingDrafter(), "lossless", ids, return_dict_in_generate=True)
    assert out.ledger == [[]]
    assert out.stats.num_relaxed_tokens == 0


@pytest.mark.parametrize(
    "policy",
    [baselines.Random(0.5), baselines.Typical(), baselines.TopK(), baselines.uniform(0.5)],
    ids=lambda policy: type(policy).__name__,
)
def test_every_rule_goes_with_processors_samples_and_streams(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor, policy: Any
) -> None:
    how = {"repetition_penalty": 1.3, "num_return_sequences": 2, "do_sample": True, "top_k": 20}
    out = answer(model, drafter, policy, ids, **how, generator=torch.Generator().manual_seed(1))
    assert len(out) == len(out.ledger) == 2
    with specdec.enabled(model, drafter, acceptance=policy):
        again = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert again.shape[1] <= ids.shape[1] + 8


def test_a_broken_estimator_leaves_nothing_behind(
    model: PreTrainedModel, drafter: PreTrainedModel, ids: Tensor
) -> None:
    class Broken:
        needs: frozenset[Need] = frozenset()

        def values(self, evidence: Evidence) -> Tensor:
            raise RuntimeError("the estimator broke")

    verifier = specdec.TransformersVerifier(model)
    with pytest.raises(RuntimeError, match="the estimator broke"):
        answer(model, drafter, relaxed(0.5, reliance=Broken()), ids, verifier=verifier)
    verifier.check_integrity()
    assert verifier.pages_taken == 0
