"""Sampled answers about an image follow the distribution of plain decoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from specdec.engine import Decoding, Engine
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Topology, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.chi_square import assert_counts_follow
from support.families.checks import build, path_logits

WORDS = (20, 40, 60, 80)
LENGTH = 4


def only_words(ids: Tensor, scores: Tensor) -> Tensor:
    allowed = torch.zeros_like(scores, dtype=torch.bool)
    allowed[:, list(WORDS)] = True
    return scores.masked_fill(~allowed, -torch.inf)


class DrawsWords:
    """Draws each node's children from the words, with unequal chances, without replacement."""

    name = "draws_words"
    model_seconds = 0.0

    def check(self, verifier: VerifierSpec) -> None:
        self.q = torch.zeros(verifier.vocab_size)
        self.q[list(WORDS)] = torch.tensor([0.4, 0.3, 0.2, 0.1])

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        """Nothing is kept."""

    def _tree(self, request: DraftRequest) -> DraftTree:
        shape = request.shape
        assert isinstance(shape, Topology)
        tokens = [request.tokens[-1]] * len(shape)
        for children in shape.children:
            if children:
                drawn = torch.multinomial(self.q, len(children)).tolist()
                for child, token in zip(children, drawn, strict=True):
                    tokens[child] = token
        q = self.q.expand(len(shape), -1)
        return DraftTree(shape, tuple(tokens), q, siblings="without_replacement")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "kimi_k25", "qwen3_5"])
def test_sampled_answers_follow_the_target(name: str) -> None:
    """Counts of all 256 answers of four words, at a temperature and within a nucleus, against
    their probabilities under plain decoding: a node that is scored at a sibling's position, or a
    state that has seen a refused token, would show. χ² with a false-failure probability of 1e-10.
    """
    model, inputs, _, together = build(name)
    given = inputs(2, 5)
    length = given["input_ids"].shape[1]
    processor = LogitsProcessorList(
        [only_words, TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.95)]
    )
    expected = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for said, mass in expected.items():
            logits = path_logits(model, given, list(said)).float()[None]
            ids = torch.cat([given["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
            probabilities = processor(ids, logits).softmax(-1)[0]
            for word in WORDS:
                longer[(*said, word)] = mass * float(probabilities[word])
        expected = {said: mass for said, mass in longer.items() if mass > 0}
    shape = chain(3) if name in families.CHAINS_ONLY else static((2, 2, 1))
    engine = Engine(TransformersVerifier(model), DrawsWords(), shape)
    rows, rounds = 100, 8
    prompt = families.prepare(model, together([given] * rows), LENGTH)
    counts = Counter[tuple[int, ...]]()
    for _ in range(rounds):
        requests = engine.submit(
            prompt, Decoding(length + LENGTH, do_sample=True, processor=processor)
        )
        while engine.has_work:
            engine.step()
        counts.update(tuple(request.output) for request in requests)
    assert 0.1 < engine.stats.draft_acceptance_rate < 0.9
    assert len(expected) > 20
    assert_counts_follow(counts, expected, rows * rounds)
