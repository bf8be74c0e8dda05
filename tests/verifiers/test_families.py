"""Real families, built small: node logits and whole answers against transformers' own decoding."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import specdec
from specdec.choice import resolve_drafter
from specdec.drafters import TextOnlyDrafter
from specdec.engine import Decoding, Engine, Limits
from specdec.tree import DraftTree, chain, static
from specdec.verifiers import TransformersVerifier
from specdec.verifiers.spec import unsupported
from support import families
from support.fake_drafters import GuessingDrafter
from support.families import checks
from support.families.checks import TREES, build, partly_right, shapes

# The full check takes more than a test run has: 20 prompts of 64 tokens, for every family and each
# tree with each drafter (tests/families_table.py). Ten have each place of an image twice.
PROMPTS = int(os.environ.get("SPECDEC_FAMILY_PROMPTS", "10"))
# Between the two largest logits, relative to the largest. Where a router is nearly undecided as
# well, rounding picks another expert, and that is no small difference: seen up to 0.16.
BF16_GAP = 0.05
BF16_GAP_OF_EXPERTS = 0.3
EXPERTS = frozenset({"llama4", "qwen3_vl_moe", "kimi_k25", "deepseek_v3"})
NEW_TOKENS = int(os.environ.get("SPECDEC_FAMILY_TOKENS", "24"))


def cases() -> Iterator[tuple[str, str, str]]:
    """A family, a tree and a drafter: each tree with the drafter that is often right, since that
    one makes most commits, and each other drafter with one tree, which differs between families.
    """
    for place, name in enumerate(families.NAMES):
        trees = list(shapes(name))
        yield from ((name, tree, "partly_right") for tree in trees)
        for turn, kind in enumerate(("text_only", "ngram", "random")):
            yield name, trees[(place + turn) % len(trees)], kind


def answers(name: str) -> list[tuple[families.Inputs, Tensor]]:
    return checks.answers(name, PROMPTS, NEW_TOKENS)


def drafter(kind: str, name: str) -> Any:
    if kind == "ngram":
        return "ngram"
    if kind == "text_only":
        return families.causal_lm(3)
    if kind == "random":
        return GuessingDrafter(seed=1)
    return partly_right(answers(name))


@pytest.mark.parametrize(("name", "tree", "kind"), list(cases()))
def test_greedy_answers_are_those_of_generate(name: str, tree: str, kind: str) -> None:
    """The one property that everything else serves, in fp32, token by token: ten prompts each,
    all in one ragged batch."""
    model = build(name).model
    verifier = TransformersVerifier(model)
    guesser = resolve_drafter(drafter(kind, name), model)
    said, engine = checks.run(
        model, verifier, answers(name), guesser, shapes(name)[tree], NEW_TOKENS
    )
    for index, (answer, (given, plain)) in enumerate(zip(said, answers(name), strict=True)):
        assert answer == plain[0, given["input_ids"].shape[1] :].tolist(), f"prompt {index}"
    if kind == "partly_right":
        assert engine.stats.num_accepted_draft_tokens > PROMPTS * NEW_TOKENS / 3, (
            "too few were accepted for a wrong commit to show"
        )
    verifier.check_integrity()
    assert verifier.pages_taken == 0


@pytest.mark.parametrize("name", families.NAMES)
def test_generate_answers_alone_as_in_a_batch(name: str) -> None:
    """The same through the front door, one prompt at a time."""
    model = build(name).model
    for given, plain in answers(name)[:4]:
        out = specdec.generate(
            model,
            **given,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            drafter=families.causal_lm(3),
            tree=list(shapes(name).values())[1],
        )
        assert out.tolist() == plain.tolist()


# Those whose prompts have to be run whole: their text tower is told more of an image than what its
# tokens' embeddings say, its tokens see each other, or it keeps states.
WHOLE = frozenset({"gemma3", "gemma4", "gemma4_shared", "paligemma", "mllama", "qwen3_5"})
WHOLE |= {"qwen3_vl", "qwen3_vl_moe"}


@pytest.mark.parametrize("name", families.NAMES)
def test_prompts_run_in_pieces_answer_as_in_generate(name: str) -> None:
    """Requests that come at any step, their prompts cut anywhere, within an image as well, and run
    beside trees of others: positions of a piece, features of another image, a piece that is
    forgotten or run twice.
    """
    model, pairs = build(name).model, answers(name)[:8]
    verifier = TransformersVerifier(model, page_size=4)
    shape = shapes(name)["chain" if name in families.CHAINS_ONLY else "static"]
    limits = Limits(max_batch=3, max_step_tokens=40)
    engine = Engine(verifier, partly_right(pairs), shape, limits)
    requests, in_pieces = [], 0
    for given, _ in pairs:
        prompt = verifier.encode(families.prepare(model, given, NEW_TOKENS))
        in_pieces += prompt.encoded is not None
        limit = prompt.input_ids.shape[1] + NEW_TOKENS
        decoding = Decoding(max_length=limit, eos_token_ids=frozenset([families.EOS]))
        requests += engine.submit(prompt, decoding)
        engine.step()
        verifier.check_integrity()
    while engine.has_work:
        engine.step()
        assert engine.num_running + engine.num_prefilling <= 3
    for request, (given, plain) in zip(requests, pairs, strict=True):
        assert request.output == plain[0, given["input_ids"].shape[1] :].tolist()
    assert (in_pieces == len(pairs)) == (name not in WHOLE)
    assert verifier.pages_taken == 0


@pytest.mark.parametrize("name", families.NAMES)
def test_a_padded_batch_answers_as_in_transformers(name: str) -> None:
    """Rows of different lengths, with images of different sizes and without any, left-padded:
    states, latents or masks of another row, and positions that count padding where transformers'
    do not or the other way round.
    """
    model, inputs, layouts, together = build(name)
    # Where images and videos cannot be told apart in a prompt, neither can they in a batch.
    left_out = {"none"} if "mixed" in layouts else {"none", "video"}
    order = [*[layout for layout in layouts if layout not in left_out], "none"]
    rows = [inputs(seed, 4 + 2 * seed, order[seed % len(order)]) for seed in range(len(order))]
    batch = together(rows)
    length = batch["input_ids"].shape[1]
    plain = model.generate(**batch, max_new_tokens=12, do_sample=False)
    truth = {}
    for row, answer in zip(rows, plain, strict=True):
        truth[tuple(row["input_ids"][0].tolist())] = answer[length:].tolist()
    guesser = GuessingDrafter(truth, right=0.75, seed=2)
    how: dict[str, Any] = {"drafter": guesser, "tree": list(shapes(name).values())[1]}
    out = specdec.generate(model, **batch, max_new_tokens=12, do_sample=False, **how)
    assert out.tolist() == plain.tolist()


@pytest.mark.parametrize("name", families.NAMES)
def test_answers_vary_and_depend_on_the_image(name: str) -> None:
    """A model whose answers do not vary, or that ignores its image, would prove little above."""
    model = build(name).model
    distinct, changed = [], []
    for given, plain in answers(name):
        length = given["input_ids"].shape[1]
        distinct.append(len(set(plain[0, length:].tolist())))
        pixels = {key: value for key, value in given.items() if key.startswith("pixel_values")}
        if pixels:
            swapped = given | {key: value.flip(-1) + 1.0 for key, value in pixels.items()}
            other = model.generate(**swapped, max_new_tokens=NEW_TOKENS, do_sample=False)
            changed.append(other.tolist() != plain.tolist())
    assert sorted(distinct)[PROMPTS // 2] >= 6
    if name in families.SIGHTED:
        assert len(changed) >= PROMPTS * 3 // 4
        assert sum(changed) >= len(changed) * 3 // 4


@pytest.mark.parametrize("name", families.NAMES)
def test_every_node_matches_plain_decoding_of_its_path(name: str) -> None:
    """Positions (M-RoPE's jump behind an image), sliding windows and masks of tree nodes.

    Relative to the logits' size, 1e-5 in fp32; seen: below 3e-6.
    """
    for seed, layout in enumerate(build(name).layouts):
        assert checks.node_error(name, seed, layout) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", families.NAMES)
def test_in_bf16_only_near_ties_differ(name: str) -> None:
    """A bf16 logit has eight bits: near the largest they are 0.4 % of it apart, and a forward over
    five nodes rounds otherwise than one over one. What differs by more is no rounding.
    """
    prompts = max(PROMPTS // 2, len(build(name).layouts))  # each place of an image
    found = checks.rounded(name, prompts, NEW_TOKENS)
    assert found.tokens > prompts * NEW_TOKENS / 3
    assert found.gap <= (BF16_GAP_OF_EXPERTS if name in EXPERTS else BF16_GAP)


def test_the_spec_is_read_off_the_config() -> None:
    spec = TransformersVerifier(build("qwen2_5_vl").model).spec
    assert (spec.vocab_size, spec.hidden_size, spec.num_layers) == (families.VOCAB, 64, 3)
    assert spec.visual_token_ids == {families.IMAGE, 151}
    assert spec.eos_token_ids == {families.EOS}
    assert "Qwen2_5_VLForConditionalGeneration" in spec.name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"layer_types": ["full_attention", "hybrid"]}, "layers of type hybrid"),
    ],
    ids=["encoder_decoder", "hybrid"],
)
def test_what_cannot_be_run_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    model = families.causal_lm(0, layers=2)
    for key, value in changes.items():
        setattr(model.config, key, value)
    assert any(reason in problem for problem in unsupported(model))
    with pytest.raises(ValueError, match=reason):
        TransformersVerifier(model)


def test_trees_for_a_state_that_cannot_branch_are_refused_by_name() -> None:
    """Before any work is done; and a drafter's tree that is no chain, though a chain was asked."""
    model, inputs, *_ = build("qwen3_5")
    given = inputs(0, 5)
    with pytest.raises(ValueError, match=r"Qwen3_5.* cannot branch, and the tree of 11 nodes does"):
        specdec.generate(model, **given, drafter="ngram", tree=TREES["static"])
    verifier = TransformersVerifier(model)
    with torch.no_grad():
        handles = verifier.prefill(families.prepare(model, given, 4), room=20).handles
    with pytest.raises(ValueError, match=r"Qwen3_5.* chains only"):
        verifier.verify(handles, [DraftTree(static((2,)), (5, 6, 7))])


@pytest.mark.parametrize("name", ["qwen3_5", "mllama"])
def test_models_that_keep_states_do_not_draft(name: str) -> None:
    with pytest.raises(ValueError, match=r"keeps more of a text than keys.* verifiers only"):
        TextOnlyDrafter(build(name).model)


def test_a_state_outlives_many_refusals() -> None:
    """A drafter that is never right: what was accepted runs again with the next nodes until it is
    too much, then alone. A state that is a token ahead or behind would show, and so would pages
    that are lost, or forwards that grow with the answer.
    """
    model, inputs, *_ = build("qwen3_5")
    given = inputs(1, 6)
    length = given["input_ids"].shape[1]
    plain = model.generate(**given, max_new_tokens=60, do_sample=False, eos_token_id=None)
    verifier = TransformersVerifier(model, page_size=4)
    engine = Engine(verifier, GuessingDrafter(seed=1), chain(2))
    (request,) = engine.submit(families.prepare(model, given, 60), Decoding(max_length=length + 60))
    engine.step()
    sizes: list[int] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    while engine.has_work:
        engine.step()
        verifier.check_integrity()
    hook.remove()
    assert request.output == plain[0, length:].tolist()
    assert 16 < max(sizes) <= 15 + 3
    assert verifier.pages_taken == 0
