"""What answering takes of a replica: steps by how many share them, prompts, and keys.

Steps are those of the engine, at an acceptance that is given (:mod:`specdec.eval.throughput`), so
what it does around forwards is in them. Knows nothing of loads.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from specdec.engine import Engine
from specdec.eval.filled import Filled, milliseconds
from specdec.eval.projection import Acceptance
from specdec.eval.queueing import Steps, Work
from specdec.eval.throughput import submit, throughput
from specdec.eval.timing import Inputs
from specdec.interfaces import Drafter, reads_of
from specdec.tree import chain
from specdec.verifiers import TransformersVerifier


@dataclass(frozen=True)
class ServingCosts:
    """Seconds.

    Attributes:
        context: tokens that the requests of a step have.
        depth: of the chains that are drafted.
        plain: plain steps.
        drafted: steps that draft and verify.
        per_step: tokens a request gets of such a step.
        prompt: a prompt whose beginning is not known.
        prompt_again: one about the same image.
        prompt_tokens: of either.
        kv_bytes_per_token: what a token's keys and values take in all layers.
    """

    context: int
    depth: int
    plain: Steps
    drafted: Steps
    per_step: float
    prompt: float
    prompt_again: float
    prompt_tokens: int
    kv_bytes_per_token: int

    def to_dict(self) -> dict[str, Any]:  # Any: JSON values
        """Ready for ``json.dumps``."""
        return asdict(self)

    def work(self, *, answer: float, shared: float, most: int, drafts: bool = True) -> Work:
        """What a request takes.

        Args:
            answer: its tokens.
            shared: share of requests whose image is known.
            most: requests that run at once.
            drafts: whether it is drafted for.
        """
        return Work(
            self.prompt + shared * (self.prompt_again - self.prompt),
            answer,
            self.per_step if drafts else 1.0,
            self.drafted if drafts else self.plain,
            most,
        )

    def speedup(self, requests: int) -> float:
        """Of decoding, when so many share a step."""
        return self.per_step * self.plain.seconds(requests) / self.drafted.seconds(requests)


def measure(
    model: PreTrainedModel,
    drafter: Drafter | None,
    acceptance: Acceptance,
    prompts: Sequence[tuple[Inputs, Inputs]],
    *,
    batches: Sequence[int],
    depth: int,
    tokens: int,
) -> ServingCosts:
    """Measure them here.

    Args:
        model: the verifier, with any weights.
        drafter: who drafts; ``None``: nobody, for nothing.
        acceptance: how far drafts are accepted.
        prompts: two each about one image, which no other pair is about; the first is a warm-up.
        batches: how many requests share a step, rising.
        depth: of the chains.
        tokens: of the answers that are timed.
    """
    length = int(prompts[0][0]["input_ids"].shape[1])
    found = [
        throughput(
            model, drafter, acceptance, batch=batch, context=length, depth=depth, tokens=tokens
        )
        for batch in (batches[0], *batches)  # the first is a warm-up
    ][1:]
    plain = [(each["batch"], each["batch"] / each["plain"]["tokens_per_second"]) for each in found]
    per_step = statistics.mean(each["replayed"]["mean_acceptance_length"] for each in found)
    drafted = [
        (each["batch"], each["batch"] * per_step / each["replayed"]["tokens_per_second"])
        for each in found
    ]
    first, again = _prompts(model, drafter, prompts)
    return ServingCosts(
        length + tokens // 2,
        depth,
        Steps(tuple(plain)),
        Steps(tuple(drafted)),
        per_step,
        first,
        again,
        length,
        Filled(model, 16, 1).kv_bytes_per_token,
    )


def _prompts(
    model: PreTrainedModel, drafter: Drafter | None, prompts: Sequence[tuple[Inputs, Inputs]]
) -> tuple[float, float]:
    """Median seconds of a prompt, and of one that begins like one before."""
    verifier = TransformersVerifier(model, taps=reads_of(drafter).layers)
    taken: tuple[list[float], list[float]] = ([], [])
    engine = Engine(verifier, None, chain(0))
    try:
        for pair in prompts:
            for inputs, times in zip(pair, taken, strict=True):
                submit(engine, model, inputs, 1)

                def answer() -> None:
                    while engine.has_work:
                        engine.step()

                times.append(milliseconds(model.device, answer) / 1000)
    finally:
        engine.close()
    first, again = (statistics.median(times[1:]) for times in taken)
    return first, again
