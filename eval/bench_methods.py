"""The ways to decode that a benchmark compares, as things that can be run and timed.

Every one is given the same inputs and hands back its tokens with the moment at which each came.
Knows nothing of files, tables or what is made of the times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from specdec.calls import verifier_for
from specdec.choice import OneDrafter, resolve_drafter, resolve_tree
from specdec.drafters import TextOnlyDrafter
from specdec.engine import Adaptive
from specdec.engine.request import Emission
from specdec.eval.bench_plan import Contender, Plan
from specdec.eval.chain_loop import chain_loop
from specdec.eval.drafter_bench import label
from specdec.generation import generate
from specdec.interfaces import Drafter
from specdec.policies import Relaxed, load_policy
from specdec.stats import AcceptanceStats
from specdec.tree import Shape
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.spec import read_spec

Inputs = Mapping[str, Any]  # what model.generate takes, padded on the left
Origin = str  # of a token: "drafted", "relaxed" or "own", the verifier's


class Answer(NamedTuple):
    """One row of a batch.

    Attributes:
        tokens: up to and with the one that ends it.
        times: seconds from the call to each of them; empty if nobody could tell.
        origins: of each; empty of others' methods.
        reliance: how much each depends on the image, as estimated; ``None`` where it was not.
    """

    tokens: list[int]
    times: list[float]
    origins: Sequence[Origin] = ()
    reliance: Sequence[float | None] = ()


class Ran(NamedTuple):
    """A batch that was answered, and the seconds it took."""

    answers: list[Answer]
    seconds: float
    stats: AcceptanceStats | None = None


class _Clock(BaseStreamer):
    """Notes when each token comes, one of every row at a time, or several of the only row."""

    def __init__(self, rows: int) -> None:
        self.times: list[float] = []
        self._rows = rows
        self._began = time.perf_counter()
        self._prompt = True

    def put(self, value: Tensor) -> None:
        now = time.perf_counter() - self._began
        if not self._prompt:
            self.times += [now] * (value.numel() // self._rows)
        self._prompt = False

    def tick(self) -> None:
        """A token has come."""
        self.times.append(time.perf_counter() - self._began)

    def end(self) -> None:
        pass


@dataclass
class Methods:
    """Makes contenders runnable on one model; what they load and learn is kept from run to run.

    Args:
        model: the verifier.
        plan: the benchmark.

    Raises:
        ValueError: a drafter or policy that cannot be loaded, or does not fit.
    """

    model: PreTrainedModel
    plan: Plan
    drafters: dict[str, Drafter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._policies: dict[str, Relaxed] = {}
        self._shapes: dict[tuple[str, str, int, float], Shape | Adaptive] = {}
        self._ends = read_spec(self.model).eos_token_ids
        self.labels = dict[str, str]()  # what each drafter is called
        for name in self.plan.drafters:
            members: list[OneDrafter] = list(name.split("+"))
            found = resolve_drafter(members if len(members) > 1 else name, self.model)
            assert found is not None
            self.drafters[name] = found
            self.labels[name] = label(found)
            if list(self.labels.values()).count(label(found)) > 1:
                self.labels[name] += f" ({'+'.join(Path(part).name for part in name.split('+'))})"
        for policy in self.plan.policies:
            if policy != "lossless":
                self._policies[policy] = load_policy(policy, self.model)

    @property
    def blind(self) -> PreTrainedModel | None:
        """The first text-only drafter's model, which others can use, too."""
        found = (d.model for d in self.drafters.values() if isinstance(d, TextOnlyDrafter))
        return next(found, None)

    def run(self, each: Contender, inputs: Inputs, seed: int) -> Ran:
        """Answer a batch.

        Raises:
            Exception: whatever a method of others raises where it refuses.
        """
        torch.manual_seed(seed)
        began = time.perf_counter()
        answers, stats = self._runner(each)(each, inputs)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return Ran(answers, time.perf_counter() - began, stats)

    def memory(self, each: Contender, inputs: Inputs) -> dict[str, int | None]:
        """Most bytes during a run: on a GPU of everything; of keys and values, the verifier's where
        it is known, and the drafter's own.
        """
        device = self.model.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        drafter = self.drafters.get(each.drafter or "")
        verifier = verifier_for(self.model, drafter) if each.ours and each.lossless else None
        most = [0, 0]

        def look(_: Emission) -> None:
            taken = getattr(drafter, "bytes_taken", 0), verifier.bytes_taken if verifier else 0
            most[:] = map(max, most, taken)

        if each.ours:
            self._generate(each, inputs, look, verifier)
        else:
            self.run(each, inputs, 0)
        return {
            "peak_bytes": torch.cuda.max_memory_allocated(device)
            if device.type == "cuda"
            else None,
            "kv_bytes": most[1] if verifier else None,
            "drafter_kv_bytes": most[0] if each.ours else None,
        }

    def _runner(
        self, each: Contender
    ) -> Callable[[Contender, Inputs], tuple[list[Answer], AcceptanceStats | None]]:
        if each.ours:
            return self._ours
        return self._loop if each.kind == "chain loop" else self._theirs

    def _limits(self, each: Contender) -> dict[str, Any]:
        limits: dict[str, Any] = {"max_new_tokens": self.plan.max_new_tokens, "do_sample": False}
        if each.temperature > 0:
            limits |= {"do_sample": True, "temperature": each.temperature}
        return limits

    def _generate(
        self,
        each: Contender,
        inputs: Inputs,
        on_emission: Callable[[Emission], None],
        verifier: TransformersVerifier | None = None,
    ) -> Any:
        how: dict[str, Any] = {"drafter": self.drafters.get(each.drafter or "")}
        how |= {"on_emission": on_emission, "verifier": verifier, **self._limits(each)}
        if each.tree is not None:
            # One of its own for each contender: an adaptive one remembers what pays.
            key = (each.name, each.policy, each.batch, each.temperature)
            how["tree"] = self._shapes.setdefault(key, resolve_tree(each.tree))
        if not each.lossless:
            how["acceptance"] = self._policies[each.policy]
        return generate(self.model, **inputs, **how)

    def _ours(self, each: Contender, inputs: Inputs) -> tuple[list[Answer], AcceptanceStats | None]:
        rows: list[list[tuple[int, float, Origin]]] = [[] for _ in inputs["input_ids"]]
        began = time.perf_counter()

        def note(emission: Emission) -> None:
            kept = "relaxed" if emission.relaxed else "drafted"
            origin = kept if emission.drafted else "own"
            row = rows[emission.request_id]
            row.append((emission.token, time.perf_counter() - began, origin))

        out = self._generate(each, inputs, note)
        answers = []
        for row, ledger in zip(rows, out.ledger, strict=True):
            tokens, times, origins = map(list, zip(*row, strict=True))
            answers.append(Answer(tokens, times, origins, [entry.reliance for entry in ledger]))
        stats: AcceptanceStats = out.stats
        return answers, stats

    def _theirs(
        self, each: Contender, inputs: Inputs
    ) -> tuple[list[Answer], AcceptanceStats | None]:
        how = self._limits(each)
        if each.kind == "assisted":
            how["assistant_model"] = self._blind_or_refuse()
        elif each.kind == "prompt lookup":
            how["prompt_lookup_num_tokens"] = 4
        prompt = inputs["input_ids"]
        clock = _Clock(len(prompt))
        generator: Any = self.model  # generate comes from a mixin that is not declared
        ids = generator.generate(**inputs, **how, streamer=clock)
        answers = [self._whole(row[prompt.shape[1] :].tolist()) for row in ids]
        return [Answer(tokens, clock.times[: len(tokens)]) for tokens in answers], None

    def _loop(self, each: Contender, inputs: Inputs) -> tuple[list[Answer], AcceptanceStats | None]:
        if each.batch > 1 or each.temperature > 0:
            raise ValueError("it answers one question at a time, greedily")
        clock = _Clock(1)
        limit = self.plan.max_new_tokens
        tokens, stats = chain_loop(
            self.model, self._blind_or_refuse(), inputs, max_new_tokens=limit, on_token=clock.tick
        )
        return [Answer(tokens, clock.times)], stats

    def _whole(self, row: Sequence[int]) -> list[int]:
        """An answer without its padding."""
        end = next((i for i, token in enumerate(row) if token in self._ends), len(row) - 1)
        return list(row[: end + 1])

    def _blind_or_refuse(self) -> PreTrainedModel:
        if self.blind is None:
            raise ValueError("none of the drafters is a language model that others could use")
        return self.blind
