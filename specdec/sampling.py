"""Drawing tokens from distributions by inverse CDF.

Knows nothing of models or acceptance. Everything is a pure function of distributions and uniforms,
except :func:`sample_children`, which draws its uniforms from a generator. Distributions are summed
in float64: float32 sums over 150 000 tokens are off by more than the rarest of them weigh.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from specdec.tree import SIBLING_MODES, Siblings


def normalised(p: Tensor) -> Tensor:
    """``p / p.sum(-1)`` in float64, ``(..., V)``; rows without any mass stay zero."""
    p = p.to(torch.float64)
    return p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def draw(p: Tensor, u: float) -> int:
    """The token at which the cumulative sum of ``p`` first exceeds ``u`` times its total.

    Never a token of zero probability, whatever rounding does to the sum, and even for ``u = 1``.

    Args:
        p: ``(V,)``, any float dtype, non-negative, not necessarily normalised.
        u: uniform on ``[0, 1)``.

    Raises:
        ValueError: ``p`` has no mass, or is not finite.
    """
    u_row = torch.tensor([[u]], dtype=torch.float64, device=p.device)
    token = int(_inverse_cdf(p[None], u_row))
    if token < 0:
        raise ValueError(f"cannot draw a token: all {len(p)} probabilities are zero")
    return token


def residual(p: Tensor, q: Tensor) -> Tensor:
    """``(p - q)+`` normalised: what the target still owes after a draw from ``q`` was rejected.

    A rejection has positive probability only where p and q differ. Where they agree to the last bit
    nothing is left after the subtraction; such a rejection is itself a rounding error, and ``p`` is
    returned.

    Args:
        p: ``(V,)`` target distribution, normalised.
        q: ``(W,)`` draft distribution, normalised; tokens that one of the two lacks count as 0.

    Returns:
        float64 ``(V,)``.
    """
    shared = min(p.shape[0], q.shape[0])
    owed = p.to(torch.float64, copy=True)
    owed[:shared] -= q[:shared]
    mass = owed.clamp_(min=0.0).sum()
    return owed / mass if mass > 0 else p.to(torch.float64)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half of ``|p - q|`` summed: the largest difference in what they give any set of tokens.

    Args:
        p: ``(..., V)``, normalised, any float dtype.
        q: ``(..., W)``, likewise; tokens that one of the two lacks count as 0.

    Returns:
        float64 ``(...)`` in [0, 1].
    """
    shared = min(p.shape[-1], q.shape[-1])
    apart = (p[..., :shared] - q[..., :shared]).abs_().sum(-1).double()
    for longer in (p, q):
        apart = apart + longer[..., shared:].sum(-1, dtype=torch.float64)
    return (apart / 2).clamp(0, 1)


def sample_children(
    q: Tensor, k: int, mode: Siblings, generator: Generator | None = None
) -> Tensor:
    """Choose ``k`` siblings from each row of ``q``, in the order in which they are to be verified.

    ``with_replacement``: independent draws. ``without_replacement``: each draw is from ``q``
    renormalised over what the earlier ones of its row left. ``deterministic``: the ``k`` most
    probable tokens, most probable first; the generator is not touched.

    Exactness of acceptance rests on the order and on the completeness of the draws: sorting drawn
    siblings, or dropping one because of the token it turned out to be, makes the output wrong.
    Whether a sibling is drawn at all may depend on ``q`` and on its elder siblings only.

    Args:
        q: ``(V,)`` or ``(R, V)``, any float dtype, non-negative, not necessarily normalised.
        k: siblings per row.
        generator: may live on another device than ``q``; ``None`` is the global one of q's device.

    Returns:
        int64 ``(k,)`` or ``(R, k)`` on q's device. Where a row runs out of tokens of positive
        probability, it ends in ``-1``: no sibling there.

    Raises:
        ValueError: unknown mode, or ``q`` is not finite.
    """
    if mode not in SIBLING_MODES:
        raise ValueError(f"mode={mode!r}; known: {', '.join(SIBLING_MODES)}")
    if mode == "deterministic":
        weight, tokens = q.topk(min(k, q.shape[-1]), dim=-1)
        tokens = torch.where(weight > 0, tokens, -1)
        return torch.nn.functional.pad(tokens, (0, k - tokens.shape[-1]), value=-1)
    uniforms = torch.rand(
        (*q.shape[:-1], k),
        dtype=torch.float64,
        generator=generator,
        device=generator.device if generator is not None else q.device,
    )
    return children_from_uniforms(q, uniforms.to(q.device), mode)


def children_from_uniforms(q: Tensor, uniforms: Tensor, mode: Siblings) -> Tensor:
    """:func:`sample_children` for drawn siblings, its randomness an argument.

    ``uniforms``: float64 ``(k,)`` or ``(R, k)``, as many as siblings are wanted.
    """
    if q.ndim == 1:
        return children_from_uniforms(q[None], uniforms[None], mode)[0]
    if mode == "with_replacement":
        return _inverse_cdf(q, uniforms)
    drawn = []
    for sibling in range(uniforms.shape[-1]):
        drawn.append(_inverse_cdf(q, uniforms[:, sibling : sibling + 1]))
        q = q.scatter(1, drawn[-1].clamp_min(0), 0.0)
    return torch.cat(drawn, dim=-1) if drawn else uniforms.to(torch.int64)


def _inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Weights ``(R, V)``, uniforms ``(R, k)`` to tokens ``(R, k)``; ``-1`` in rows without mass."""
    cdf = p.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    tokens = torch.searchsorted(cdf, u * total, right=True).clamp_max(p.shape[-1] - 1)
    # Unsound: u * total rounded up to total, a parallel scan that is not monotone, no mass, nan.
    sound = (p.gather(1, tokens) > 0) & total.isfinite()
    return tokens if bool(sound.all()) else torch.where(sound, tokens, _nearest(p, total, tokens))


def _nearest(p: Tensor, total: Tensor, tokens: Tensor) -> Tensor:
    """The last token of positive weight up to each of ``tokens``; ``-1`` in rows without mass."""
    if not bool(total.isfinite().all()):
        raise ValueError("a distribution to draw from holds nan or infinite entries")
    index = torch.arange(p.shape[-1], device=p.device)
    return torch.where(p > 0, index, -1).cummax(-1).values.gather(1, tokens)
