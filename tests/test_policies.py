"""What ``acceptance=`` means, and policy files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec import baselines, demo
from specdec.guards import GUARDS, Guards
from specdec.interfaces import Prompt
from specdec.policies import Relaxed, Speaker, load_policy, resolve, save_policy
from specdec.relaxation import Relaxation
from specdec.reliance import Constant, Divergence, Evidence
from specdec.tree import DraftTree, chain
from specdec.verifiers.spec import read_spec
from support import families


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


def speaker(model: PreTrainedModel, **how: Any) -> Speaker:
    return Speaker(model, read_spec(model), **how)


def test_lossless_is_no_rule(model: PreTrainedModel) -> None:
    assert resolve("lossless", speaker(model)) is None


def test_a_rule_is_itself(model: PreTrainedModel) -> None:
    rule = baselines.Random(0.5)
    assert resolve(rule, speaker(model)) is rule


def test_a_policy_gets_the_models_own_guards(model: PreTrainedModel) -> None:
    rule = resolve(Relaxed(0.2, "divergence", guards=()), speaker(model, stop_tokens=(3, 5)))
    assert isinstance(rule, Relaxation)
    assert rule.reliance == Divergence()
    assert rule.fixed.nonzero().flatten().tolist() == [3, 5]
    assert len(rule.fixed) == read_spec(model).vocab_size
    own = Guards(None, read_spec(model).vocab_size, (), stop_tokens=(7,))
    rule = resolve(Relaxed(0.2, "divergence", guards=own), speaker(model, stop_tokens=(3, 5)))
    assert isinstance(rule, Relaxation)
    assert rule.fixed.nonzero().flatten().tolist() == [3, 5, 7]  # the end is, whoever forgot it
    with pytest.raises(ValueError, match=r"vocabulary of 9, .* make them with vocab_size="):
        resolve(Relaxed(0.2, "divergence", guards=Guards(None, 9, ())), speaker(model))


def test_guards_come_from_the_tokenizer_beside_the_weights() -> None:
    shown = demo.load()
    tokenizer: Any = shown.processor
    rule = resolve(Relaxed(0.2, Constant(0.0)), speaker(shown.model))
    given = resolve(
        Relaxed(0.2, Constant(0.0)), speaker(shown.model, tokenizer=tokenizer.tokenizer)
    )
    assert isinstance(rule, Relaxation)
    assert isinstance(given, Relaxation)
    assert torch.equal(rule.guards.tokens, given.guards.tokens)
    digit = tokenizer.tokenizer.encode("7", add_special_tokens=False)[-1]
    assert bool(rule.guards.tokens[digit])


@pytest.mark.parametrize(
    ("acceptance", "message"),
    [
        ("relaxed", "no such file"),
        (3.0, 'expected "lossless", specdec.Relaxed'),
        (Relaxed(0.2, "probe", guards=()), "train-probe"),
        (Relaxed(0.2, "attnetion", guards=()), "known: divergence, probe, attention, combined"),
        (Relaxed(0.2, Constant(0.0)), "pass tokenizer=, or guards="),
    ],
)
def test_what_cannot_be_meant(model: PreTrainedModel, acceptance: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        specdec.generate(model, input_ids=torch.tensor([[5, 6]]), acceptance=acceptance)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 1.2},
        {"epsilon": float("nan")},
        {"gamma": -1.0},
        {"budget": -0.1},
        {"guards": "x"},
        {"guards": ("digits", "numbers")},
    ],
)
def test_numbers_out_of_range(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}="):
        Relaxed(**{"epsilon": 0.5} | wrong)


def test_a_saved_policy_is_the_same(model: PreTrainedModel, tmp_path: Path) -> None:
    policy = Relaxed(0.3, "combined", gamma=2.5, guards=("digits", "units"), budget=1.5)
    path = tmp_path / "sub" / "policy.json"
    save_policy(path, policy, model, {"questions": 600})
    assert load_policy(path, model) == policy
    assert json.loads(path.read_text())["calibration"] == {"questions": 600}
    assert [each.name for each in path.parent.iterdir()] == ["policy.json"]


def test_a_file_works_as_acceptance(model: PreTrainedModel, tmp_path: Path) -> None:
    """The same answer as with the policy itself."""
    policy = Relaxed(0.9, "divergence", guards=())
    save_policy(tmp_path / "policy.json", policy, model)
    ids = torch.tensor([[5, 6, 7]])
    drafter = families.causal_lm(4)
    outs = [
        specdec.generate(
            model, input_ids=ids, drafter=drafter, acceptance=acceptance, max_new_tokens=30
        )
        for acceptance in (policy, tmp_path / "policy.json", str(tmp_path / "policy.json"))
    ]
    assert outs[0].tolist() == outs[1].tolist() == outs[2].tolist()
    assert outs[1].stats.num_relaxed_tokens == outs[0].stats.num_relaxed_tokens > 0


def test_a_policy_of_another_model_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(path, Relaxed(0.3), families.causal_lm(1, layers=2))
    with pytest.raises(ValueError, match=r"calibrated for a model with fingerprint .* has "):
        load_policy(path, model)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"version": 1, "model": "x"}', '{"version": 1, "relaxed": 3}']
)
def test_what_is_no_policy_file(model: PreTrainedModel, tmp_path: Path, content: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no policy file"):
        load_policy(path, model)


def test_unknown_settings_and_versions(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(path, Relaxed(0.3), model)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"relaxed": record["relaxed"] | {"delta": 1}}))
    with pytest.raises(ValueError, match=r"is no policy file: .*delta"):
        load_policy(path, model)
    path.write_text(json.dumps(record | {"version": 2}))
    with pytest.raises(ValueError, match="version 2; this specdec reads 1"):
        load_policy(path, model)


def test_objects_without_names_are_not_written(model: PreTrainedModel, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    for policy in (Relaxed(0.3, Constant(0.0)), Relaxed(0.3, guards=Guards(None, 9, ()))):
        with pytest.raises(ValueError, match="objects of its own"):
            save_policy(path, policy, model)
    assert not path.exists()


def test_default_guards_are_all_of_them() -> None:
    assert tuple(Relaxed(0.1).guards) == GUARDS  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["probe", "attention"])
def test_trained_estimators_are_found_and_read_their_own_node(name: str) -> None:
    """By name, beside the weights. The answer is read again as one chain: the same estimates, token
    by token, so neither taps nor layers nor nodes are mixed up on the way through the engine.
    """
    shown = demo.load()
    inputs = demo.questions()[0].encode(shown.processor)
    out = specdec.generate(
        shown.model, drafter=shown.drafter, tree=8, acceptance=Relaxed(0.9, name), **inputs
    )
    (ledger,) = out.ledger
    assert out.stats.num_relaxed_tokens > 0
    verifier = specdec.TransformersVerifier(shown.model, hidden=True, visual_mass=True)
    ids = inputs.pop("input_ids")
    said = tuple(entry.token for entry in ledger[:-1])
    with torch.no_grad():
        (handle,) = verifier.prefill(Prompt(ids, (0,), inputs), room=256).handles
        verified = verifier.verify([handle], [DraftTree(chain(len(said) - 1), said)])
    estimator = specdec.load_reliance(demo.ASSETS / "lvlm" / "reliance", name)  # type: ignore[arg-type]
    values = estimator.values(Evidence(verified.hidden, verified.visual_mass)).tolist()
    assert [entry.reliance for entry in ledger[1:]] == pytest.approx(values, abs=1e-4)
    assert max(values) - min(values) > 0.5
