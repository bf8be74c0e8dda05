"""What the kernels become on each GPU, with no GPU: `python -m specdec.eval.compiled`.

Every tiling that the tree-attention kernel may be launched with is compiled to a cubin with all
options on (soft cap, windows, visual mass), and the assembler asked for registers and spills. Keys
beside a request's own take no other kernel: they are one more launch of the same.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import triton
import typer
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdec.eval.record import write
from specdec.kernels import merge, paged_copy
from specdec.kernels.tiling import MOST_SPLITS, Tiling, block, chunk, tilings
from specdec.kernels.tree_attention import tree_attention_kernel

ARCHS = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
GROUP = 4
_PARTS = dict.fromkeys(("part_max", "part_sum", "part_mass", "part_out"), "*fp32")


class Built(NamedTuple):
    """What the assembler says. ``shared``: bytes a program; ``registers``: a thread; ``spills``:
    bytes stored and loaded.
    """

    cubin_bytes: int
    shared: int
    registers: int
    spills: int


class Compiled(NamedTuple):
    """One cubin of the attention kernel."""

    arch: int
    dtype: str
    head_dim: int
    tiling: Tiling
    built: Built


def cases(
    archs: Sequence[int] = ARCHS,
    dtypes: Sequence[str] = tuple(DTYPES),
    head_dims: Sequence[int] = HEAD_DIMS,
    nodes: Sequence[int] = (1, 8, 16, 256),
    *,
    first: bool = False,
) -> Iterator[tuple[int, str, int, Tiling]]:
    """Every tiling that a launch may choose for that many nodes; by default from one to as many
    as a tile takes. ``first``: only the likely best of each."""
    for arch in archs:
        for dtype in dtypes:
            for head_dim in head_dims:
                every = {
                    tiling
                    for rows in nodes
                    for tiling in tilings(head_dim, DTYPES[dtype], rows, GROUP)[: first or None]
                }
                for tiling in sorted(every):
                    yield arch, dtype, head_dim, tiling


def compiled(arch: int, dtype: str, head_dim: int, tiling: Tiling) -> Compiled:
    """The attention kernel for ``sm_<arch>``."""
    constants = {
        "GROUP": GROUP,
        "D": head_dim,
        "DV": head_dim,
        "BLOCK_D": block(head_dim),
        "BLOCK_DV": block(head_dim),
        "PAGE": 16,
        "HAS_CAP": True,
        "HAS_FIRST": True,
        "HAS_VISUAL": True,
        "CHUNK": chunk(head_dim, DTYPES[dtype]),
        "UPCAST": False,
        "BLOCK_M": tiling.block_m,
        "BLOCK_K": tiling.block_k,
    }
    kinds = dict.fromkeys(("tiles", "rows", "tables", "ancestors", "depths"), "*i32")
    kinds |= {"visual": "*u8", "first": "*i64", "scale": "fp32", "softcap": "fp32"}
    kinds |= dict.fromkeys(("query", "keys", "values"), f"*{dtype}") | _PARTS
    built = build(tree_attention_kernel, arch, constants, kinds, *tiling[2:])
    return Compiled(arch, dtype, head_dim, tiling, built)


def others(arch: int, dtype: str, head_dim: int) -> dict[str, Built]:
    """The small kernels for ``sm_<arch>``."""
    pointer = f"*{dtype}"
    merging = {"DV": head_dim, "BLOCK_DV": block(head_dim), "HAS_SINKS": True, "HAS_VISUAL": True}
    # Of shared prefixes and of what is behind them, each of own keys and of those beside.
    merging |= {"MOST_PARTS": 4 * MOST_SPLITS, "BLOCK": merge.BLOCK}
    storing = {"D": head_dim, "DV": head_dim, "BLOCK_D": block(head_dim)}
    moving = {"WORD": triton.language.int64, "BLOCK": paged_copy.BLOCK}
    stored = dict.fromkeys(("new_keys", "new_values", "keys", "values"), pointer)
    return {
        "merge": build(
            merge.merge_kernel,
            arch,
            merging,
            {**_PARTS, "sinks": pointer, "out": pointer, "mass": "*fp32"},
        ),
        "store": build(paged_copy.store_kernel, arch, storing, {**stored, "slots": "*i64"}),
        "move": build(paged_copy.move_kernel, arch, moving, {"table": "*i64", "rows": "*i64"}),
    }


def build(
    kernel: Any,  # triton's types say nothing of a kernel's parameters
    arch: int,
    constants: dict[str, Any],
    kinds: dict[str, str],
    num_warps: int = 4,
    num_stages: int = 3,
) -> Built:
    """Compile a kernel; parameters of no kind are int32.

    Raises:
        RuntimeError: the assembler said something else than expected.
    """
    kinds = {**kinds, **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # What triton finds out at a launch: pointers and strides are multiples of 16.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith(("_row", "_head"))
    }
    made: Any = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    said = _assembler(made.asm["ptx"], arch)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    if spilled is None or registers is None:
        raise RuntimeError(f"ptxas said: {said}")
    spills = int(spilled[1]) + int(spilled[2])
    return Built(len(made.asm["cubin"]), made.metadata.shared, int(registers[1]), spills)


def _assembler(ptx: str, arch: int) -> str:
    """What triton's own ptxas reports."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    newest = folder / "ptxas-blackwell"
    tool = newest if arch >= 100 and newest.exists() else folder / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [str(tool), "-v", "-arch", target, file.name, "-o", "/dev/null"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def main(
    arch: Annotated[str, typer.Option(help="By commas.")] = "80,90,100",
    dtype: Annotated[str, typer.Option(help="By commas.")] = "fp32,fp16,bf16",
    head_dim: Annotated[str, typer.Option(help="By commas.")] = ",".join(map(str, HEAD_DIMS)),
    nodes: Annotated[str, typer.Option(help="Of a tree, by commas.")] = "1,8,16,256",
    first: Annotated[bool, typer.Option("--first", help="Likely best tilings only.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compile the kernels for GPUs that need not be there; exit code 1 if any spills."""
    archs, head_dims, counts = (
        [int(number) for number in numbers.split(",")] for numbers in (arch, head_dim, nodes)
    )
    chosen = cases(archs, dtype.split(","), head_dims, counts, first=first)
    found = [compiled(*case) for case in chosen]
    table = Table(title="tree attention, all options on")
    for column in ("GPU", "dtype", "head", "rows × keys", "warps, stages", "shared", "registers"):
        table.add_column(column, justify="right")
    table.add_column("spills", justify="right")
    for case in found:
        m, k, warps, stages = case.tiling
        table.add_row(
            f"sm_{case.arch}",
            case.dtype,
            str(case.head_dim),
            f"{m} × {k}",
            f"{warps}, {stages}",
            f"{case.built.shared / 1024:.0f} KiB",
            str(case.built.registers),
            str(case.built.spills),
        )
    Console().print(table)
    small = {f"sm_{arch}": others(arch, "bf16", max(head_dims)) for arch in archs}
    for name, kernels in small.items():
        said = (f"{kernel} {built.registers} registers" for kernel, built in kernels.items())
        Console().print(f"{name}: {', '.join(said)}")
    every = [case.built for case in found] + [b for each in small.values() for b in each.values()]
    spilled = sum(built.spills > 0 for built in every)
    Console().print(f"{len(every)} cubins, {spilled} with spills")
    if out is not None:
        rows = [
            case._asdict() | {"tiling": case.tiling._asdict(), "built": case.built._asdict()}
            for case in found
        ]
        rest = {name: {k: b._asdict() for k, b in each.items()} for name, each in small.items()}
        write(out, {"triton": triton.__version__, "cubins": rows, "others": rest})
    raise typer.Exit(spilled > 0)


if __name__ == "__main__":
    typer.run(main)
