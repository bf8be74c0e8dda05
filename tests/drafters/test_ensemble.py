"""Several drafters, one tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import specdec
from specdec.choice import resolve_drafter
from specdec.drafters import EnsembleDrafter, NgramDrafter, TextOnlyDrafter
from specdec.engine import Decoding, Engine
from specdec.interfaces import Drafter, DraftRequest, Prompt, Reads, VerifierSpec, reads_of
from specdec.tree import DraftTree, Dynamic, Shape, chain, static, topology
from specdec.verifiers import TransformersVerifier
from support import families
from support.chi_square import assert_counts_follow
from support.laws import sequence_distribution

SPEC = VerifierSpec("a verifier", 100, 8, 1, frozenset(), frozenset())
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}


class Scripted:
    """Proposes given paths, as far as its shape has room, and keeps what it was asked."""

    model_seconds = 0.25

    def __init__(self, name: str, paths: Sequence[Sequence[int]], reads: Reads | None = None):
        self.name = name
        self.paths = paths
        self.reads = reads or Reads()
        self.asked: list[DraftRequest] = []
        self.taken: list[float] = []
        self.released: list[int] = []

    def check(self, verifier: VerifierSpec) -> None:
        if verifier.vocab_size != 100:
            raise ValueError(f"{self.name} does not fit {verifier.name}")

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        return [self._tree(request) for request in batch]

    def release(self, request_id: int) -> None:
        self.released.append(request_id)

    def _tree(self, request: DraftRequest) -> DraftTree:
        self.asked.append(request)
        if self.reads.layers:
            self.taken += [float(part.sum()) for part in request.states]
            request.states.clear()
        tokens, parents, children = [request.tokens[-1]], [-1], dict[tuple[int, int], int]()
        for path in self.paths:
            node = 0
            for token in path[: request.shape.depth]:
                if (node, token) not in children:
                    if len(tokens) == len(request.shape):
                        break
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]
        return DraftTree(topology(tuple(parents)), tuple(tokens))


def paths_of(tree: DraftTree) -> set[tuple[int, ...]]:
    shape = tree.topology
    leaves = [node for node in range(len(tree)) if not shape.children[node]]
    return {tuple(tree.tokens[node] for node in shape.path(leaf)) for leaf in leaves}


def request(shape: Shape, tokens: list[int] | None = None, **how: Any) -> DraftRequest:
    tokens = tokens or [5, 6, 7]
    return DraftRequest(0, tokens, len(tokens), shape, **how)


def test_common_beginnings_are_merged() -> None:
    """A token twice among siblings would be accepted twice as often when sampling."""
    members = [Scripted("a", [[1, 2, 3]]), Scripted("b", [[1, 2, 4], [8]])]
    (tree,) = EnsembleDrafter(members).propose([request(Dynamic(12, 3))])
    assert paths_of(tree) == {(7, 1, 2, 3), (7, 1, 2, 4), (7, 8)}
    assert len(tree) == 6
    assert tree.q is None
    assert tree.siblings == "deterministic"


SHAPES = [Dynamic(6, 3), static((3, 2)), chain(4), Dynamic(5, 5, width=1), chain(1), chain(0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_larger_than_the_shape(shape: Shape) -> None:
    """Verifiers that take chains only would break on a branch, others on a node too many."""
    wide = [[i, 10 + i, 20 + i, 30 + i, 40 + i] for i in range(5)]
    members = [Scripted("a", wide), Scripted("b", wide[::-1]), Scripted("c", wide[2:])]
    ensemble = EnsembleDrafter(members)
    for _ in range(20):
        (tree,) = ensemble.propose([request(shape)])
        assert len(tree) <= len(shape)
        assert tree.topology.depth <= shape.depth
        assert tree.topology.is_chain or not shape.is_chain
        assert len(tree) > 1 or len(shape) == 1


@pytest.mark.parametrize("shape", [Dynamic(6, 6), Dynamic(6, 6, width=1), chain(6)], ids=str)
def test_who_has_nothing_to_say_leaves_its_share(shape: Shape) -> None:
    """Half of the nodes of every step would be wasted on a look-up that finds nothing."""
    members = [Scripted("silent", []), Scripted("b", [[1, 2, 3, 4, 5, 6]])]
    for seed in range(5):
        (tree,) = EnsembleDrafter(members, seed).propose([request(shape)])
        assert paths_of(tree) == {(7, 1, 2, 3, 4, 5, 6)}


@pytest.mark.parametrize("shape", [Dynamic(12, 6, width=3), chain(6)], ids=str)
def test_who_is_right_gets_the_nodes(shape: Shape) -> None:
    """Shares by what was proposed instead of what was accepted; and, where it turns, old merits
    that count for ever.
    """
    members = [Scripted("wrong", [[1] * 6, [2] * 6]), Scripted("right", [[3] * 6, [4] * 6])]
    ensemble, tokens, last = EnsembleDrafter(members), [5, 6, 7], list[int]()
    for step in range(240):
        good = 3 if step < 120 else 1
        (tree,) = ensemble.propose([request(shape, tokens)])
        assert tree.tokens[0] == tokens[-1]
        nodes = list(tree.follow([good] * 6))
        last.append(sum(token in (3, 4) for token in tree.tokens[1:]))
        tokens += [good] * len(nodes) + [9]
        if step in (119, 239):
            share = sum(last[-40:]) / 40 / (len(shape) - 1)
            assert share > 0.6 if step < 120 else share < 0.4
    assert all(member.asked for member in members)


def test_merits_are_shared_across_requests() -> None:
    """A new request begins with what is known of the members, not with nothing."""
    members = [Scripted("wrong", [[1] * 4, [2] * 4]), Scripted("right", [[3] * 4, [4] * 4])]
    ensemble, tokens = EnsembleDrafter(members), [5, 6, 7]
    for _ in range(100):
        (tree,) = ensemble.propose([request(Dynamic(8, 4), tokens)])
        tokens += [3] * len(list(tree.follow([3] * 4))) + [9]
    ensemble.release(0)
    assert members[0].released == members[1].released == [0]
    asked = len(members[0].asked)
    for _ in range(20):
        ensemble.propose([request(Dynamic(8, 4))])
    budgets = [len(each.shape) - 1 for each in members[0].asked[asked:]]
    assert sum(budgets) / 20 < 3


def test_members_are_asked_as_for_greedy_requests() -> None:
    """A member that draws its children gives a tree that is no point mass; its q would be lost."""
    member = Scripted("a", [[1]])
    asked = request(Dynamic(4, 2), temperature=0.7, wants_q=True, generator=torch.Generator())
    EnsembleDrafter([member, NgramDrafter()]).propose([asked])
    (seen,) = member.asked
    assert (seen.temperature, seen.wants_q, seen.generator) == (0.0, False, None)
    assert (asked.temperature, asked.wants_q) == (0.7, True)
    assert seen.tokens is asked.tokens


def test_each_reader_gets_all_hidden_states() -> None:
    """The first reader would take what the second needs; one that is not asked in a step would miss
    what came in it.
    """
    reads = Reads(layers=(1, 3), pages=True)
    a, b = Scripted("a", [[1]], reads), Scripted("b", [[2]], reads)
    ensemble = EnsembleDrafter([NgramDrafter(), a, b])
    assert reads_of(ensemble) == reads
    tokens = [5, 6, 7]
    for step in range(30):
        tokens.append(step + 10)
        ensemble.propose([request(chain(1), tokens, states=[torch.tensor([float(step)])])])
    for member in (a, b):
        assert member.taken == [float(step) for step in range(len(member.taken))]
        assert member.taken


def test_what_cannot_go_together_is_refused() -> None:
    a, b = Scripted("a", [], Reads(layers=(1,))), Scripted("b", [], Reads(layers=(2,)))
    with pytest.raises(ValueError, match=r"a reads .*\(1,\).* b .*\(2,\)"):
        EnsembleDrafter([a, b])
    with pytest.raises(ValueError, match="got none"):
        EnsembleDrafter([])
    other = VerifierSpec("another verifier", 50, 8, 1, frozenset(), frozenset())
    with pytest.raises(ValueError, match="b does not fit another verifier"):
        EnsembleDrafter([NgramDrafter(), b]).check(other)
    ensemble = EnsembleDrafter([NgramDrafter(), b])
    assert (ensemble.name, ensemble.model_seconds) == ("ngram+b", 0.25)
    ensemble.check(SPEC)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


@pytest.mark.parametrize("tree", [4, static((3, 2)), Dynamic(10, 4), "auto"], ids=str)
def test_tokens_are_those_of_plain_decoding(model: PreTrainedModel, tree: Any) -> None:
    ids = torch.randint(2, 140, (3, 9))
    plain = model.generate(ids, **GREEDY)
    members: list[Any] = ["ngram", families.causal_lm(4)]
    drafter = resolve_drafter(members, model)
    assert isinstance(drafter, EnsembleDrafter)
    taken: list[tuple[int, int]] = []

    def look(_: Any) -> None:
        network = drafter.drafters[1]
        assert isinstance(network, TextOnlyDrafter)
        taken.append((drafter.bytes_taken, network.bytes_taken))

    out = specdec.generate(model, ids, drafter=drafter, tree=tree, on_emission=look, **GREEDY)
    assert out.tolist() == plain.tolist()
    assert all(ours == theirs for ours, theirs in taken)
    assert max(taken) > (0, 0) or tree == "auto"
    assert drafter.name == "ngram+text_only"
    assert not drafter._states
    with pytest.raises(ValueError, match="None is no drafter"):
        specdec.generate(model, ids, drafter=["ngram", None], **GREEDY)


@pytest.mark.parametrize("shape", [static((2, 2)), Dynamic(5, 2, width=2), chain(2)], ids=str)
def test_sampled_answers_follow_the_target(shape: Shape) -> None:
    """The whole engine over a vocabulary of 6: counts of all 216 answers of three tokens against
    their probabilities; a q that no child was drawn from, or a token twice among siblings, would
    show. χ² with a false-failure probability of 1e-10 each.
    """
    verifier_model = families.causal_lm(1, layers=2, vocab_size=6, pad_token_id=None)
    drafter_model = families.causal_lm(2, layers=1, vocab_size=6, pad_token_id=None)
    for part in (verifier_model, drafter_model):
        part.lm_head.weight.data.mul_(0.35)
    ids = torch.tensor([[2, 4, 3, 2]])
    members: list[Drafter] = [NgramDrafter(), TextOnlyDrafter(drafter_model)]
    engine = Engine(TransformersVerifier(verifier_model), EnsembleDrafter(members), shape)
    trials, counts = 1500, Counter[tuple[int, ...]]()
    for _ in range(trials // 500):
        decoding = Decoding(max_length=7, do_sample=True)
        prompt = Prompt(ids.expand(500, -1), (0,) * 500, {})
        requests = engine.submit(prompt, decoding)
        while engine.has_work:
            engine.step()
        counts.update(tuple(each.output) for each in requests)
    assert 0.1 < engine.stats.draft_acceptance_rate < 0.9
    assert_counts_follow(counts, sequence_distribution(verifier_model, ids, 3), trials)
