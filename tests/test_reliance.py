"""Estimators of visual reliance: what they compute, what they refuse, and their files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specdec.reliance import (
    Attention,
    Combined,
    Constant,
    Divergence,
    Evidence,
    Layer,
    Probe,
    Reliance,
)
from specdec.saved_reliance import load_reliance, save_reliance

HEADS = (2, 1)
LAYER = Layer(
    torch.tensor([[1.0, 0.0, -1.0, 2.0], [0.5, 0.5, 0.0, 0.0]]),
    torch.tensor([0.1, -0.2]),
    torch.tensor([0.6, -0.7]),
)
LINE = Probe(torch.tensor([1.0, -2.0, 0.5, 0.3]), torch.tensor(0.25))
PROBE = Probe(LINE.weight, LINE.bias, LAYER)
ATTENTION = Attention(
    torch.tensor([1.0, 2.0, -1.0]),
    torch.tensor(0.5),
    torch.tensor([0.0, 1.0, 3.0]),
    torch.tensor([0.1, 0.1, 0.9]),
)
COMBINED = Combined(PROBE, ATTENTION, torch.tensor([0.7, 0.2, -0.4]), torch.tensor(0.1))
EVERY = [Constant(0.3), Divergence(), LINE, PROBE, ATTENTION, COMBINED]


def evidence(nodes: int = 5) -> Evidence:
    generator = torch.Generator().manual_seed(0)
    masses = [torch.rand(nodes, heads, generator=generator) for heads in HEADS]
    hidden = torch.randn(nodes, 4, generator=generator)
    return Evidence(hidden, masses, torch.rand(nodes, generator=generator))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(estimator: Reliance, given: Evidence, node: int) -> float:
    """The same in Python's floats."""
    assert given.hidden is not None
    assert given.divergence is not None
    divergence = float(given.divergence[node])
    logit = float((given.hidden[node].double() * PROBE.weight.double()).sum()) + 0.25
    if estimator is LINE:
        return sigmoid(logit)
    for weight, bias, out in zip(*(tensor.tolist() for tensor in LAYER), strict=True):
        x = sum(h * w for h, w in zip(given.hidden[node].tolist(), weight, strict=True)) + bias
        logit += out * x * (1 + math.erf(x / math.sqrt(2))) / 2
    masses = [mass for layer in given.visual_mass for mass in layer[node].tolist()]
    mass = masses[0] + 2 * masses[1] - masses[2] + 0.5
    if estimator is PROBE:
        return sigmoid(logit)
    if estimator is ATTENTION:
        return 0.1 if mass <= 1 else min(0.9, 0.1 + 0.8 * (mass - 1) / 2)
    if estimator is COMBINED:
        return sigmoid(0.7 * logit + 0.2 * mass - 0.4 * divergence + 0.1)
    return 0.3 if isinstance(estimator, Constant) else divergence


@pytest.mark.parametrize("estimator", EVERY, ids=lambda each: type(each).__name__)
def test_values_are_those_of_the_formula(estimator: Reliance) -> None:
    """Another order of layers and heads, a bias left out, a logit taken for a probability. 1e-6 for
    float32."""
    given = evidence()
    values = estimator.values(given)
    assert values.dtype == torch.float32
    for node in range(5):
        assert float(values[node]) == pytest.approx(by_hand(estimator, given, node), abs=1e-6)


@pytest.mark.parametrize("estimator", EVERY, ids=lambda each: type(each).__name__)
def test_needs_say_what_is_read(estimator: Reliance) -> None:
    """An engine leaves out what is not needed; what is needed and not there must be refused."""
    parts = {"hidden": None, "visual_mass": (), "divergence": None}
    whole = evidence()
    needed = whole._replace(**{k: v for k, v in parts.items() if k not in estimator.needs})
    least = needed if estimator.needs else Evidence(nodes=5)
    assert torch.equal(estimator.values(least), estimator.values(whole))
    for name in estimator.needs:
        with pytest.raises(ValueError, match="given"):
            estimator.values(whole._replace(**{name: parts[name]}))
    with pytest.raises(ValueError, match=r"given|how many"):
        estimator.values(Evidence())


def test_half_precision_is_read_as_float32() -> None:
    hidden = evidence().hidden
    assert hidden is not None
    half = hidden.bfloat16()
    assert torch.equal(PROBE.values(Evidence(half)), PROBE.values(Evidence(half.float())))


def test_quantile_table_at_and_beyond_its_edges() -> None:
    """Off by one at an edge, or going on outside of the table."""
    weight, zero = torch.tensor([1.0]), torch.tensor(0.0)
    edges, frequencies = torch.tensor([-1.0, 0.0, 0.5, 2.0]), torch.tensor([0.0, 0.25, 0.25, 1.0])
    table = Attention(weight, zero, edges, frequencies)

    def at(*scores: float) -> list[float]:
        return table.values(Evidence(visual_mass=[torch.tensor(scores)[:, None]])).tolist()

    assert at(*edges.tolist()) == frequencies.tolist()
    assert at(-9, 9, -0.5, 1.25) == [0.0, 1.0, 0.125, 0.625]
    rising = torch.linspace(-2, 3, 999)[:, None]
    assert bool((table.values(Evidence(visual_mass=[rising])).diff() >= 0).all())


