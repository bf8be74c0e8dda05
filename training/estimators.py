"""Estimators of visual reliance, from a table of judged tokens, and how well they tell.

They learn from the drafter's mismatches, the only tokens where relaxing acceptance changes
anything. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.reliance import Attention, Combined, Divergence, Layer, Probe, Reliance
from specdec.training import logistic
from specdec.training.ranking import figure
from specdec.training.readings import Tokens

VALIDATING = 5  # one image in so many chooses penalties and weighs the scores against each other

PROBE_PENALTIES = (3e-3, 1e-2, 2e-2, 5e-2, 0.1)  # hidden units take more than a line does


class Trained(NamedTuple):
    """Attributes:
    probe: on hidden states.
    combined: with attention; ``None`` without visual mass.
    penalties: that were chosen, by the estimator's name.
    """

    probe: Probe
    combined: Combined | None
    penalties: dict[str, float]

    @property
    def kinds(self) -> dict[str, Reliance]:
        """All there are, by name; the divergence needs no training."""
        found: dict[str, Reliance] = {"probe": self.probe, "divergence": Divergence()}
        if self.combined is not None:
            found |= {"attention": self.combined.attention, "combined": self.combined}
        return found


def train(every: Tokens, seed: int = 0) -> Trained:
    """Estimators of how likely a mismatched token is to depend on the image.

    Penalties are chosen, and the scores weighed against each other, on images that the scores were
    not fitted to; then each score is fitted to all.

    Raises:
        ValueError: there are too few tokens of one kind.
    """
    wrong = every.where(every.mismatched)
    label, validating = wrong.dependent, _some_images(wrong.images, seed)
    if not 0 < int(validating.sum()) < len(validating):
        raise ValueError(
            f"{len(label)} mismatches on {len(wrong.images.unique())} images are too few to learn "
            "from and validate on; more questions are needed"
        )
    penalty, early = logistic.choose(
        logistic.fit_curve, wrong.hidden, label, validating, PROBE_PENALTIES
    )
    line, *units = logistic.fit_curve(wrong.hidden, label, penalty)
    probe = Probe(*line, Layer(*units))
    if not wrong.visual_mass.shape[1]:
        return Trained(probe, None, {"probe": penalty})
    mass_penalty, early_mass = logistic.choose(logistic.fit, wrong.visual_mass, label, validating)
    line = logistic.fit(wrong.visual_mass, label, mass_penalty)
    table = logistic.quantile_table(line.score(wrong.visual_mass), label)
    kept = wrong.where(validating)
    scores = [early.score(kept.hidden), early_mass.score(kept.visual_mass), kept.divergence]
    # Three weights need no penalty to speak of.
    weighed = logistic.fit(torch.stack(scores, 1), kept.dependent, logistic.PENALTIES[0])
    combined = Combined(probe, Attention(*line, *table), *weighed)
    return Trained(probe, combined, {"probe": penalty, "attention": mass_penalty})


def figures(
    kinds: Mapping[str, Reliance], every: Tokens, *, resamples: int = 1000
) -> dict[str, Any]:  # Any: JSON values
    """How well each estimator tells tokens that depend on the image from others: the area under the
    ROC curve with its 95 % interval, over all tokens and among mismatches.
    """
    wrong = every.where(every.mismatched)
    return {
        "tokens": len(every.dependent),
        "dependent_tokens": int(every.dependent.sum()),
        "mismatches": len(wrong.dependent),
        "dependent_mismatches": int(wrong.dependent.sum()),
        "images": len(every.images.unique()),
        "auroc": {
            name: {
                where: figure(
                    kind.values(part.evidence), part.dependent, part.images, resamples=resamples
                )._asdict()
                for where, part in (("all", every), ("mismatches", wrong))
            }
            for name, kind in kinds.items()
        },
    }


def _some_images(images: Tensor, seed: int) -> Tensor:
    """bool ``(T,)``: the tokens of one image in a few."""
    distinct, member = images.unique(return_inverse=True)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    return (order % VALIDATING == 0)[member]
