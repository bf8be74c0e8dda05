"""Tree attention over pages against other ways to attend, on one device, in one run.

Everybody gets the same queries, keys, values and trees. The others get keys laid out as they like
best, and that is not timed. The gate comes first: who does not give what the reference gives in
fp32 has no time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.kernels import Beside, TreeBatch, TreeRequest, backend, forced, reference
from specdec.tree import random_topology

GATE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
PAGE = 16
Run = Callable[[], Tensor]
Timer = Callable[[Run], float]  # milliseconds, the median of many


class Problem(NamedTuple):
    """``batch`` requests with ``context`` committed tokens and a random tree of ``nodes`` nodes
    each; the first ``shared`` tokens are the same pages for all."""

    context: int
    batch: int
    nodes: int
    shared: int = 0
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    @property
    def bytes_to_move(self) -> int:
        """The least: every key and value once, queries and results once."""
        keys = self.shared + self.batch * (self.context - self.shared + self.nodes)
        rows = self.batch * self.nodes
        numbers = 2 * keys * self.kv_heads * self.head_dim + 2 * rows * self.heads * self.head_dim
        return numbers * self.dtype.itemsize


class Material(NamedTuple):
    """``query (1, Hq, N, D)``, pools ``(1, Hkv, slots, D)``, and who reads what."""

    problem: Problem
    query: Tensor
    keys: Tensor
    values: Tensor
    batch: TreeBatch
    scale: float

    @property
    def gathered(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``(batch, Hkv, context + nodes, D)``, request by request."""
        segments = self.batch.segments
        slots = [
            (segment.pages[:, None] * PAGE + torch.arange(PAGE)).flatten()[: segment.length]
            for segment in segments
            if isinstance(segment.pages, Tensor)
        ]
        rows = torch.stack(slots).to(self.keys.device)
        keys, values = self.keys[0][:, rows], self.values[0][:, rows]
        return keys.transpose(0, 1).contiguous(), values.transpose(0, 1).contiguous()

    @property
    def seen(self) -> Tensor:
        """Bool ``(batch, nodes, context + nodes)``."""
        mask = self.batch.mask(None, torch.float32, self.keys.device)
        assert mask is not None
        seen: Tensor = (mask == 0).unflatten(0, (self.problem.batch, -1))
        return seen


def prepare(problem: Problem, device: torch.device) -> Material:
    """Random numbers and pages in random order."""
    generator = torch.Generator().manual_seed(0)
    total = problem.context + problem.nodes
    shared, each = problem.shared // PAGE, -(-total // PAGE)
    fresh = each - shared
    order = torch.randperm(shared + problem.batch * fresh, generator=generator).tolist()
    tree = random_topology(problem.nodes, seed=0)
    requests = []
    for index in range(problem.batch):
        own = order[shared + index * fresh : shared + (index + 1) * fresh]
        requests.append(
            TreeRequest(
                [*order[:shared], *own], problem.context, tree.depths, problem.nodes, tree.ancestors
            )
        )
    sizes = (problem.kv_heads, len(order) * PAGE, problem.head_dim)
    pools = [_random(sizes[1], sizes[0], sizes[2], problem, device) for _ in range(2)]
    rows = problem.batch * problem.nodes
    query = _random(rows, problem.heads, problem.head_dim, problem, device)
    keys, values = (pool.transpose(0, 1)[None] for pool in pools)
    scale = problem.head_dim**-0.5
    batch = TreeBatch(requests, PAGE)
    return Material(problem, query.transpose(0, 1)[None], keys, values, batch, scale)


def _random(rows: int, heads: int, size: int, problem: Problem, device: torch.device) -> Tensor:
    return torch.randn(rows, heads, size, device=device, dtype=problem.dtype)


def specdec(material: Material) -> Run:
    """This project's kernel."""
    _, query, keys, values, batch, scale = material

    def run() -> Tensor:
        with forced("triton"):
            return backend(query.device).tree_attention(query, keys, values, batch, scale=scale).out

    return run


def sdpa(material: Material) -> Run:
    """torch's own attention with a dense mask, over keys that lie side by side."""
    key, value = material.gathered
    query = _by_request(material)
    mask = material.seen[:, None]
    return lambda: F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=material.scale, enable_gqa=True
    )


def flex(material: Material) -> Run:
    """FlexAttention, compiled, with a block mask made beforehand."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    key, value = material.gathered
    query, seen = _by_request(material), material.seen
    blocks = create_block_mask(
        lambda b, h, q, k: seen[b, q, k],
        *(material.problem.batch, None, query.shape[2], key.shape[2]),
        device=str(key.device),
    )
    compiled: Any = torch.compile(flex_attention, dynamic=False)  # torch leaves it untyped
    return lambda: compiled(
        query, key, value, block_mask=blocks, scale=material.scale, enable_gqa=True
    )


def flashinfer(material: Material) -> Run:
    """FlashInfer's paged prefill with a custom mask, planned beforehand."""
    import flashinfer as library  # type: ignore[import-not-found]  # optional, and not on CI

    problem, query, keys, values, batch, scale = material
    device = query.device
    tables = [list(request.pages) for request in batch.requests]
    length = problem.context + problem.nodes
    starts = torch.arange(problem.batch + 1, dtype=torch.int32, device=device)
    wrapper = library.BatchPrefillWithPagedKVCacheWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device=device), "NHD"
    )
    wrapper.plan(
        starts * problem.nodes,
        starts * len(tables[0]),
        torch.tensor(
            [page for table in tables for page in table], dtype=torch.int32, device=device
        ),
        torch.full((problem.batch,), (length - 1) % PAGE + 1, dtype=torch.int32, device=device),
        problem.heads,
        problem.kv_heads,
        problem.head_dim,
        PAGE,
        custom_mask=material.seen.flatten(),
        sm_scale=scale,
        q_data_type=problem.dtype,
        kv_data_type=problem.dtype,
    )
    rows = query[0].transpose(0, 1).contiguous()
    paged = tuple(pool[0].transpose(0, 1).unflatten(0, (-1, PAGE)) for pool in (keys, values))
    return lambda: wrapper.run(rows, paged).transpose(0, 1)[None]


