"""One question, answered under many acceptance policies.

For what they say, all policies answer at once, as rows of one batch: a row's tokens do not depend
on the others. For how long they take, each answers alone. Knows nothing of files or of right and
wrong.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from specdec.acceptance import Rule
from specdec.arguments import decodings, prepare
from specdec.engine import Engine, Request
from specdec.engine.estimates import needs
from specdec.eval.oracle import Oracle, OracleVerifier
from specdec.interfaces import Drafter, Prompt
from specdec.policies import Acceptance, Speaker, resolve
from specdec.reliance import Need
from specdec.stats import AcceptanceStats
from specdec.tree import Topology
from specdec.verifiers import TransformersVerifier

Inputs = Mapping[str, Any]  # what model.generate takes, one row


class Answer(NamedTuple):
    """``tokens``: without the prompt; ``ended``: not cut off by the length limit."""

    tokens: list[int]
    ended: bool
    stats: AcceptanceStats


class Decoder:
    """A model with its drafter, ready to answer under any policy.

    Args:
        model: the model.
        tokenizer: its tokenizer, for the guards.
        drafter: who drafts.
        tree: the largest draft.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        kv_cache_bytes: what each of its verifiers may take for keys and values; there are as many
            as there are kinds of things that the rules read. ``None`` is a quarter of what is free.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        drafter: Drafter,
        tree: Topology,
        *,
        max_new_tokens: int = 160,
        temperature: float = 0.0,
        kv_cache_bytes: int | None = None,
    ) -> None:
        self.model = model
        self._kv_bytes = kv_cache_bytes
        self._drafter = drafter
        self._tree = tree
        self._how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        if temperature > 0:
            chosen = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            self._how |= chosen
        self._tokenizer = tokenizer
        self._verifiers: dict[frozenset[Need], TransformersVerifier] = {}
        self._watching: OracleVerifier | None = None

    def rule(self, acceptance: Acceptance) -> Rule | None:
        """What a policy means for the model.

        Raises:
            ValueError: none, or one that does not go with this way of decoding.
        """
        spec = self._verifier(frozenset()).spec
        speaker = Speaker(self.model, spec, self._tokenizer, spec.eos_token_ids)
        rule = resolve(acceptance, speaker)
        if rule is not None:
            sampled = self._how["do_sample"]
            rule.check(do_sample=sampled, processed=sampled)
        return rule

    def answers(
        self,
        inputs: Inputs,
        rules: Sequence[Rule | None],
        *,
        seed: int = 0,
        others: Sequence[Inputs] = (),
    ) -> list[Answer]:
        """Answer under each rule, in order.

        Args:
            inputs: the question.
            rules: the policies.
            seed: of each of them alike, so that answers part only where policies do.
            others: pixels of other images, for oracles.
        """
        asks_oracle = [bool(rule and isinstance(rule.reliance, Oracle)) for rule in rules]
        answers: dict[int, Answer] = {}
        for oracle in (False, True):
            rows = [i for i, asks in enumerate(asks_oracle) if asks == oracle]
            if not rows:
                continue
            verifier = self._oracle(others) if oracle else self._verifier(_ALL)
            requests, _ = self._run(verifier, self._drafter, inputs, [rules[i] for i in rows], seed)
            answers |= zip(rows, map(_answer, requests), strict=True)
        return [answers[i] for i in range(len(rules))]

    def times(
        self, inputs: Inputs, rules: Mapping[str, Rule | None], *, seed: int = 0
    ) -> dict[str, float]:
        """Milliseconds a token in steps, prefill excluded, of each policy alone, and of the model
        without a drafter under the name "plain".

        Each has a verifier that gives what its rule reads and nothing else. They take turns in an
        order drawn from ``seed``.
        """
        turns: list[tuple[str, Drafter | None, Rule | None]] = [("plain", None, None)]
        turns += [(name, self._drafter, rule) for name, rule in rules.items()]
        verifiers = {name: self._verifier(needs(rule)) for name, _, rule in turns}
        for verifier in set(verifiers.values()):  # so that all find the image's keys alike
            self._run(verifier, None, inputs, [None], seed)
        random.Random(seed).shuffle(turns)
        times = {}
        for name, drafter, rule in turns:
            _, stats = self._run(verifiers[name], drafter, inputs, [rule], seed)
            # The first token comes with the prefill.
            stepped = stats.num_generated_tokens - 1
            times[name] = 1000 * stats.times.step / stepped if stepped else math.nan
        return times

    @torch.no_grad()
    def _run(
        self,
        verifier: TransformersVerifier,
        drafter: Drafter | None,
        inputs: Inputs,
        rules: Sequence[Rule | None],
        seed: int,
    ) -> tuple[list[Request], AcceptanceStats]:
        if len(rules) > 1:
            # One row's keys first: a batch would run the vision tower for each of its rows.
            prompt, _ = self._prepared(inputs, 1)
            handles = verifier.prefill(prompt, room=1).handles
            verifier.release(handles[0])
        prompt, each = self._prepared(inputs, len(rules))
        own = [
            replace(decoding, rule=rule, generator=torch.Generator().manual_seed(seed))
            for decoding, rule in zip(each, rules, strict=True)
        ]
        engine = Engine(verifier, drafter, self._tree)
        try:
            requests = engine.submit(prompt, own)
            while engine.has_work:
                engine.step()
        finally:
            engine.close()
        return requests, engine.stats

    def _prepared(self, inputs: Inputs, rows: int) -> tuple[Prompt, list[Any]]:
        repeated = {
            name: value.repeat(rows, *[1] * (value.ndim - 1)) for name, value in inputs.items()
        }
        prepared = prepare(self.model, {**repeated, **self._how})
        prompt = Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)
        return prompt, decodings(prepared, None)

    def _verifier(self, wanted: frozenset[Need]) -> TransformersVerifier:
        taps = wanted - {"divergence"}
        if taps not in self._verifiers:
            self._verifiers[taps] = TransformersVerifier(
                self.model,
                kv_cache_bytes=self._kv_bytes,
                hidden="hidden" in taps,
                visual_mass="visual_mass" in taps,
            )
        return self._verifiers[taps]

    def _oracle(self, others: Sequence[Inputs]) -> OracleVerifier:
        if self._watching is None:
            self._watching = OracleVerifier(self.model, kv_cache_bytes=self._kv_bytes)
        self._watching.others = list(others)
        return self._watching


_ALL: frozenset[Need] = frozenset({"hidden", "visual_mass"})


def _answer(request: Request) -> Answer:
    said = request.output
    return Answer(said, said[-1] in request.decoding.eos_token_ids, request.stats)
