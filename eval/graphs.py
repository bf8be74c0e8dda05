"""A forward over pages as a CUDA graph, where that can be had.

What the host has to say of a forward, page tables, positions, who sees whom, is laid on the device
beforehand, so that nothing is copied there while it runs. The engine does not run graphs; this says
what they would save.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specdec.eval.filled import Filled, milliseconds
from specdec.eval.forwards import GATE
from specdec.runtime.hook import TreeForward, TreeRows
from specdec.runtime.node_batch import model_inputs

_WARM_UP = 3  # as torch asks for before a capture


class FixedForward:
    """The same nodes behind the same texts, again and again: logits ``(N, V)``.

    Reaches into the runtime, which prepares a forward and runs it in one go.

    Args:
        filled: the texts; they have no other scratch nodes until :meth:`close`.
        count: nodes behind each.
    """

    def __init__(self, filled: Filled, count: int) -> None:
        self._paged = filled.paged
        self._batch = filled.nodes(count)
        for nodes in self._batch:
            self._paged.kv.extend(nodes.sequence, nodes.depths)
        rows = [TreeRows(nodes.sequence, count, None) for nodes in self._batch]
        self._forward = TreeForward(self._paged.kv, rows)
        self._inputs = model_inputs(self._batch, self._paged.model.get_input_embeddings())

    @torch.no_grad()
    def __call__(self) -> Tensor:
        logits: Tensor = self._paged._run(self._forward, self._inputs)[0]
        return logits

    def close(self) -> None:
        """Take the nodes back."""
        for nodes in self._batch:
            self._paged.kv.rollback(nodes.sequence)


def graph_times(filled: Filled, count: int, rounds: int) -> dict[str, Any]:  # Any: JSON values
    """A step with ``count`` nodes a request as a graph: ``graph`` is its median in milliseconds, or
    ``None``, and then ``graph_refused`` says why.
    """
    device = filled.model.device
    if device.type != "cuda":
        return {"graph": None, "graph_refused": f"there are no CUDA graphs on {device.type}"}
    forward = FixedForward(filled, count)
    try:
        replay, logits = _captured(forward)
        replay()
        expected = forward().float()
        error = float((logits.float() - expected).abs().max() / expected.abs().max())
        if not error <= GATE[str(logits.dtype).removeprefix("torch.")]:
            raise ValueError(f"its logits differ by {error:.1e} of the largest")

        def step() -> None:
            replay()
            logits.argmax(-1).tolist()

        times = [milliseconds(device, step) for _ in range(rounds)]
        return {"graph": statistics.median(times), "graph_error": error}
    except (RuntimeError, ValueError) as error:
        return {"graph": None, "graph_refused": str(error).splitlines()[0]}
    finally:
        forward.close()


def _captured(forward: FixedForward) -> tuple[Callable[[], None], Tensor]:
    """What runs the graph, and where its logits ``(N, V)`` then are."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(_WARM_UP):
            forward()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward()
    return graph.replay, logits
