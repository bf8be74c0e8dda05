"""Ragged batches over poisoned pools, and attention one element at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specdec.kernels import Attended, Beside, TreeBatch, TreeRequest, reference

WINDOW = 3
# Rounding of the dtype against a result of order 1; sums are in fp32.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Shape(NamedTuple):
    """One request: committed tokens, scratch nodes that are queries, scratch nodes before them,
    how many of its first pages it shares with the first request, and unused slots before all."""

    committed: int
    nodes: int
    before: int = 0
    shared: int = 0
    lead: int = 0


class Far(NamedTuple):
    """Keys beside those of one request: how many, how many of its first pages it shares with the
    first request, and unused slots before all."""

    keys: int
    shared: int = 0
    lead: int = 0


RAGGED = (Shape(10, 3), Shape(6, 2, before=3, lead=3), Shape(0, 1), Shape(9, 0), Shape(4, 12))


# Beside those: one without any, one beside no rows.
RAGGED_FAR = (Far(13), Far(8, shared=2), Far(0), Far(5), Far(21, lead=2))


class Case(NamedTuple):
    """``query (1, Hq, N, D)``, pools ``(1, Hkv, slots, D)`` and ``(1, Hkv, slots, Dv)`` with nan
    wherever no key is; ``options`` are what the attention takes beside them."""

    query: Tensor
    keys: Tensor
    values: Tensor
    batch: TreeBatch
    options: dict[str, Any]


def make_case(
    shapes: Sequence[Shape],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    value_dim: int | None = None,
    page_size: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    visual: float | None = 0.5,
    window: bool = False,
    softcap: float | None = None,
    sinks: bool = False,
    seed: int = 0,
) -> Case:
    """Pages lie anywhere; trees are random. ``visual``: the share of committed keys that are
    visual."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    most = [-(-(s.lead + s.committed + s.nodes + s.before) // page_size) for s in shapes]
    free = list(range(sum(most) + 5))
    rng.shuffle(free)
    slots = len(free) * page_size
    keys = torch.full((slots, kv_heads, dim), math.nan, dtype=dtype)
    values = torch.full((slots, kv_heads, value_dim or dim), math.nan, dtype=dtype)
    flags = torch.zeros(slots, dtype=torch.uint8)
    requests: list[TreeRequest] = []
    for shape, count in zip(shapes, most, strict=True):
        shared = list(requests[0].pages[: shape.shared]) if shape.shared else []
        pages = [*shared, *(free.pop() for _ in range(count - shape.shared))]
        visible, depths = random_tree(shape.before + shape.nodes, rng)
        request = TreeRequest(
            pages, shape.committed, depths, shape.nodes, visible[shape.before :], shape.lead
        )
        first_own = max(shape.shared * page_size - shape.lead, 0)
        for place in range(first_own, request.length):
            slot = request.slot(place, page_size)
            keys[slot] = torch.randn(kv_heads, dim).to(dtype)
            values[slot] = torch.randn(kv_heads, value_dim or dim).to(dtype)
            flags[slot] = visual is not None and place < shape.committed and rng.random() < visual
        requests.append(request)
    batch = TreeBatch(requests, page_size, None if visual is None else flags.to(device))
    first = [
        max(0, request.committed + depth - WINDOW + 1)
        for request in requests
        for depth in request.depths[len(request.depths) - request.nodes :]
    ]
    options = {
        "scale": 0.3,
        "first": torch.tensor(first, device=device) if window else None,
        "softcap": softcap,
        "sinks": torch.randn(heads).to(device) if sinks else None,
    }
    query = torch.randn(batch.nodes, heads, dim).to(dtype)
    headed = [t.to(device).transpose(0, 1)[None] for t in (query, keys, values)]
    return Case(*headed, batch, options)


