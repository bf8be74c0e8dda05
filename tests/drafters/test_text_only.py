"""The text-only drafter: what it proposes is what its model would say of the text alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.drafters import TextOnlyDrafter
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Shape, Siblings, Topology, chain, random_topology, static
from support import families

SPEC = VerifierSpec(
    name="a verifier",
    vocab_size=families.VOCAB,
    hidden_size=64,
    num_layers=3,
    visual_token_ids=frozenset([families.IMAGE]),
    eos_token_ids=frozenset([families.EOS]),
)
IMAGE = families.IMAGE
CHAIN = chain(3)


@pytest.fixture
def model() -> PreTrainedModel:
    return families.causal_lm(0, layers=2)


def drafter_of(
    model: PreTrainedModel, siblings: Siblings = "without_replacement"
) -> TextOnlyDrafter:
    drafter = TextOnlyDrafter(model, siblings)
    drafter.check(SPEC)
    return drafter


def request(
    tokens: list[int],
    request_id: int = 0,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    shape: Shape = CHAIN,
) -> DraftRequest:
    return DraftRequest(request_id, tokens, len(tokens), shape, temperature, generator)


@torch.no_grad()
def next_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Of the text without its visual tokens, positions closed up, in one plain forward."""
    text = torch.tensor([[token for token in tokens if token != IMAGE]])
    logits: Tensor = model(text).logits[0, -1]
    logits[IMAGE : IMAGE + 1] = -torch.inf  # never drafted; a small vocabulary lacks it
    return logits


def assert_top_k(model: PreTrainedModel, tokens: list[int], tree: DraftTree) -> None:
    """Every sibling set is the model's top k behind the path to its parent."""
    for node, children in enumerate(tree.topology.children):
        if children:
            path = [tree.tokens[ancestor] for ancestor in tree.topology.path(node)]
            best = next_logits(model, tokens[:-1] + path).topk(len(children)).indices.tolist()
            assert [tree.tokens[child] for child in children] == best


@pytest.mark.parametrize(
    "shape",
    [chain(5), static((3, 2, 2)), random_topology(14, 2)],
    ids=["chain", "static", "random"],
)
def test_greedy_children_are_the_top_k_of_the_text_alone(
    model: PreTrainedModel, shape: Topology
) -> None:
    """Keys of visual tokens, positions that count them, keys of a refused branch kept for the next
    proposal; over several steps, in which none, some or all of the tree is accepted."""
    drafter = drafter_of(model)
    tokens = [5, 9, *[IMAGE] * 7, 21, 33, 8]
    generator = torch.Generator().manual_seed(1)
    for step in range(8):
        (tree,) = drafter.propose([request(tokens, shape=shape)])
        assert sorted(tree.topology.depths) == sorted(shape.depths)
        assert sorted(map(len, tree.topology.children)) == sorted(map(len, shape.children))
        assert tree.q is None
        assert_top_k(model, tokens, tree)
        levels = tree.topology.levels
        deep = levels[min(step % 4, len(levels) - 1)]
        node = deep[int(torch.randint(len(deep), (1,), generator=generator))]
        accepted = [tree.tokens[ancestor] for ancestor in tree.topology.path(node)[1:]]
        tokens += [*accepted, int(torch.randint(2, 140, (1,), generator=generator))]


def test_a_batch_is_drafted_as_each_alone(model: PreTrainedModel) -> None:
    """Rows mixed up between requests of different lengths and depths, greedy and sampling."""
    drafter = drafter_of(model)
    batch = [
        request([4, 5, 6], 1),
        request([7, IMAGE, IMAGE, 8, 9, 10, 11], 2),
        request([12, 13], 3, temperature=0.8, generator=torch.Generator().manual_seed(4)),
    ]
    for each in batch:
        each.shape = static((2, 2, 1))
    batch[1].shape = static((2, 2))
    trees = drafter.propose(batch)
    alone = torch.Generator().manual_seed(4)
    batch[2].generator = alone
    for given, tree in zip(batch, trees, strict=True):
        (expected,) = drafter_of(model).propose([given])
        assert tree.tokens == expected.tokens
        assert tree.topology is expected.topology


@pytest.mark.parametrize("siblings", ["without_replacement", "with_replacement", "deterministic"])
def test_drawn_siblings_come_with_their_q(model: PreTrainedModel, siblings: Siblings) -> None:
    """A q of another temperature, node or normalisation than the one that was drawn from:
    acceptance would be wrong without any other sign."""
    drafter = drafter_of(model, siblings)
    tokens = [5, IMAGE, 9, 21]
    (tree,) = drafter.propose([request(tokens, temperature=0.7, shape=static((3, 2)))])
    assert tree.siblings == siblings
    if siblings == "deterministic":
        assert_top_k(model, tokens, tree)
        return
    assert tree.q is not None
    for node in (0, 1, 2, 3):
        path = [tree.tokens[ancestor] for ancestor in tree.topology.path(node)]
        expected = (next_logits(model, tokens[:-1] + path) / 0.7).softmax(-1)
        torch.testing.assert_close(tree.q[node], expected, atol=1e-5, rtol=1e-4)
    if siblings == "without_replacement":
        for children in tree.topology.children:
            assert len({tree.tokens[child] for child in children}) == len(children)


def test_depth_is_limited_per_request(model: PreTrainedModel) -> None:
    drafter = drafter_of(model)
    batch = [request([4, 5, 6], index) for index in range(3)]
    for depth, given in enumerate(batch):
        given.shape = chain(5).truncate(depth)
    depths = [tree.topology.depth for tree in drafter.propose(batch)]
    assert depths == [0, 1, 2]


def test_a_larger_vocabulary_never_drafts_beyond_the_verifiers(model: PreTrainedModel) -> None:
    """Padded output rows: ids that the verifier has no logits for."""
    wide = families.causal_lm(0, vocab_size=families.VOCAB + 96)
    wide.lm_head.weight.data[families.VOCAB :] *= 50.0
    drafter = drafter_of(wide)
    for temperature in (0.0, 1.0):
        given = request([4, 5], temperature=temperature, shape=static((4, 3, 2)))
        (tree,) = drafter.propose([given])
        assert max(tree.tokens) < families.VOCAB


def test_tokens_that_a_smaller_vocabulary_lacks_are_dropped() -> None:
    small = families.causal_lm(0, vocab_size=100)
    drafter = drafter_of(small)
    (tree,) = drafter.propose([request([4, 120, 5, 130, 6])])
    expected = int(next_logits(small, [4, 5, 6]).argmax())
    assert tree.tokens[1] == expected
    (tree,) = drafter.propose([request([4, 120, 5, 130, 6, 140])])
    assert len(tree) == 1, "nothing new was read, so there is nothing to draft from"


def test_release_gives_every_page_back(model: PreTrainedModel) -> None:
    drafter = drafter_of(model)
    drafter.propose([request([4, 5, 6], index, shape=static((2, 2))) for index in range(3)])
    for index in range(3):
        drafter.release(index)
        drafter.release(index)
    assert drafter._paged.kv.allocator.num_taken == 0
    drafter._paged.kv.check_integrity()


def test_time_inside_the_model_is_counted(model: PreTrainedModel) -> None:
    drafter = drafter_of(model)
    drafter.propose([request([4, 5, 6])])
    assert drafter.model_seconds > 0