@pytest.mark.parametrize(
    ("edges", "frequencies"),
    [([0.0, 0.0], [0.0, 1.0]), ([0.0], [0.5]), ([0.0, 1.0], [0.5, 0.4]), ([0.0, 1.0], [0.5, 1.1])],
)
def test_what_is_no_table_is_refused(edges: list[float], frequencies: list[float]) -> None:
    with pytest.raises(ValueError, match=r"edges|frequencies"):
        Attention(ATTENTION.weight, ATTENTION.bias, torch.tensor(edges), torch.tensor(frequencies))


def test_another_width_is_refused_with_both_sides() -> None:
    with pytest.raises(ValueError, match=r"trained on hidden states of width 4, and was given 6"):
        PROBE.values(Evidence(torch.zeros(2, 6)))
    with pytest.raises(ValueError, match=r"heads in all: 3, and was given 2; .*train-probe"):
        ATTENTION.values(Evidence(visual_mass=[torch.zeros(2, 2)]))
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        Constant(1.5)


def saved(folder: Path, combined: Combined | None = COMBINED, **changes: Any) -> Path:
    how: dict[str, Any] = {"fingerprint": "f" * 64, "verifier": "it", "drafter": "text_only"}
    facts = {"auroc": {"probe": 0.9}}
    save_reliance(folder, PROBE, combined, layers=2, heads=sum(HEADS), facts=facts, **how | changes)
    return folder


def test_loaded_is_what_was_saved(tmp_path: Path) -> None:
    """Bit for bit, or figures measured before saving do not hold after it."""
    saved(tmp_path / "new" / "reliance")
    for kind, estimator in (("probe", PROBE), ("attention", ATTENTION), ("combined", COMBINED)):
        loaded: Any = load_reliance(tmp_path / "new" / "reliance", kind, fingerprint="f" * 64)
        assert type(loaded) is type(estimator)
        assert torch.equal(loaded.values(evidence()), estimator.values(evidence()))
    for name, tensor in vars(COMBINED).items():
        if isinstance(tensor, Tensor):
            assert torch.equal(getattr(loaded, name), tensor)
    files = sorted(path.name for path in (tmp_path / "new" / "reliance").iterdir())
    assert files == ["reliance.json", "reliance.safetensors"]


def test_a_probe_without_hidden_units_is_one_when_loaded(tmp_path: Path) -> None:
    save_reliance(
        tmp_path, LINE, None, fingerprint="", verifier="", drafter="", layers=2, heads=0, facts={}
    )
    assert torch.equal(load_reliance(tmp_path).values(evidence()), LINE.values(evidence()))


def test_a_verifier_without_visual_mass_has_a_probe_only(tmp_path: Path) -> None:
    saved(tmp_path, combined=None)
    assert torch.equal(load_reliance(tmp_path).values(evidence()), PROBE.values(evidence()))
    with pytest.raises(ValueError, match="holds probe, and attention was asked for"):
        load_reliance(tmp_path, "attention")


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """Estimates of another model look like estimates, so nothing else would tell."""
    kind: Any = "guess"
    with pytest.raises(ValueError, match="'guess' is not known; known: probe, attention, combined"):
        load_reliance(tmp_path, kind)
    with pytest.raises(ValueError, match=r"there is no .*reliance.json; `specdec train-probe`"):
        load_reliance(tmp_path)
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"for it with fingerprint ffff.*model here has 0000"):
        load_reliance(tmp_path, fingerprint="0" * 64)
    tensors = (tmp_path / "reliance.safetensors").read_bytes()
    saved(tmp_path, combined=None)
    (tmp_path / "reliance.safetensors").write_bytes(tensors)
    with pytest.raises(ValueError, match=r"is not the one that reliance\.json"):
        load_reliance(tmp_path)
    (tmp_path / "reliance.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_reliance(tmp_path)
    (tmp_path / "reliance.safetensors").unlink()
    with pytest.raises(ValueError, match=r"there is no .*reliance.safetensors"):
        load_reliance(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 8}, r"probe.weight has shape \(4,\), reliance.json speaks of \(8,\)"),
        ({"probe_units": 3}, r"probe.layer.weight has shape \(2, 4\), .* speaks of \(3, 4\)"),
        ({"heads": 8}, r"attention.weight has shape \(3,\), reliance.json speaks of \(8,\)"),
        ({"version": 9}, "of version 9, this specdec reads 1"),
    ],
)
def test_facts_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = saved(tmp_path) / "reliance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_reliance(tmp_path, "combined")
    file.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_reliance(tmp_path, "combined")
