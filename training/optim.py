"""Muon for matrices, AdamW for the rest, a learning rate that is zero when the time is up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

_NS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
)


def orthogonalise(stack: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices (n, rows, cols) by a quintic Newton-Schulz iteration.

    Jordan et al., "Muon: an optimizer for hidden layers", 2024; one set of coefficients for every
    round.
    """
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in _NS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    found: torch.Tensor = x.mT if tall else x
    return found


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; matrices of one shape are treated in one batched product."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01
    ):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever passed
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, params in alike.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["momentum"] = torch.zeros_like(p)
                    buffer = state["momentum"]
                    grad = p.grad
                    assert grad is not None
                    buffer.lerp_(grad, 1 - group["momentum"])
                    updates.append(grad.lerp(buffer, group["momentum"]).flatten(1))
                scale = max(1.0, updates[0].shape[0] / updates[0].shape[1]) ** 0.5
                for p, update in zip(params, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["decay"])
                    p.add_(update.view(shape), alpha=-group["lr"] * scale)


class Optimizers:
    """Both optimizers behind one `step`; its `scale` in [0, 1] multiplies the learning rates."""

    def __init__(self, modules: Iterable[nn.Module], muon_lr: float, adam_lr: float):
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for module in modules:
            for name, p in module.named_parameters():
                if not p.requires_grad:
                    continue
                inner = p.ndim == 2 and "embed" not in name and "lm_head" not in name
                (matrices if inner else others).append(p)
        self.muon = Muon(matrices, muon_lr)
        self.adam = torch.optim.AdamW(others, adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self._base = [(g, g["lr"]) for o in (self.muon, self.adam) for g in o.param_groups]
        self._params = matrices + others

    def step(self, scale: float, clip: float = 1.0) -> None:
        """Clip, update at `scale` times the base rates, and clear the gradients."""
        nn.utils.clip_grad_norm_(self._params, clip)
        for group, lr in self._base:
            group["lr"] = lr * scale
        self.muon.step()
        self.adam.step()
        for p in self._params:
            p.grad = None

    def state_dict(self) -> dict[str, object]:
        """Everything needed to go on after an interruption."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """The inverse of `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def rate(spent: float, warmup: float = 0.02, decay_from: float = 0.25) -> float:
    """Learning-rate factor after a share `spent` of the time: up, level, straight down to zero."""
    if spent < warmup:
        return max(spent, 0.001) / warmup
    return 1.0 if spent < decay_from else max(0.0, (1 - spent) / (1 - decay_from))
