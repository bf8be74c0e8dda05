"""How fast the kernels and the paged cache are here: `python -m specdec.eval.kernels`.

On any device: a model's forwards over pages against the same with a ``DynamicCache``. On a CUDA
device also: tree attention against other ways to attend, and the share of the copy bandwidth that
it reaches, both measured in this run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from specdec.eval import attention, suite
from specdec.eval.forwards import GATE, compare
from specdec.eval.record import machine, write

CONTEXTS, BATCHES, NODES = (1024, 4096, 16384, 65536), (1, 8, 64), (1, 5, 16, 64)
MOST_KEYS = 1 << 21  # of all requests: beyond that the pools do not fit beside the others' copies


def forwards(
    model: Path,
    device: torch.device,
    dtypes: list[str],
    contexts: list[int],
    nodes: list[int],
    rounds: int,
) -> list[dict[str, Any]]:
    """Print and return a case per dtype, context and number of nodes."""
    table = Table(title="a forward over pages ÷ the same with DynamicCache, medians")
    for column in ("dtype", "context", "tokens", "DynamicCache ms", "in a row", "scattered"):
        table.add_column(column, justify="right")
    cases = []
    for name in dtypes:
        verifier, _ = suite.load_verifier(model, name)
        verifier.to(device)  # type: ignore[arg-type]  # transformers types it as unbound
        for context in contexts:
            for count in nodes:
                case = compare(verifier, context, count, rounds, GATE[name])
                cases.append({"dtype": name, **case})
                plain, *ratios = case["ratio"]
                table.add_row(
                    name,
                    str(context),
                    str(count),
                    f"{case['ms'][plain]:.2f}",
                    *(f"{case['ratio'][ratio]:.2f}" for ratio in ratios),
                )
    Console().print(table)
    return cases


def device_attention(device: torch.device) -> dict[str, Any]:
    """Print and return tree attention on a CUDA device."""
    import triton  # only where there is a GPU

    def timer(run: attention.Run) -> float:
        return float(triton.testing.do_bench(run, warmup=20, rep=80, return_mode="median"))

    bandwidth = attention.copy_bandwidth(device, timer)
    table = Table(title=f"tree attention; a copy moves {bandwidth / 1e12:.2f} TB/s")
    for column in ("context", "batch", "nodes", "ms", "of copy bandwidth", "best other ÷ ours"):
        table.add_column(column, justify="right")
    cases = []
    for context in CONTEXTS:
        for batch in BATCHES:
            for nodes in NODES:
                if context * batch > MOST_KEYS:
                    continue
                case = attention.compare(attention.Problem(context, batch, nodes), device, timer)
                share = case["bytes_per_second"] / bandwidth
                cases.append({**case, "of_copy_bandwidth": share})
                best = case["best_other_over_specdec"]
                table.add_row(
                    *(str(context), str(batch), str(nodes), f"{case['ms']['specdec']:.3f}"),
                    *(f"{share:.2f}", "" if best is None else f"{best:.2f}"),
                )
                torch.cuda.empty_cache()
    shared = attention.sharing(device, timer)
    beside = attention.beside(device, timer)
    Console().print(table)
    Console().print(f"32 requests with a prefix of {shared['prefix']}: {shared['ratio']:.2f} × one")
    Console().print(
        f"{beside['batch']} requests with {beside['keys']} keys beside: "
        f"{beside['apart_ms']:.3f} ms, if they are the same for all {beside['shared_ms']:.3f} ms, "
        f"if they are text {beside['text_ms']:.3f} ms"
    )
    return {
        "copy_bytes_per_second": bandwidth,
        "cases": cases,
        "sharing": shared,
        "beside": beside,
    }


def kernels(
    model: Annotated[Path, typer.Option(help="Folder of the verifier.")] = suite.MODEL,
    contexts: Annotated[str, typer.Option(help="Tokens of text, by commas.")] = "160,800",
    nodes: Annotated[str, typer.Option(help="Tokens a forward, by commas.")] = "1,5,16",
    dtype: Annotated[str, typer.Option(help="By commas.")] = "float32,bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Forwards of each kind.")] = 300,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare forwards over pages, and attention on a GPU, with others in one interleaved run."""
    if threads is not None:
        torch.set_num_threads(threads)
    dtypes = dtype.split(",")
    if unknown := set(dtypes) - set(GATE):
        raise typer.BadParameter(f"dtype {', '.join(sorted(unknown))}; known: {', '.join(GATE)}")
    texts, counts = (
        [int(number) for number in numbers.split(",")] for numbers in (contexts, nodes)
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    try:
        result["cases"] = forwards(model, device, dtypes, texts, counts, rounds)
        if device.type == "cuda":
            result["attention"] = device_attention(device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if out is not None:
        write(out, result)


if __name__ == "__main__":
    typer.run(kernels)
