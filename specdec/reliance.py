"""Visual reliance: how likely it is that the next token depends on the image.

An estimator reads what verification left behind each node of a step and says a number in [0, 1] for
each: 0 where language alone decides, 1 where the image does. Knows tensors only; what they were
read from, and what the numbers are for, is somebody else's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import gelu

Need = Literal["hidden", "visual_mass", "divergence"]


class Evidence(NamedTuple):
    """What is known about all N nodes of a step, packed in order. What nobody needs may be left
    out.

    Attributes:
        hidden: ``(N, H)``, any float dtype: the verifier's last hidden state behind each node.
        visual_mass: per attention layer, float32 ``(N, Hq)``: the share of each node's attention
            that went to visual tokens. Empty if not given.
        divergence: float32 ``(N,)``: total variation between the verifier's and the drafter's
            distributions at each node; 1 where nothing was drafted.
        nodes: N; needed only if nothing else is given.
    """

    hidden: Tensor | None = None
    visual_mass: Sequence[Tensor] = ()
    divergence: Tensor | None = None
    nodes: int | None = None


class Reliance(Protocol):
    """An estimator."""

    @property
    def needs(self) -> frozenset[Need]:
        """Which parts of the evidence it reads."""

    def values(self, evidence: Evidence) -> Tensor:
        """The reliance of every node's next token, float32 ``(N,)`` in [0, 1], on the evidence's
        device.

        Raises:
            ValueError: a part that it needs is not given, or is of another width.
        """


@dataclass(frozen=True)
class Constant:
    """The same for every token: 1 relaxes nothing, 0 everything alike.

    Raises:
        ValueError: ``value`` is not in [0, 1].
    """

    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"a reliance lies in [0, 1], got {self.value}")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def values(self, evidence: Evidence) -> Tensor:
        hidden, masses, divergence, nodes = evidence
        for given in (divergence, hidden, *masses[:1]):
            if given is not None:
                return torch.full((len(given),), self.value, device=given.device)
        if nodes is None:
            raise ValueError("evidence without anything in it must at least say how many nodes")
        return torch.full((nodes,), self.value)


@dataclass(frozen=True)
class Divergence:
    """What an image-blind drafter does not know may come from the image: its divergence itself."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"divergence"})

    def values(self, evidence: Evidence) -> Tensor:
        return _divergence(evidence).clamp(0, 1)


class Layer(NamedTuple):
    """M hidden units: ``out · gelu(weight · x + bias)`` is added to a score.

    Attributes:
        weight: float32 ``(M, H)``.
        bias: float32 ``(M,)``.
        out: float32 ``(M,)``.
    """

    weight: Tensor
    bias: Tensor
    out: Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """Logistic regression on the last hidden state, its standardisation folded in; with a small
    hidden layer beside the straight path, if there is one.

    Attributes:
        weight: float32 ``(H,)``.
        bias: float32 ``()``.
        layer: the hidden layer.
    """

    weight: Tensor
    bias: Tensor
    layer: Layer | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"hidden"})

    def score(self, evidence: Evidence) -> Tensor:
        """Log-odds, float32 ``(N,)``."""
        if evidence.hidden is None:
            raise ValueError("a probe reads hidden states, and none were given")
        hidden = evidence.hidden.float()
        straight = _linear(hidden, self.weight, self.bias, "hidden states of width")
        if self.layer is None:
            return straight
        weight, bias, out = (tensor.to(hidden.device) for tensor in self.layer)
        return straight + gelu(hidden @ weight.T + bias) @ out

    def values(self, evidence: Evidence) -> Tensor:
        return self.score(evidence).sigmoid()


@dataclass(frozen=True, eq=False)
class Attention:
    """A weighted sum of the visual mass of all layers and heads, and the share of tokens with such
    a sum that depend on the image, read off a table.

    Attributes:
        weight: float32 ``(L · Hq,)``, the first layer's heads first.
        bias: float32 ``()``.
        edges: float32 ``(K,)``: quantiles of the sum, strictly increasing, K ≥ 2.
        frequencies: float32 ``(K,)``: what the value is at each of them, never decreasing; linear
            in between, constant outside.

    Raises:
        ValueError: the table is none.
    """

    weight: Tensor
    bias: Tensor
    edges: Tensor
    frequencies: Tensor

    def __post_init__(self) -> None:
        edges, frequencies = self.edges, self.frequencies
        if len(edges) < 2 or edges.shape != frequencies.shape or not bool((edges.diff() > 0).all()):
            raise ValueError(
                f"a quantile table needs two or more increasing edges with a frequency each, got "
                f"{edges.tolist()} and {frequencies.tolist()}"
            )
        within = float(frequencies[0]) >= 0 and float(frequencies[-1]) <= 1
        if not within or not bool((frequencies.diff() >= 0).all()):
            raise ValueError(
                f"frequencies must not decrease and lie in [0, 1], got {frequencies.tolist()}"
            )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"visual_mass"})

    def score(self, evidence: Evidence) -> Tensor:
        """The weighted sum, float32 ``(N,)``."""
        if not evidence.visual_mass:
            raise ValueError("attention reads visual mass, and none was given")
        masses = torch.cat(list(evidence.visual_mass), dim=1)
        return _linear(masses, self.weight, self.bias, "visual mass of so many heads in all:")

    def values(self, evidence: Evidence) -> Tensor:
        score = self.score(evidence)
        edges = self.edges.to(score.device)
        frequencies = self.frequencies.to(score.device)
        score = score.clamp(edges[0], edges[-1])
        right = torch.searchsorted(edges, score).clamp_min(1)
        left = right - 1
        along = (score - edges[left]) / (edges[right] - edges[left])
        return torch.lerp(frequencies[left], frequencies[right], along)


@dataclass(frozen=True, eq=False)
class Combined:
    """Logistic regression on the scores of a probe, of attention and the divergence.

    Attributes:
        probe: the first score.
        attention: the second.
        weight: float32 ``(3,)``, of the two scores and the divergence.
        bias: float32 ``()``.
    """

    probe: Probe
    attention: Attention
    weight: Tensor
    bias: Tensor

    @property
    def needs(self) -> frozenset[Need]:
        return self.probe.needs | self.attention.needs | {"divergence"}

    def values(self, evidence: Evidence) -> Tensor:
        scores = [self.probe.score(evidence), self.attention.score(evidence), _divergence(evidence)]
        return _linear(torch.stack(scores, -1), self.weight, self.bias, "scores:").sigmoid()


def _divergence(evidence: Evidence) -> Tensor:
    if evidence.divergence is None:
        raise ValueError("the divergence from the drafter is needed, and was not given")
    return evidence.divergence.float()


def _linear(features: Tensor, weight: Tensor, bias: Tensor, what: str) -> Tensor:
    if features.shape[-1] != len(weight):
        raise ValueError(
            f"this estimator was trained on {what} {len(weight)}, and was given "
            f"{features.shape[-1]}; train it for this model with `specdec train-probe`"
        )
    return features.float() @ weight.to(features.device) + bias.to(features.device)
