"""Tree attention over paged keys and values, in Triton; its maths is that of
:func:`specdec.kernels.reference.tree_attention`.

Flash-decoding: the keys of a tile of rows are split over programs, each of which keeps, per row and
head, an online softmax (m, ℓ, Σ p·v, Σ p·visual) in fp32; :mod:`specdec.kernels.merge` merges them.
A tile is some rows against some keys of one request; the pages that several requests begin with
are a tile of all their rows, read once. Keys beside a request's own are one more launch, whose
partial results lie behind those of the first. Logits are in units of log 2. Grids depend on shapes
only: lengths, tables and masks are read on the device, so a launch may be captured in a CUDA graph.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from specdec.kernels.batch import Beside, TreeBatch
from specdec.kernels.checks import check_attention
from specdec.kernels.merge import merge
from specdec.kernels.packed import PackedBatch
from specdec.kernels.reference import Attended
from specdec.kernels.tiling import Tiling, block, chunk, tilings
from specdec.kernels.tiling import splits as choose_splits


@triton.jit
def _absorb(
    query,
    real,
    slots,
    valid,
    allowed,
    keys,
    values,
    visual,
    key_row,
    value_row,
    scale,
    softcap,
    state_max,
    state_sum,
    state_mass,
    state_out,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_VISUAL: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The online softmax after one more block of keys: those in ``slots (K,)`` that are ``valid
    (K,)``, seen where ``allowed (M, K)``. ``query`` points at rows ``(M,)``, read ``CHUNK``
    components at a time: all at once they would not fit the registers beside everything else."""
    logits = tl.zeros((query.shape[0], slots.shape[0]), tl.float32)
    for start in tl.static_range(0, BLOCK_D, CHUNK):
        at = start + tl.arange(0, CHUNK)
        q = tl.load(query[:, None] + at[None, :], mask=real[:, None] & (at < D)[None, :], other=0.0)
        key = tl.load(
            keys + slots[None, :] * key_row + at[:, None],
            mask=valid[None, :] & (at < D)[:, None],
            other=0.0,
        )
        if UPCAST:
            q = q.to(tl.float32)
            key = key.to(tl.float32)
        logits = tl.dot(q, key, logits, input_precision="tf32x3")
    logits *= scale
    if HAS_CAP:
        # tanh(x) = 1 − 2 / (e^2x + 1), which neither overflows nor divides by zero.
        e = tl.exp2(logits * (2.0 / softcap) * 1.4426950408889634)
        logits = softcap * (1.0 - 2.0 / (e + 1.0))
    logits = tl.where(allowed, logits * 1.4426950408889634, -float("inf"))
    new_max = tl.maximum(state_max, tl.max(logits, 1))
    # A row that has seen nothing yet has a maximum of -inf, which must not meet another one.
    shift = tl.where(new_max == -float("inf"), 0.0, new_max)
    weights = tl.exp2(logits - shift[:, None])
    fade = tl.exp2(state_max - shift)
    state_sum = state_sum * fade + tl.sum(weights, 1)
    if HAS_VISUAL:
        flags = tl.load(visual + slots, mask=valid, other=0).to(tl.float32)
        state_mass = state_mass * fade + tl.sum(weights * flags[None, :], 1)
    at_value = tl.arange(0, BLOCK_DV)
    value = tl.load(
        values + slots[:, None] * value_row + at_value[None, :],
        mask=valid[:, None] & (at_value < DV)[None, :],
        other=0.0,
    )
    if UPCAST:
        value = value.to(tl.float32)
    state_out = state_out * fade[:, None]
    state_out += tl.dot(weights.to(value.dtype), value, input_precision="tf32x3")
    return new_max, state_sum, state_mass, state_out


