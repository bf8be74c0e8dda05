"""What the paged cache costs: `python -m specdec.eval.kernels`.

The same model reads the same tokens behind the same prompt twice: through transformers with a
`DynamicCache`, and through the pages, once where they follow one another and are read as a view,
once where they are scattered and have to be gathered. The gate comes first: if the logits differ by
more than rounding, no time is printed. Forwards take turns; ratios are taken per round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specdec.cache import SequenceKV
from specdec.eval import suite
from specdec.eval.record import machine, write
from specdec.runtime import NodeBatch, PagedModel

GATE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}  # of the largest logit
Forward = Callable[[], Tensor]


class Case:
    """The forwards to compare, of ``nodes`` tokens behind ``context`` tokens of text, none of which
    leaves anything behind. Values are logits ``(nodes, V)``.
    """

    def __init__(self, model: PreTrainedModel, context: int, nodes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        size = model.config.get_text_config(decoder=True).vocab_size
        ids = torch.randint(size // 4, size // 2, (1, context + nodes), generator=generator)
        text, new = ids[:, :context], ids[:, context:].to(model.device)
        self._cache = DynamicCache()
        model(input_ids=text.to(model.device), past_key_values=self._cache, use_cache=True)
        self.forwards: dict[str, Forward] = {"DynamicCache": lambda: self._plain(model, new)}
        for name in ("paged, in a row", "paged, scattered"):
            paged = PagedModel(model)
            sequence = self._fill(paged, text[0].tolist(), scattered=name.endswith("scattered"))
            batch = [NodeBatch(sequence, new[0].tolist(), range(nodes))]
            self.forwards[name] = partial(self._paged, paged, batch)

    def _plain(self, model: PreTrainedModel, new: Tensor) -> Tensor:
        out: Any = model(input_ids=new, past_key_values=self._cache, use_cache=True)
        self._cache.crop(-new.shape[1])
        logits: Tensor = out.logits[0]
        return logits

    def _paged(self, paged: PagedModel, batch: Sequence[NodeBatch]) -> Tensor:
        logits = paged.forward(batch)
        paged.kv.rollback(batch[0].sequence)
        return logits

    def _fill(self, paged: PagedModel, text: Sequence[int], *, scattered: bool) -> SequenceKV:
        """A sequence that holds ``text``; scattered: with another's page between any two."""
        kv = paged.kv
        sequence, between = kv.add(0 if scattered else len(text) + 512), kv.add()
        step = kv.page_size if scattered else len(text)
        for start in range(0, len(text), step):
            part = text[start : start + step]
            paged.forward([NodeBatch(sequence, part, range(len(part)))])
            kv.commit(sequence, range(len(part)))
            if scattered:
                kv.extend(between, range(kv.page_size))
        assert sequence.contiguous != scattered
        return sequence


@torch.no_grad()
def compare(
    model: PreTrainedModel, context: int, nodes: int, rounds: int, gate: float
) -> dict[str, Any]:  # Any: JSON values
    """Milliseconds and ratios of one case.

    Raises:
        ValueError: a forward gives other logits than transformers' own.
    """
    case = Case(model, context, nodes)
    expected = case.forwards["DynamicCache"]().float()
    differences = {}
    for name, forward in case.forwards.items():
        difference = float((forward().float() - expected).abs().max() / expected.abs().max())
        if difference > gate:
            raise ValueError(f"{name}: logits differ by {difference:.1e} of the largest")
        differences[name] = difference
    times: dict[str, list[float]] = {name: [] for name in case.forwards}
    for _ in range(rounds):
        for name, forward in case.forwards.items():
            began = time.perf_counter()
            forward()
            times[name].append(1000 * (time.perf_counter() - began))
    ratios = {
        name: statistics.median(
            mine / plain for mine, plain in zip(taken, times["DynamicCache"], strict=True)
        )
        for name, taken in times.items()
    }
    return {
        "context": context,
        "nodes": nodes,
        "ms": {name: statistics.median(taken) for name, taken in times.items()},
        "ratio": ratios,
        "logits_differ_by": differences,
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
    """Compare forwards over pages with transformers' own, in one interleaved run."""
    if threads is not None:
        torch.set_num_threads(threads)
    if unknown := set(dtype.split(",")) - set(GATE):
        raise typer.BadParameter(f"dtype {', '.join(sorted(unknown))}; known: {', '.join(GATE)}")
    table = Table(title="a forward over pages ÷ the same with DynamicCache, medians")
    for column in ("dtype", "context", "tokens", "DynamicCache ms", "in a row", "scattered"):
        table.add_column(column, justify="right")
    cases = []
    try:
        for name in dtype.split(","):
            verifier, _ = suite.load_verifier(model, name)
            for context in map(int, contexts.split(",")):
                for count in map(int, nodes.split(",")):
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
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    Console().print(table)
    if out is not None:
        write(out, {"machine": machine(), "rounds": rounds, "cases": cases})


if __name__ == "__main__":
    typer.run(kernels)
