"""Partial results of attention into one, in Triton.

M = max_s m_s      w_s = 2^(m_s − M)      out = Σ w_s·acc_s / (Σ w_s·ℓ_s + 2^(sink − M))
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 16


@triton.jit(do_not_specialize=["num_rows", "parts"])
def merge_kernel(
    part_max,  # (PARTS, N, Hq)
    part_sum,
    part_mass,
    part_out,  # (PARTS, N, Hq, DV)
    sinks,  # (Hq,)
    out,  # (N, Hq, DV)
    mass,  # (N, Hq)
    num_rows,
    parts,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_VISUAL: tl.constexpr,
    MOST_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: one row under one head, ``BLOCK`` parts at a time."""
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    target = tl.program_id(0).to(tl.int64) * heads + head
    stride = num_rows.to(tl.int64) * heads
    every = tl.arange(0, MOST_PARTS)
    top = tl.max(
        tl.load(part_max + target + every * stride, mask=every < parts, other=-float("inf")), 0
    )
    total = 0.0
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(top, sink)
        total = tl.exp2(sink - top)
    at = tl.arange(0, BLOCK_DV)
    result = tl.zeros((BLOCK_DV,), tl.float32)
    seen = 0.0
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        place = target + part * stride
        maxima = tl.load(part_max + place, mask=part < parts, other=-float("inf"))
        # Parts that saw nothing hold no numbers: they are not read.
        there = maxima > -float("inf")
        weights = tl.where(there, tl.exp2(maxima - top), 0.0)
        total += tl.sum(weights * tl.load(part_sum + place, mask=there, other=0.0), 0)
        if HAS_VISUAL:
            seen += tl.sum(weights * tl.load(part_mass + place, mask=there, other=0.0), 0)
        outs = tl.load(
            part_out + place[:, None] * DV + at[None, :],
            mask=there[:, None] & (at < DV)[None, :],
            other=0.0,
        )
        result += tl.sum(outs * weights[:, None], 0)
    tl.store(out + target * DV + at, (result / total).to(out.dtype.element_ty), mask=at < DV)
    if HAS_VISUAL:
        tl.store(mass + target, seen / total)


def merge(
    part_state: Tensor, part_out: Tensor, out: Tensor, sinks: Tensor | None, *, visual: bool
) -> Tensor | None:
    """Write the merged result to ``out (N, Hq, Dv)``.

    Args:
        part_state: float32 ``(3, parts, N, Hq)``: of each part the maximum of its logits in units
            of log 2 (-inf: it saw nothing, and what else it holds is not read), its sum of weights
            relative to that, and the visual share of that sum.
        part_out: float32 ``(parts, N, Hq, Dv)``: sums of values so weighted.
        out: where to.
        sinks: ``(Hq,)``.
        visual: the parts have a visual share.

    Returns:
        The visual mass, float32 ``(N, Hq)``, if there is one.
    """
    _, parts, nodes, heads = part_state.shape
    mass = part_state.new_empty((nodes, heads))
    merge_kernel[(nodes, heads)](
        *part_state,
        part_out,
        out if sinks is None else sinks,
        out,
        mass,
        nodes,
        parts,
        DV=out.shape[2],
        BLOCK_DV=triton.next_power_of_2(out.shape[2]),
        HAS_SINKS=sinks is not None,
        HAS_VISUAL=visual,
        MOST_PARTS=triton.next_power_of_2(parts),
        BLOCK=BLOCK,
    )
    return mass if visual else None
