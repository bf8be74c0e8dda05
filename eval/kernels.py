"""How fast the kernels and the paged cache are here: `python -m specdec.eval.kernels`.

On any device: a model's forwards over pages against the same with a ``DynamicCache``. On a CUDA
device also: tree attention against other ways to attend, and the share of the copy bandwidth that
it reaches, both measured in this run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.table import Table

from specdec.eval import attention, suite
from specdec.eval.forwards import GATE, compare
from specdec.eval.record import machine, write

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


class Grid(NamedTuple):
    """What tree attention is asked to do: the product of these, as far as pools fit.

    Attributes:
        contexts: committed tokens of a request.
        batches: requests.
        nodes: of each request's tree.
        prefix: tokens that many requests share; 0 leaves that out.
        beside: keys that they read beside their own; likewise.
        sizes: heads and dtypes that are not :class:`Problem`'s own.
    """

    contexts: Sequence[int] = (1024, 4096, 16384, 65536)
    batches: Sequence[int] = (1, 8, 64)
    nodes: Sequence[int] = (1, 5, 16, 64)
    prefix: int = 8192
    beside: int = 2048
    sizes: Mapping[str, Any] = MappingProxyType({})

    @property
    def problems(self) -> list[attention.Problem]:
        """In order."""
        return [
            attention.Problem(context, batch, nodes, **self.sizes)
            for context in self.contexts
            for batch in self.batches
            for nodes in self.nodes
            if context * batch <= MOST_KEYS
        ]


def device_timer(run: attention.Run) -> float:
    """Milliseconds on a CUDA device, whose caches are cold each time."""
    import triton  # only where there is a GPU

    return float(triton.testing.do_bench(run, warmup=20, rep=80, return_mode="median"))


def device_attention(
    device: torch.device,
    grid: Grid = Grid(),  # noqa: B008  # frozen
    timer: attention.Timer = device_timer,
    *,
    entries: attention.Entries | None = None,
    wanted: Callable[[str], bool] = lambda case: True,
    copy_size: int = 1 << 30,
) -> dict[str, Any]:
    """Print and return tree attention on a device.

    Args:
        device: a CUDA device; a CPU in Triton's interpreter.
        grid: the cases.
        timer: how long a run takes.
        entries: who takes part; ``None`` is everybody.
        wanted: asked before each case whether there is time for it.
        copy_size: bytes of the copy that bandwidth is measured with.
    """
    bandwidth = attention.copy_bandwidth(device, timer, copy_size)
    table = Table(title=f"tree attention; a copy moves {bandwidth / 1e12:.2f} TB/s")
    for column in ("context", "batch", "nodes", "ms", "of copy bandwidth", "best other ÷ ours"):
        table.add_column(column, justify="right")
    result: dict[str, Any] = {"copy_bytes_per_second": bandwidth, "cases": []}
    for problem in grid.problems:
        named = problem.context, problem.batch, problem.nodes
        if not wanted("context {}, batch {}, nodes {}".format(*named)):
            continue
        case = attention.compare(problem, device, timer, entries)
        share = case["bytes_per_second"] / bandwidth
        result["cases"].append({**case, "of_copy_bandwidth": share})
        best = case["best_other_over_specdec"]
        table.add_row(
            *(str(number) for number in named),
            *(f"{case['ms']['specdec']:.3f}", f"{share:.2f}"),
            "" if best is None else f"{best:.2f}",
        )
        if device.type == "cuda":
            torch.cuda.empty_cache()
    Console().print(table)
    if grid.prefix and wanted("sharing"):
        shared = attention.sharing(device, timer, grid.prefix, **grid.sizes)
        result["sharing"] = shared
        text = f"32 requests with a prefix of {shared['prefix']}: {shared['ratio']:.2f} × one"
        Console().print(text)
    if grid.beside and wanted("beside"):
        beside = attention.beside(device, timer, grid.beside, **grid.sizes)
        result["beside"] = beside
        Console().print(
            f"{beside['batch']} requests with {beside['keys']} keys beside: "
            f"{beside['apart_ms']:.3f} ms, if they are the same for all "
            f"{beside['shared_ms']:.3f} ms, if they are text {beside['text_ms']:.3f} ms"
        )
    return result


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
