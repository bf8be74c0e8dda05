"""How much each token of an answer counts in training, by what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from specdec.policies import BESIDE
from specdec.reliance import Evidence, Reliance
from specdec.saved_reliance import load_reliance
from specdec.training.examples import Example
from specdec.verifiers.fingerprint import fingerprint


@dataclass(frozen=True)
class ByReliance:
    """``1 + (factor − 1) · v`` for a token with visual reliance v: those that certainly depend on
    the image count ``factor`` times as much as those that certainly do not.

    Attributes:
        reliance: an estimator that needs hidden states only.
        factor: above 0.
    """

    reliance: Reliance
    factor: float

    def __call__(self, example: Example) -> Tensor:
        """Weights ``(A,)`` of an answer with features."""
        assert example.features is not None
        behind = example.features.last[example.prompt_length - 1 : -1]
        return 1 + (self.factor - 1) * self.reliance.values(Evidence(hidden=behind))


def by_reliance(model: PreTrainedModel, factor: float) -> ByReliance:
    """By the probe that lies beside the verifier.

    Raises:
        ValueError: there is none, or it was trained for another model.
    """
    folder = Path(model.name_or_path or ".") / BESIDE
    try:
        probe = load_reliance(folder, "probe", fingerprint=fingerprint(model))
    except ValueError as error:
        raise ValueError(f"weights by what depends on the image need a probe: {error}") from error
    return ByReliance(probe, factor)