@triton.jit(
    do_not_specialize=[
        "num_rows",
        "heads",
        "words",
        "table_width",
        "splits",
        "prefix_part",
        "suffix_part",
    ]
)
def tree_attention_kernel(
    query,  # (N, Hq, D)
    keys,  # (slots, Hkv, D)
    values,  # (slots, Hkv, DV)
    visual,  # (slots,)
    first,  # (N,)
    tiles,  # (T, 8)
    rows,
    tables,  # (R, P)
    ancestors,  # (N, words)
    depths,  # (R, 32 * words)
    part_max,  # (PARTS, N, Hq)
    part_sum,
    part_mass,
    part_out,  # (PARTS, N, Hq, DV)
    scale,
    softcap,
    num_rows,
    query_row,
    query_head,
    key_row,
    key_head,
    value_row,
    value_head,
    heads,
    words,
    table_width,
    splits,
    prefix_part,
    suffix_part,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PAGE: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_VISUAL: tl.constexpr,
    UPCAST: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: a tile's rows × the query heads of one key head, against one split of its keys.

    Row ``m`` of the program is row ``m // GROUP`` of the tile under head ``m % GROUP`` of the
    group. Partial results of shared prefixes go to the parts from ``prefix_part`` on, those of
    everything else to the parts from ``suffix_part`` on.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    request = tl.load(tiles + tile * 8).to(tl.int64)
    rows_start = tl.load(tiles + tile * 8 + 1)
    rows_count = tl.load(tiles + tile * 8 + 2)
    begin = tl.load(tiles + tile * 8 + 3)
    end = tl.load(tiles + tile * 8 + 4)
    scratch = tl.load(tiles + tile * 8 + 5)
    lead = tl.load(tiles + tile * 8 + 6)

    m = tl.arange(0, BLOCK_M)
    real = m // GROUP < rows_count
    row = tl.load(rows + rows_start + m // GROUP, mask=real, other=0).to(tl.int64)
    query_heads = head * GROUP + m % GROUP
    q = query + row * query_row + query_heads * query_head
    start = begin
    if HAS_FIRST:
        sees_from = tl.load(first + row, mask=real, other=2147483647).to(tl.int32)
        start = tl.maximum(begin, tl.min(sees_from, 0))
    else:
        sees_from = tl.zeros((BLOCK_M,), tl.int32)
    state_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    state_sum = tl.zeros((BLOCK_M,), tl.float32)
    state_mass = tl.zeros((BLOCK_M,), tl.float32)
    state_out = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    keys += head * key_head
    values += head * value_head
    table = tables + request * table_width

    # Whole blocks a split, so that none is shared by two.
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), BLOCK_K), splits) * BLOCK_K
    low = start + split * share
    high = tl.minimum(low + share, end)
    for begin_block in range(low, high, BLOCK_K):
        place = begin_block + tl.arange(0, BLOCK_K)
        valid = place < high
        slot = lead + place
        page = tl.load(table + slot // PAGE, mask=valid, other=0).to(tl.int64)
        allowed = real[:, None] & valid[None, :]
        if HAS_FIRST:
            allowed &= place[None, :] >= sees_from[:, None]
        state_max, state_sum, state_mass, state_out = _absorb(
            q,
            real,
            page * PAGE + slot % PAGE,
            valid,
            allowed,
            keys,
            values,
            visual,
            key_row,
            value_row,
            scale,
            softcap,
            state_max,
            state_sum,
            state_mass,
            state_out,
            D,
            DV,
            BLOCK_D,
            BLOCK_DV,
            HAS_CAP,
            HAS_VISUAL,
            UPCAST,
            CHUNK,
        )

    if split == splits - 1:
        for word in range(0, tl.cdiv(scratch, 32)):
            node = word * 32 + tl.arange(0, 32)
            valid = node < scratch
            slot = lead + end + node
            page = tl.load(table + slot // PAGE, mask=valid, other=0).to(tl.int64)
            seen = tl.load(ancestors + row * words + word, mask=real, other=0)
            allowed = ((seen[:, None] >> tl.arange(0, 32)[None, :]) & 1) != 0
            allowed &= real[:, None] & valid[None, :]
            if HAS_FIRST:
                depth = tl.load(depths + request * (words * 32) + node)
                allowed &= (end + depth)[None, :] >= sees_from[:, None]
            state_max, state_sum, state_mass, state_out = _absorb(
                q,
                real,
                page * PAGE + slot % PAGE,
                valid,
                allowed,
                keys,
                values,
                visual,
                key_row,
                value_row,
                scale,
                softcap,
                state_max,
                state_sum,
                state_mass,
                state_out,
                D,
                DV,
                BLOCK_D,
                BLOCK_DV,
                HAS_CAP,
                HAS_VISUAL,
                UPCAST,
                CHUNK,
            )

    last = tl.load(tiles + tile * 8 + 7)  # held through the loops it would spill others
    part = split + tl.where(last > 0, suffix_part, prefix_part)
    place = (part.to(tl.int64) * num_rows + row) * heads + query_heads
    tl.store(part_max + place, state_max, mask=real)
    tl.store(part_sum + place, state_sum, mask=real)
    if HAS_VISUAL:
        tl.store(part_mass + place, state_mass, mask=real)
    at_value = tl.arange(0, BLOCK_DV)
    tl.store(
        part_out + place[:, None] * DV + at_value[None, :],
        state_out,
        mask=real[:, None] & (at_value < DV)[None, :],
    )


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), on the CPU."""
    return not isinstance(tree_attention_kernel, JITFunction)


@cache
def _tuned(choices: tuple[Tiling, ...]) -> Any:  # Any: triton's launchers are not typed
    """The kernel that tries these at its first use for a head size and dtype, and remembers the
    fastest on disk.
    """
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for m, k, warps, stages in choices
    ]
    key = ["D", "DV", "GROUP", "HAS_FIRST", "HAS_VISUAL"]
    return triton.autotune(configs, key=key, cache_results=True)(tree_attention_kernel)


@cache
def _processors(device: torch.device) -> int:
    """Programs that run at the same time; any number does for the interpreter."""
    if device.type != "cuda":
        return 64
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class _Launch(NamedTuple):
    """Keys for all rows, and how reading them is cut up.

    Attributes:
        query: ``(1, Hq, N, D)``, in the dtype of the pools.
        keys: pool ``(1, Hkv, slots, D)``.
        values: pool ``(1, Hkv, slots, Dv)``.
        batch: whose rows read what.
        packed: the same on the device.
        choices: tilings to try.
        splits: programs that share the keys of a tile.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    batch: TreeBatch
    packed: PackedBatch
    choices: tuple[Tiling, ...]
    splits: int

    @property
    def parts(self) -> int:
        """Partial results a row."""
        return 2 * self.splits if self.packed.grouped else self.splits


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: TreeBatch,
    *,
    scale: float,
    first: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    beside: Beside | None = None,
    splits: int | None = None,
) -> Attended:
    """See :func:`specdec.kernels.reference.tree_attention`. Waits for nothing on the device.

    Args:
        splits: programs that share the keys of a tile; ``None`` fills the device.

    Raises:
        ValueError: shapes, dtypes or devices that the kernel does not take.
    """
    check_attention(query, keys, values, batch, first, sinks, beside)
    _, heads, nodes, _ = query.shape
    own = _plan(query, keys, values, batch, splits)
    others = [] if beside is None else [_plan(query, *beside, splits)]
    parts = own.parts + sum(other.parts for other in others)
    state = query.new_empty((3, parts, nodes, heads), dtype=torch.float32)
    if any(launch.packed.grouped for launch in (own, *others)):
        state[0].fill_(-torch.inf)  # rows of no group have no prefix part
    part_out = state.new_empty((parts, nodes, heads, values.shape[3]))
    visual = batch.visual if beside is None else None
    _launch(own, 0, state, part_out, scale, softcap, first, visual)
    for other in others:
        _launch(other, own.parts, state, part_out, scale, softcap)
    out = query.new_empty((nodes, heads, values.shape[3]))
    mass = merge(state, part_out, out, sinks, visual=visual is not None)
    return Attended(out.transpose(0, 1)[None], mass)


