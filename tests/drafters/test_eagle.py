"""The EAGLE drafter: what it proposes is what its head says of the verifier's own states.

The oracle knows no pages, waves or trees: it runs the head token by token over everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import specdec
from specdec.drafters import load_drafter
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_files import save_eagle
from specdec.drafters.eagle_head import EagleConfig, EagleHead, Vision
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.tree import DraftTree, Dynamic, Shape, chain, static, topology
from specdec.verifiers import TransformersVerifier
from support import families

LAYERS = (0, 1, 2)
SHAPES = [chain(4), static((3, 2, 1)), Dynamic(9, 4, 3), Dynamic(4, 4, 1)]
SHAPE_IDS = ["chain", "static", "dynamic", "dynamic-chain"]


def head_for(model: PreTrainedModel, vision: Vision = "hidden", **changes: Any) -> EagleHead:
    """A random head for this verifier."""
    text = model.config.get_text_config(decoder=True)
    kv_heads = text.num_key_value_heads
    torch.manual_seed(5)
    config = EagleConfig(
        hidden_size=text.hidden_size,
        intermediate_size=24,
        num_attention_heads=2 * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab_size=text.vocab_size,
        draft_vocab_size=text.vocab_size,
        target_hidden_size=text.hidden_size,
        layers=LAYERS,
        rope_parameters=text.rope_parameters,
        vision=vision,
        queries=3,
        shared_layer=1 if vision == "shared" else None,
    )
    head = EagleHead(EagleConfig.from_dict({**config.to_dict(), **changes})).eval()
    with torch.no_grad():
        head.lm_head.weight.mul_(8.0)  # sharp enough for chains to be told apart
    return head


class Recorder:
    """Lets a drafter propose, and notes of what text and what it said."""

    name = "recorder"

    def __init__(self, drafter: EagleDrafter, wants_q: bool = True) -> None:
        self.drafter = drafter
        self.reads = drafter.reads
        self.wants_q = wants_q
        self.said: list[tuple[list[int], DraftTree]] = []

    @property
    def model_seconds(self) -> float:
        return self.drafter.model_seconds

    def check(self, verifier: VerifierSpec) -> None:
        self.drafter.check(verifier)

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        for request in batch:
            request.wants_q = self.wants_q
        trees = self.drafter.propose(batch)
        self.said += [(list(r.tokens), tree) for r, tree in zip(batch, trees, strict=True)]
        return trees

    def release(self, request_id: int) -> None:
        self.drafter.release(request_id)


class Read(NamedTuple):
    """Of a whole text: states ``(T, 3H)``, positions ``(R, T)``, keys and values of layer 1."""

    states: Tensor
    positions: Tensor
    keys: Tensor
    values: Tensor


def extended(given: dict[str, Tensor], tokens: list[int]) -> dict[str, Tensor]:
    """The same prompt with this text, which goes on from it."""
    kwargs = dict(given) | {"input_ids": torch.tensor([tokens])}
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in given:
            extra = len(tokens) - given[name].shape[1]
            last = 1 if name == "attention_mask" else 0
            more = torch.full((1, extra), last, dtype=given[name].dtype)
            kwargs[name] = torch.cat([given[name], more], 1)
    return kwargs


@torch.no_grad()
def read(model: PreTrainedModel, given: dict[str, Tensor], tokens: list[int]) -> Read:
    """In one plain forward of the verifier."""
    kwargs: dict[str, Any] = dict(extended(given, tokens))
    seen: list[Tensor] = []
    decoder: Any = model.get_decoder()
    watch = decoder.register_forward_pre_hook(
        lambda module, args, kw: seen.append(kw["position_ids"]) or None, with_kwargs=True
    )
    cache = DynamicCache()
    out = model(**kwargs, output_hidden_states=True, past_key_values=cache, use_cache=True)
    watch.remove()
    states = torch.cat([out.hidden_states[k][0] for k in LAYERS], -1)
    positions = torch.arange(len(tokens))[None]
    if seen and seen[0] is not None:
        positions = seen[0] if seen[0].ndim == 2 else seen[0][:, 0]
    layer: Any = cache.layers[1]
    return Read(states, positions, layer.keys[0], layer.values[0])


@torch.no_grad()
def oracle(
    head: EagleHead, model: PreTrainedModel, seen: Read, text: list[int], prompt: int
) -> Any:
    """A function from a path of drafted tokens to the head's logits behind it."""
    vision, embeddings = head.config.vision, model.get_input_embeddings()
    # An answer may say anything, the placeholder of an image too.
    visual = [token == families.IMAGE and place < prompt for place, token in enumerate(text)]
    last = max((place for place, is_visual in enumerate(visual) if is_visual), default=-1)
    fused = head.fuse(seen.states)
    far: tuple[Tensor, Tensor] | None = None
    if vision == "shared" and last >= 0:
        # Pages of 16 that end with the last visual token, from the first that has one.
        start = max(0, last + 1 - -(-(last + 1 - visual.index(True)) // 16) * 16)
        far = seen.keys[None, :, start : last + 1], seen.values[None, :, start : last + 1]
    rows: list[tuple[Tensor, Tensor, Tensor]] = []  # embedding, feature, position
    glance = torch.zeros(head.config.hidden_size)
    for j in range(1, len(text)):
        after_image = not visual[j] and visual[j - 1]
        if after_image and vision == "compressed":
            first = j - 1
            while first and visual[first - 1]:
                first -= 1
            assert head.compress is not None
            compressed, glance = head.compress(fused[first:j])
            rows += [(vector, vector, seen.positions[:, j - 1]) for vector in compressed]
        if vision != "hidden" and visual[j]:
            continue
        embed = embeddings(torch.tensor(text[j]))
        rows.append((embed, fused[j - 1] + glance, seen.positions[:, j - 1]))

    def run(path: list[int]) -> Tensor:
        mine: list[tuple[Tensor, Tensor]] = []

        def step(embed: Tensor, feature: Tensor, position: Tensor) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                mine.append((k, v))
                parts = [*([far] if far is not None else []), *mine]
                keys, values = (torch.cat(each, 2) for each in zip(*parts, strict=True))
                groups = q.shape[1] // keys.shape[1]
                keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
                weights = (q @ keys.mT * q.shape[-1] ** -0.5).softmax(-1)
                return weights @ values

            return head(embed[None, None], feature[None, None], position[:, None], attend)[0, 0]

        for row in rows:
            hidden = step(*row)
        for depth, token in enumerate(path, start=1):
            position = rows[-1][2] + depth
            hidden = step(embeddings(torch.tensor(token)), hidden + glance, position)
        return head.logits(hidden)

    return run


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_it_says_what_its_head_says(name: str, vision: Vision, shape: Shape) -> None:
    """States of another token or layer, positions off by one or without the image's rows, keys of
    guessed states kept once tokens are accepted, another node's state given to a child, pages of
    the verifier that hold something else: q of every inner node is compared, along an answer.

    1e-4: fp32 sums in another order, eight times as large logits.
    """
    model, inputs, _, _ = families.build(name)
    given = dict(inputs(3, 6))
    recorder = Recorder(EagleDrafter(head_for(model, vision), model.get_input_embeddings()))
    specdec.generate(
        model, drafter=recorder, tree=shape, **given, max_new_tokens=12, do_sample=False
    )
    assert len(recorder.said) >= 3
    for text, tree in recorder.said[:1] + recorder.said[-2:]:
        seen = read(model, given, text)
        say = oracle(recorder.drafter.head, model, seen, text, given["input_ids"].shape[1])
        for node, children in enumerate(tree.topology.children):
            if not children:
                continue
            path = [tree.tokens[step] for step in tree.topology.path(node)][1:]
            logits = say(path)
            logits[list(recorder.drafter._visual)] = -torch.inf
            assert tree.q is not None
            torch.testing.assert_close(tree.q[node], logits.softmax(-1), atol=1e-4, rtol=1e-3)
            best = logits.topk(len(children)).indices.tolist()
            assert [tree.tokens[child] for child in children] == best


class Right(Recorder):
    """Proposes the true continuation, whatever its drafter said: in a tree that lists it last, or
    as a chain.
    """

    answer: list[int]
    alone = False

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        super().propose(batch)
        (request,) = batch
        said = len(request.tokens) - request.prompt_length
        right = self.answer[said : said + request.shape.depth]
        if self.alone:
            return [DraftTree(chain(len(right)), (request.tokens[-1], *right))]
        wrong = [(token + 1) % families.VOCAB for token in right]
        shape = topology((-1, 0, 0, 2, 3)[: 2 + len(right)] if right else (-1,))
        tokens = (request.tokens[-1], *wrong[:1], *right)
        return [DraftTree(shape, tokens[: len(shape)])]


@pytest.mark.parametrize("alone", [False, True], ids=["tree", "chain"])
@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_all_accepted_tokens_are_taken_in(vision: Vision, alone: bool) -> None:
    """States of accepted tokens in another order, of refused nodes, or one of them lost: what the
    head says behind three accepted tokens at a time, against the oracle.
    """
    model, inputs, _, _ = families.build("llava")
    given = dict(inputs(3, 6))
    plain: Any = model
    limits: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False}
    prompt = given["input_ids"].shape[1]
    answer = plain.generate(**given, **limits)[0, prompt:].tolist()
    recorder = Right(EagleDrafter(head_for(model, vision), model.get_input_embeddings()))
    recorder.answer, recorder.alone = answer, alone
    tree = chain(3) if alone else static((2, 1, 1))
    out = specdec.generate(model, drafter=recorder, tree=tree, **given, **limits)
    assert out.stats.mean_acceptance_length > 3
    for text, tree in recorder.said:
        if tree.q is None:
            continue
        say = oracle(recorder.drafter.head, model, read(model, given, text), text, prompt)
        logits = say([])
        logits[list(recorder.drafter._visual)] = -torch.inf
        torch.testing.assert_close(tree.q[0], logits.softmax(-1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_what_is_cached_is_taken_in_as_well(name: str, vision: Vision) -> None:
    """A second turn finds prompt, image and most of the first answer in the cache; the head has to
    draft as if it had not: states of other tokens, of refused nodes or of no one's, or none at all,
    show as other distributions.
    """
    model, inputs, _, _ = families.build(name)
    head = head_for(model, vision)
    verifier = TransformersVerifier(model, page_size=4, taps=head.config.layers)
    plain: Any = model
    # An answer that held visual tokens could not be part of a prompt.
    visual = sorted(verifier.spec.visual_token_ids)
    limits: dict[str, Any] = {"max_new_tokens": 14, "do_sample": False, "suppress_tokens": visual}
    given = dict(inputs(3, 6))
    for turn in range(2):
        prompt = given["input_ids"].shape[1]
        answer = plain.generate(**given, **limits)[0, prompt:].tolist()
        recorder = Right(EagleDrafter(head, model.get_input_embeddings()))
        recorder.answer = answer
        out = specdec.generate(
            model, drafter=recorder, verifier=verifier, tree=static((2, 1, 1)), **given, **limits
        )
        assert out[0, prompt:].tolist() == answer
        compared = 0
        for text, tree in recorder.said:
            if tree.q is not None:
                say = oracle(head, model, read(model, given, text), text, prompt)
                logits = say([])
                logits[visual] = -torch.inf
                torch.testing.assert_close(tree.q[0], logits.softmax(-1), atol=1e-4, rtol=1e-3)
                compared += 1
        assert compared >= 3
        if turn == 1:
            assert out.stats.num_cached_tokens >= prompt - 3 - 8
        given = extended(given, [*given["input_ids"][0].tolist(), *answer, 5, 6, 7])
    verifier.check_integrity()


@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_a_batch_is_drafted_as_each_alone(vision: Vision) -> None:
    """States, positions or pages mixed up between requests of different lengths, one without an
    image.
    """
    model, inputs, layouts, together = families.build("llava")
    rows = [inputs(3, 6), inputs(4, 11), inputs(5, 4, layouts[-1])]
    trees = []
    for batch in ([together(rows)], rows):
        recorder = Recorder(EagleDrafter(head_for(model, vision), model.get_input_embeddings()))
        for given in batch:
            specdec.generate(
                model,
                drafter=recorder,
                tree=static((2, 2)),
                **given,
                max_new_tokens=6,
                do_sample=False,
            )
        trees.append({tuple(text): tree.tokens for text, tree in recorder.said})
    assert trees[0] == trees[1]


@pytest.mark.parametrize("vision", ["hidden", "compressed", "shared"])
def test_answers_are_the_verifiers(vision: Vision) -> None:
    """Greedy, over several shapes, and every page given back afterwards."""
    model, inputs, _, _ = families.build("llava")
    given = inputs(3, 6)
    plain: Any = model
    expected = plain.generate(**given, max_new_tokens=16, do_sample=False)
    drafter = EagleDrafter(head_for(model, vision), model.get_input_embeddings())
    verifier = TransformersVerifier(model, taps=LAYERS)
    for shape in SHAPES:
        out = specdec.generate(
            model,
            drafter=drafter,
            tree=shape,
            verifier=verifier,
            **given,
            max_new_tokens=16,
            do_sample=False,
        )
        assert torch.equal(out, expected)
        drafter._kv.check_integrity()
        verifier.check_integrity()
        assert drafter.bytes_taken == 0
        assert verifier.pages_taken == 0


def test_it_reads_the_verifiers_pages_and_keeps_no_copy() -> None:
    """A head that shares keys takes pages for text only; the others, for the image as well."""
    model, inputs, _, _ = families.build("llava")
    given = inputs(3, 6)
    taken = {}
    for vision in ("hidden", "shared"):
        drafter = EagleDrafter(head_for(model, vision), model.get_input_embeddings())
        most = 0

        def look(_: Any, drafter: EagleDrafter = drafter) -> None:
            nonlocal most
            most = max(most, drafter.bytes_taken)

        specdec.generate(
            model, drafter=drafter, **given, max_new_tokens=4, do_sample=False, on_emission=look
        )
        taken[vision] = most
    text = int((given["input_ids"] != families.IMAGE).sum())
    head = head_for(model, "shared").config
    page = 2 * 16 * head.num_key_value_heads * head.head_dim * 4
    assert taken["shared"] <= page * (1 + (text + 4 + 4) // 16)
    assert taken["shared"] < taken["hidden"]


def test_a_reduced_vocabulary_proposes_tokens_of_the_verifier() -> None:
    """Columns of its logits taken for token ids, in trees and in q."""
    model, inputs, _, _ = families.build("llava")
    head = head_for(model, draft_vocab_size=40)
    spoken = torch.randperm(families.VOCAB, generator=torch.Generator().manual_seed(0))[:40]
    head.speak(spoken.sort().values)
    recorder = Recorder(EagleDrafter(head, model.get_input_embeddings()))
    specdec.generate(
        model,
        drafter=recorder,
        tree=static((3, 2)),
        **inputs(3, 6),
        max_new_tokens=8,
        do_sample=False,
    )
    for _, tree in recorder.said:
        assert set(tree.tokens[1:]) <= set(spoken.tolist())
        for node, children in enumerate(tree.topology.children):
            if children:
                assert tree.q is not None
                best = tree.q[node].topk(len(children)).indices.tolist()
                assert [tree.tokens[child] for child in children] == best


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_hidden_size": 99}, "hidden size of 99"),
        ({"vocab_size": 99, "draft_vocab_size": 99}, "vocabulary of 99"),
        ({"layers": (0, 1, 77)}, "layer 77"),
    ],
)
def test_a_head_for_another_verifier_is_refused(changes: dict[str, Any], words: str) -> None:
    model, inputs, _, _ = families.build("llava")
    drafter = EagleDrafter(head_for(model, **changes), model.get_input_embeddings())
    with pytest.raises(ValueError, match=words):
        specdec.generate(model, drafter=drafter, **inputs(3, 6), max_new_tokens=4)


def test_a_verifier_without_taps_is_refused() -> None:
    model, inputs, _, _ = families.build("llava")
    drafter = EagleDrafter(head_for(model), model.get_input_embeddings())
    with pytest.raises(ValueError, match=r"taps=\(0, 1, 2\)"):
        specdec.generate(
            model,
            drafter=drafter,
            verifier=TransformersVerifier(model),
            **inputs(3, 6),
            max_new_tokens=4,
        )


def test_a_saved_head_drafts_as_before(tmp_path: Path) -> None:
    """Loaded without the verifier's embeddings, or with other weights."""
    model, inputs, _, _ = families.build("llava")
    head = head_for(model)
    save_eagle(head, tmp_path / "head", verifier="llava")
    said = []
    for drafter in (
        EagleDrafter(head, model.get_input_embeddings()),
        load_drafter(tmp_path / "head", model),
    ):
        assert isinstance(drafter, EagleDrafter)
        recorder = Recorder(drafter)
        specdec.generate(
            model, drafter=recorder, tree=3, **inputs(3, 6), max_new_tokens=6, do_sample=False
        )
        said.append([tree.tokens for _, tree in recorder.said])
    assert said[0] == said[1]