def _by_request(material: Material) -> Tensor:
    """Queries ``(batch, Hq, nodes, D)``."""
    rows: Tensor = material.query[0].unflatten(1, (material.problem.batch, -1))
    return rows.transpose(0, 1).contiguous()


def _packed(out: Tensor, problem: Problem) -> Tensor:
    """``(1, Hq, N, D)`` of whatever a contestant gives."""
    if out.shape[0] == 1:
        return out
    return out.transpose(0, 1).flatten(1, 2)[None]


Entries = dict[str, Callable[[Material], Run]]


def contestants(device: torch.device) -> Entries:
    """Who can run here."""
    every: Entries = {"specdec": specdec, "sdpa, dense mask": sdpa}
    if device.type == "cuda":
        every["flex attention"] = flex
        if importlib.util.find_spec("flashinfer") is not None:
            every["flashinfer"] = flashinfer
    return every


def compare(
    problem: Problem,
    device: torch.device,
    timer: Timer,
    entries: Entries | None = None,
) -> dict[str, Any]:  # Any: JSON values
    """Milliseconds of everybody who gives the right result, and why the others have none.

    Raises:
        ValueError: this project's own kernel gives a wrong one.
    """
    material = prepare(problem, device)
    keys, values, query = (t.float() for t in (material.keys, material.values, material.query))
    right = reference.tree_attention(query, keys, values, material.batch, scale=material.scale).out
    del keys, values
    times: dict[str, float] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, make in (entries or contestants(device)).items():
        try:
            run = make(material)
            found = _packed(run(), problem).float()
            errors[name] = _error(found, right, GATE[problem.dtype])
            times[name] = timer(run)
        except (ValueError, RuntimeError) as error:
            if name == "specdec":
                raise ValueError(f"{problem}: {error}") from error
            failed[name] = str(error).splitlines()[0]
    others = [taken for name, taken in times.items() if name != "specdec"]
    return {
        **problem._asdict(),
        "dtype": str(problem.dtype).removeprefix("torch."),
        "bytes": problem.bytes_to_move,
        "ms": times,
        "error": errors,
        "failed": failed,
        "best_other_over_specdec": min(others) / times["specdec"] if others else None,
        "bytes_per_second": problem.bytes_to_move / times["specdec"] * 1000,
    }


def _error(found: Tensor, right: Tensor, bound: float) -> float:
    """Relative error.

    Raises:
        ValueError: it is over the bound.
    """
    error = float((found - right).norm() / right.norm())
    if not error <= bound:
        raise ValueError(f"differs from the reference by {error:.1e}")
    return error


def copy_bandwidth(device: torch.device, timer: Timer, size: int = 1 << 30) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / timer(lambda: target.copy_(source)) * 1000


def sharing(device: torch.device, timer: Timer, prefix: int = 8192, **sizes: Any) -> dict[str, Any]:
    """What many requests cost that share a long prefix, over what one of them costs."""
    one = Problem(prefix + 64, 1, 5, **sizes)
    many = Problem(prefix + 64, 32, 5, shared=prefix, **sizes)
    times = [
        compare(problem, device, timer, {"specdec": specdec})["ms"]["specdec"]
        for problem in (one, many)
    ]
    return {"prefix": prefix, "one_ms": times[0], "many_ms": times[1], "ratio": times[1] / times[0]}


def beside(
    device: torch.device,
    timer: Timer,
    keys: int = 2048,
    batch: int = 32,
    nodes: int = 5,
    **sizes: Any,
) -> dict[str, Any]:
    """Milliseconds where requests with little text of their own read that many keys beside it, each
    its own ones or all the same, and where as many keys are text; ``ratio``: first over last.

    Raises:
        ValueError: the kernel gives a wrong result.
    """
    text = 64
    own = prepare(Problem(text, batch, nodes, **sizes), device)
    found: dict[str, Any] = {"keys": keys, "batch": batch, "nodes": nodes}
    for name, shared in (("apart_ms", 0), ("shared_ms", keys)):
        far = prepare(Problem(keys, batch, nodes, shared=shared, **sizes), device)
        requests = [TreeRequest(r.pages, keys, (), r.nodes) for r in far.batch.requests]
        run = partial(_with_beside, own, Beside(far.keys, far.values, TreeBatch(requests, PAGE)))
        _error(run().float(), run("reference"), GATE[own.query.dtype])
        found[name] = timer(run)
    whole = Problem(text + keys, batch, nodes, **sizes)
    found["text_ms"] = compare(whole, device, timer, {"specdec": specdec})["ms"]["specdec"]
    return {**found, "ratio": found["apart_ms"] / found["text_ms"]}


def _with_beside(
    own: Material, other: Beside, name: Literal["triton", "reference"] = "triton"
) -> Tensor:
    """What a backend gives, the reference in fp32."""
    query, keys, values, batch = own[1:5]
    if name == "reference":
        query, keys, values = (t.float() for t in (query, keys, values))
        other = Beside(other.keys.float(), other.values.float(), other.batch)
    with forced(name):
        kernels = backend(query.device)
        return kernels.tree_attention(query, keys, values, batch, scale=own.scale, beside=other).out