def with_beside(
    case: Case,
    fars: Sequence[Far],
    *,
    dtype: torch.dtype = torch.float32,
    page_size: int = 8,
    contiguous: bool = False,
    seed: int = 0,
) -> Case:
    """The case with keys beside those of its requests, in pools of their own with nan wherever no
    key is. Pages lie anywhere, or with ``contiguous`` one behind another."""
    torch.manual_seed(seed + 1)
    rng = random.Random(seed)
    kv_heads, dim, value_dim = case.keys.shape[1], case.keys.shape[3], case.values.shape[3]
    most = [-(-(far.lead + far.keys) // page_size) for far in fars]
    free = list(range(sum(most) + 3))[::-1]
    if not contiguous:
        rng.shuffle(free)
    keys = torch.full((len(free) * page_size, kv_heads, dim), math.nan, dtype=dtype)
    values = torch.full((len(free) * page_size, kv_heads, value_dim), math.nan, dtype=dtype)
    requests: list[TreeRequest] = []
    for far, count, own in zip(fars, most, case.batch.requests, strict=True):
        shared = list(requests[0].pages[: far.shared]) if far.shared else []
        pages = (*shared, *(free.pop() for _ in range(count - far.shared)))
        request = TreeRequest(pages, far.keys, (), own.nodes, None, far.lead, contiguous)
        for place in range(max(far.shared * page_size - far.lead, 0), far.keys):
            slot = request.slot(place, page_size)
            keys[slot] = torch.randn(kv_heads, dim).to(dtype)
            values[slot] = torch.randn(kv_heads, value_dim).to(dtype)
        requests.append(request)
    headed = (t.to(case.query.device).transpose(0, 1)[None] for t in (keys, values))
    beside = Beside(*headed, TreeBatch(requests, page_size))
    return case._replace(options={**case.options, "beside": beside})


def random_tree(nodes: int, rng: random.Random) -> tuple[Tensor, list[int]]:
    """What each node sees, bool ``(nodes, nodes)``, and depths, of a random tree; its root may
    have any number of siblings."""
    visible, depths = torch.eye(nodes, dtype=torch.bool), []
    for node in range(nodes):
        parent = rng.randrange(-1, node)
        depths.append(0 if parent < 0 else depths[parent] + 1)
        if parent >= 0:
            visible[node] |= visible[parent]
    return visible, depths


def oracle(case: Case) -> Attended:
    """One row, head and key at a time, in float64. Keys beside are seen by every row."""
    query, keys, values = (t.cpu().double()[0] for t in (case.query, case.keys, case.values))
    heads, rows, _ = query.shape
    groups = heads // keys.shape[0]
    out = torch.zeros(heads, rows, values.shape[2], dtype=torch.float64)
    mass = torch.zeros(rows, heads, dtype=torch.float64)
    scale, softcap = case.options["scale"], case.options["softcap"]
    first, sinks = case.options["first"], case.options["sinks"]
    beside = case.options.get("beside")
    flags = case.batch.visual if beside is None else None
    if beside is not None:
        far_keys, far_values = (t.cpu().double()[0] for t in beside[:2])
    row = 0
    size = case.batch.page_size
    for index, request in enumerate(case.batch.requests):
        far: list[int] = []
        if beside is not None:
            other = beside.batch.requests[index]
            far = [other.slot(at, beside.batch.page_size) for at in range(other.committed)]
        for node in range(len(request.depths) - request.nodes, len(request.depths)):
            seen = []
            for place in range(request.length):
                if place < request.committed:
                    position = place
                elif request.visible is None:
                    if place - request.committed > node:
                        continue
                    position = request.committed + request.depths[place - request.committed]
                else:
                    own = node - len(request.depths) + request.nodes
                    if not request.visible[own, place - request.committed]:
                        continue
                    position = request.committed + request.depths[place - request.committed]
                if first is None or position >= first[row]:
                    seen.append(request.slot(place, size))
            for head in range(heads):
                kv = head // groups
                key_rows = [keys[kv, slot] for slot in seen]
                value_rows = [values[kv, slot] for slot in seen]
                key_rows += [far_keys[kv, slot] for slot in far]
                value_rows += [far_values[kv, slot] for slot in far]
                logits = []
                for key in key_rows:
                    logit = float(query[head, row] @ key) * scale
                    logits.append(softcap * math.tanh(logit / softcap) if softcap else logit)
                if sinks is not None:
                    logits.append(float(sinks[head]))
                weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                for weight, value in zip(weights[: len(value_rows)], value_rows, strict=True):
                    out[head, row] += weight * value
                if flags is not None:
                    for weight, slot in zip(weights[: len(seen)], seen, strict=True):
                        mass[row, head] += weight * int(flags[slot])
            row += 1
    return Attended(out[None], None if flags is None else mass)


def attend(case: Case, splits: int | None = None) -> Attended:
    """What the Triton kernel gives."""
    from specdec.kernels import tree_attention  # imports triton

    return tree_attention.tree_attention(*case[:4], **case.options, splits=splits)


def in_float(case: Case) -> Attended:
    """What the reference gives, on the CPU and in fp32, for the same numbers."""
    query, keys, values = (t.cpu().float() for t in case[:3])
    batch = case.batch
    if batch.visual is not None:
        batch = TreeBatch(batch.requests, batch.page_size, batch.visual.cpu())
    options = {
        name: option.cpu() if isinstance(option, Tensor) else option
        for name, option in case.options.items()
    }
    if (beside := options.get("beside")) is not None:
        far_keys, far_values = (t.cpu().float() for t in beside[:2])
        options["beside"] = Beside(far_keys, far_values, beside.batch)
    return reference.tree_attention(query, keys, values, batch, **options)


def check(case: Case, expected: Attended | None = None, splits: int | None = None) -> None:
    """Assert that the Triton kernel gives what is expected, by default what the reference gives."""
    if expected is None:
        expected = in_float(case)
    found = attend(case, splits)
    dtypes = [case.query.dtype]
    if (beside := case.options.get("beside")) is not None:
        dtypes.append(beside.keys.dtype)  # to which queries and weights are rounded
    bound = max(TOLERANCE[dtype] for dtype in dtypes)
    out = found.out.cpu().double()
    torch.testing.assert_close(out, expected.out.double(), atol=bound, rtol=bound)
    assert (found.visual_mass is None) == (expected.visual_mass is None)
    if found.visual_mass is not None and expected.visual_mass is not None:
        mass = found.visual_mass.cpu().double()
        torch.testing.assert_close(mass, expected.visual_mass.double(), atol=1e-5, rtol=1e-5)
