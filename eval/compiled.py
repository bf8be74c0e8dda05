"""What the kernels become on each GPU, with no GPU: `python -m specdec.eval.compiled`.

Every tiling that the tree-attention kernel may be launched with is compiled to a cubin with all
options on (soft cap, windows, visual mass), and the assembler asked for registers and spills.
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
from specdec.kernels.tiling import Tiling, block, chunk, tilings
from specdec.kernels.tree_attention import tree_attention_kernel

ARCHS = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 256)
GROUP = 4
_INTS = ("tiles", "rows", "tables", "ancestors", "depths")


class Compiled(NamedTuple):
    """One cubin. ``shared``: bytes a program; ``registers``: a thread; ``spills``: bytes stored and
    loaded.
    """

    arch: int
    dtype: str
    head_dim: int
    tiling: Tiling
    cubin_bytes: int
    shared: int
    registers: int
    spills: int


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
    """Compile the kernel for ``sm_<arch>``.

    Raises:
        RuntimeError: the assembler said something else than expected.
    """
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
    kinds = dict.fromkeys(_INTS, "*i32") | {"visual": "*u8", "first": "*i64"}
    kinds |= dict.fromkeys(("query", "keys", "values"), f"*{dtype}")
    kinds |= dict.fromkeys(("part_max", "part_sum", "part_mass", "part_out"), "*fp32")
    kinds |= {"scale": "fp32", "softcap": "fp32"} | dict.fromkeys(constants, "constexpr")
    kernel: Any = tree_attention_kernel  # triton's types say nothing of this
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # What triton finds out at a launch: pointers and strides are multiples of 16.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith(("_row", "_head"))
    }
    built: Any = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": tiling.num_warps, "num_stages": tiling.num_stages},
    )
    said = _assembler(built.asm["ptx"], arch)
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    if spilled is None or registers is None:
        raise RuntimeError(f"ptxas said: {said}")
    return Compiled(
        arch,
        dtype,
        head_dim,
        tiling,
        len(built.asm["cubin"]),
        built.metadata.shared,
        int(registers[1]),
        int(spilled[1]) + int(spilled[2]),
    )


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
            f"{case.shared / 1024:.0f} KiB",
            str(case.registers),
            str(case.spills),
        )
    Console().print(table)
    if out is not None:
        rows = [case._asdict() | {"tiling": case.tiling._asdict()} for case in found]
        write(out, {"triton": triton.__version__, "cubins": rows})
    raise typer.Exit(any(case.spills for case in found))


if __name__ == "__main__":
    typer.run(main)
