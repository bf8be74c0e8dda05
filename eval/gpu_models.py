"""What a GPU makes of one model of real size with random weights: steps, batches, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from specdec.drafters.eagle import EagleDrafter
from specdec.eval.budget import Deadline
from specdec.eval.filled import Filled
from specdec.eval.graphs import graph_times
from specdec.eval.projection import Acceptance
from specdec.eval.random_models import parameter_bytes
from specdec.eval.step_costs import StepCosts, measure_costs
from specdec.eval.throughput import on_one_image, throughput
from specdec.runtime.taps import text_layers

_WANTING = (ValueError, RuntimeError)  # memory, mostly; other cases need less


class Sizes(NamedTuple):
    """How much is asked of a model.

    Attributes:
        contexts: tokens of requests whose steps are timed.
        step_batches: how many of them.
        nodes: of their trees.
        depths: of the chains drafted for them.
        rounds: how often each is timed.
        batches: requests at once, the most telling first.
        context: tokens that each of those has.
        depth: of their chains.
        tokens: of their answers.
        questions: how many about one image.
        words: tokens of each.
        copied: bytes of the copy that bandwidth is measured with.
    """

    contexts: tuple[int, ...] = (1024, 4096)
    step_batches: tuple[int, ...] = (1, 16)
    nodes: tuple[int, ...] = (1, 5, 9, 17, 33, 65)
    depths: tuple[int, ...] = (1, 4, 8)
    rounds: int = 10
    batches: tuple[int, ...] = (1, 64, 16, 4, 32, 8, 2)
    context: int = 512
    depth: int = 4
    tokens: int = 64
    questions: int = 16
    words: int = 32
    copied: int = 1 << 30


FULL = Sizes()
TOY = Sizes(
    contexts=(48,),
    step_batches=(1, 2),
    nodes=(1, 3),
    depths=(1, 2),
    rounds=2,
    batches=(1, 2),
    context=24,
    depth=2,
    tokens=8,
    questions=3,
    words=8,
    copied=1 << 20,
)


@dataclass
class Subject:
    """A model, a head that drafts for it, and what is asked of them.

    Attributes:
        bandwidth: bytes that a copy on the device reads and writes in a second.
        acceptance: what is replayed.
    """

    model: PreTrainedModel
    eagle: EagleDrafter
    sizes: Sizes
    bandwidth: float
    acceptance: Acceptance

    def facts(self, deadline: Deadline) -> dict[str, Any]:
        """What it is."""
        return {
            "architecture": type(self.model).__name__,
            "parameters": sum(each.numel() for each in self.model.parameters()),
            "weights_bytes": parameter_bytes(self.model),
            "streamed_bytes": streamed_bytes(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def steps(self, deadline: Deadline) -> dict[str, Any]:
        """Plain steps, verifying and drafting, eagerly and as graphs, against their floor."""
        sizes, cases, drafts = self.sizes, list[dict[str, Any]](), list[dict[str, Any]]()
        for context in sizes.contexts:
            for batch in sizes.step_batches:
                if not deadline.wanted(f"context {context}, batch {batch}"):
                    continue
                try:
                    costs = self._costs(batch, context)
                    cases += self._against_floor(costs, deadline)
                    drafts += [each._asdict() for each in costs.drafts]
                except _WANTING as error:
                    cases.append({"batch": batch, "context": context, "failed": str(error)})
        return {"cases": cases, "drafts": drafts}

    def throughput(self, deadline: Deadline) -> dict[str, Any]:
        """Tokens a second by batch size, at replayed acceptance."""
        cases = [
            self._throughput(batch)
            for batch in self.sizes.batches
            if deadline.wanted(f"batch {batch}")
        ]
        return {"acceptance": self.acceptance.source, "cases": cases}

    def one_image(self, deadline: Deadline) -> dict[str, Any]:
        """Memory of many questions about one image."""
        sizes = self.sizes
        return on_one_image(
            self.model,
            self.eagle,
            self.acceptance,
            requests=sizes.questions,
            words=sizes.words,
            tokens=sizes.tokens,
            depth=sizes.depth,
        )

    def _throughput(self, batch: int) -> dict[str, Any]:
        sizes = self.sizes
        how = {"context": sizes.context, "depth": sizes.depth, "tokens": sizes.tokens}
        try:
            return throughput(self.model, self.eagle, self.acceptance, batch=batch, **how)
        except _WANTING as error:
            return {"batch": batch, "failed": str(error)}

    def _costs(self, batch: int, context: int) -> StepCosts:
        return measure_costs(
            self.model,
            contexts=[context],
            nodes=self.sizes.nodes,
            batches=[batch],
            rounds=self.sizes.rounds,
            drafter=self.eagle,
            depths=self.sizes.depths,
        )

    def _against_floor(self, costs: StepCosts, deadline: Deadline) -> list[dict[str, Any]]:
        """Every step over the time in which what it must read could be streamed."""
        first = costs.steps[0]
        filled = Filled(self.model, first.context, first.batch)
        cases = []
        for batch, context, nodes, ms in costs.steps:
            kv = batch * (context + nodes) * costs.kv_bytes_per_token
            floor = 1000 * (streamed_bytes(self.model) + kv) / self.bandwidth
            case: dict[str, Any] = {"batch": batch, "context": context, "nodes": nodes, "ms": ms}
            case |= {"floor_ms": floor, "over_floor": ms / floor}
            if deadline.wanted(f"context {context}, batch {batch}, nodes {nodes}, graph"):
                graph = graph_times(filled, nodes, self.sizes.rounds)
                ms = graph["graph"]
                case |= {**graph, "graph_over_floor": None if ms is None else ms / floor}
            cases.append(case)
        return cases


def streamed_bytes(model: PreTrainedModel) -> int:
    """Weights that a forward over words reads whole: text layers and output embeddings. Of input
    embeddings it reads a row a token, of the vision tower nothing.
    """
    parts = list(text_layers(model).parameters())
    head = model.get_output_embeddings()
    if head is not None:
        parts += head.parameters()
    return sum(each.numel() * each.element_size() for each in parts)
