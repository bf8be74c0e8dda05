"""What the paged cache costs a model.

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
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specdec.cache import SequenceKV
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
    on_gpu = model.device.type == "cuda"
    for _ in range(rounds):
        for name, forward in case.forwards.items():
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            forward()
            if on_gpu:
                torch.cuda.synchronize()
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