def _plan(
    query: Tensor, keys: Tensor, values: Tensor, batch: TreeBatch, splits: int | None
) -> _Launch:
    """How to read these keys, whose dtype the query takes on."""
    kv_heads = keys.shape[1]
    group = query.shape[1] // kv_heads
    dim = max(query.shape[3], values.shape[3])
    choices = tilings(dim, keys.dtype, batch.widest, group)
    packed = batch.packed(query.device, choices[0].block_m // group)
    if splits is None:
        programs = packed.tiles.shape[0] * kv_heads
        splits = choose_splits(programs, _processors(query.device), packed.longest)
    return _Launch(query.to(keys.dtype), keys, values, batch, packed, choices, splits)


def _launch(
    launch: _Launch,
    part: int,
    state: Tensor,
    part_out: Tensor,
    scale: float,
    softcap: float | None,
    first: Tensor | None = None,
    visual: Tensor | None = None,
) -> None:
    """Write partial results to ``state (3, parts, N, Hq)`` and ``part_out (parts, N, Hq, Dv)``,
    from ``part`` on.
    """
    query, keys, values, batch, packed, choices, splits = launch
    _, heads, nodes, dim = query.shape
    kv_heads, value_dim = keys.shape[1], values.shape[3]
    arguments: dict[str, Any] = {
        "query": query,
        "keys": keys,
        "values": values,
        "visual": query if visual is None else visual,
        "first": query if first is None else first.reshape(-1),
        "tiles": packed.tiles,
        "rows": packed.rows,
        "tables": packed.tables,
        "ancestors": packed.ancestors,
        "depths": packed.depths,
        "part_max": state[0],
        "part_sum": state[1],
        "part_mass": state[2],
        "part_out": part_out,
        "scale": scale,
        "softcap": softcap or 1.0,
        "num_rows": nodes,
        "query_row": query.stride(2),
        "query_head": query.stride(1),
        "key_row": keys.stride(2),
        "key_head": keys.stride(1),
        "value_row": values.stride(2),
        "value_head": values.stride(1),
        "heads": heads,
        "words": packed.ancestors.shape[1],
        "table_width": packed.tables.shape[1],
        "splits": splits,
        "prefix_part": part,
        "suffix_part": part + launch.parts - splits,
        "GROUP": heads // kv_heads,
        "D": dim,
        "DV": value_dim,
        "BLOCK_D": block(dim),
        "BLOCK_DV": block(value_dim),
        "PAGE": batch.page_size,
        "HAS_CAP": softcap is not None,
        "HAS_FIRST": first is not None,
        "HAS_VISUAL": visual is not None,
        "CHUNK": chunk(dim, keys.dtype),
        # The interpreter multiplies bfloat16 matrices wrongly.
        "UPCAST": interpreted() and keys.dtype == torch.bfloat16,
    }
    grid = (packed.tiles.shape[0], kv_heads, splits)
    if interpreted():
        block_m, block_k, _, _ = choices[0]
        tree_attention_kernel[grid](**arguments, BLOCK_M=block_m, BLOCK_K=block_k)
    else:
        _tuned(choices)[grid](**arguments)
