"""The verifier as its own drafter, over fewer of its pages."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.cache import OutOfPages
from specdec.drafters import SelfPrunedDrafter
from specdec.interfaces import DraftRequest, Verified
from specdec.runtime.taps import text_layers
from specdec.tree import Dynamic, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.families import checks
from support.families.checks import build

KEEP_STATES = ("qwen3_5", "mllama")
SHARE_KEYS = ("gemma4_shared",)
NAMES = [name for name in families.NAMES if name not in KEEP_STATES]
SIGHTED = [name for name in NAMES if name in families.SIGHTED]


def sees_on(model: PreTrainedModel, given: families.Inputs, new_tokens: int = 12) -> Tensor:
    ids: Tensor = model.generate(
        **given, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None
    )
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_plain_decoding(name: str) -> None:
    """A draft that writes into the verifier's keys, or pages that are given back while it reads
    them; integrity is checked behind every step."""
    model, pairs = build(name).model, checks.answers(name, 5, 12, ends=False)
    for ratio, shape in [(0.0, static((2, 2))), (0.3, chain(4))]:
        verifier = TransformersVerifier(model, page_size=4, gaze=True, gaze_every=2)
        verify = verifier.verify

        def checked(*args: Any, verifier: Any = verifier, verify: Any = verify) -> Verified:
            verifier.check_integrity()
            verified: Verified = verify(*args)
            verifier.check_integrity()
            return verified

        vars(verifier)["verify"] = checked
        drafter = SelfPrunedDrafter(ratio, every=2)
        said, engine = checks.run(model, verifier, pairs, drafter, shape, 12, ends=False)
        for answer, (given, plain) in zip(said, pairs, strict=True):
            assert answer == plain[0, given["input_ids"].shape[1] :].tolist()
        assert engine.stats.num_draft_tokens > 0
        verifier.check_integrity()
        assert verifier.pages_taken == 0
        assert not drafter._choices


@pytest.mark.parametrize("name", NAMES)
def test_with_everything_in_sight_every_draft_is_right(name: str) -> None:
    """Positions, windows or masks of its own that differ from the verifier's."""
    model, inputs, layouts, _ = build(name)
    for seed, layout in enumerate(layouts):
        given = inputs(seed, 9, layout)
        out = specdec.generate(
            model,
            **given,
            drafter=SelfPrunedDrafter(1.0),
            tree=chain(3),
            max_new_tokens=13,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
        )
        assert out.stats.num_accepted_draft_tokens == out.stats.num_draft_tokens > 0, layout


class Watched:
    """A prefilled request, and the logits of every forward that its pages have seen since."""

    def __init__(self, name: str, layout: str, page_size: int, seed: int = 3) -> None:
        self.model, inputs, *_ = build(name)
        self.given = inputs(seed, 9, layout)
        self.verifier = TransformersVerifier(self.model, page_size=page_size, gaze=True)
        prompt = families.prepare(self.model, self.given, 20)
        prefilled = self.verifier.prefill(prompt, room=60)
        self.handle = prefilled.handles[0]
        tokens = prompt.input_ids[0].tolist()
        self.request = DraftRequest(
            0, [*tokens, int(prefilled.logits[0].argmax())], len(tokens), chain(3)
        )
        self.request.source = self.verifier.source(self.handle)
        self.request.gaze = prefilled.gaze[0]
        self.logits: list[Tensor] = []
        paged = self.verifier._paged
        forward = paged.forward

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            self.logits.append(forward(*args, **kwargs))
            self.verifier.check_integrity()
            return self.logits[-1]

        vars(paged)["forward"] = watched

    def wholly_visual(self) -> list[int]:
        """Places in pages that hold nothing else."""
        source = self.request.source
        assert source is not None
        size, sequence = self.verifier._paged.kv.page_size, source.sequence
        pages: dict[int, list[int]] = {}
        for place in range(sequence.committed):
            pages.setdefault((sequence.lead + place) // size, []).append(place)
        full = sequence.full_pages(size)
        visual = set(source.visual)
        return [
            p for page, own in pages.items() if page < full and visual.issuperset(own) for p in own
        ]

    @torch.no_grad()
    def plainly(self, path: list[int], left_out: list[int]) -> Tensor:
        """Logits behind each of these tokens, in a plain forward with the columns masked."""
        length = self.request.prompt_length
        out = self.model.generate(
            **self.given,
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
        )
        mask = torch.ones(1, length + len(path), dtype=torch.long)
        mask[0, left_out] = 0
        rows = self.handle.offset[:, None] + torch.arange(length, length + len(path))
        logits: Tensor = self.model(
            input_ids=torch.tensor([path]),
            attention_mask=mask,
            position_ids=rows if len(rows) == 1 else rows[:, None],
            past_key_values=copy.deepcopy(out.past_key_values),
        ).logits
        return logits[0]


@pytest.mark.parametrize("page_size", [1, 4])
@pytest.mark.parametrize("name", SIGHTED)
def test_what_is_left_out_is_masked_and_nothing_else_changes(name: str, page_size: int) -> None:
    """Positions closed up, windows counted by what is left, a page too many or too few; against
    transformers' own forward with those columns masked. 1e-4 of the largest logit, in fp32.
    """
    left_out = 0
    for layout in build(name).layouts:
        watched = Watched(name, layout, page_size)
        hidden = watched.wholly_visual()
        left_out += len(hidden)
        (tree,) = SelfPrunedDrafter(0.0).propose([watched.request])
        assert len(tree) == 4
        expected = watched.plainly(list(tree.tokens[:3]), hidden)
        found = torch.cat(watched.logits)
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-4, (layout, float(error))
    assert left_out > 0


def test_pages_are_borrowed_and_only_the_last_is_copied() -> None:
    """Keys of the image copied, or drafts written where the verifier reads: at most the begun page
    is copied, and it is another one afterwards."""
    watched = Watched("llava", "inside", 16)
    paged = watched.verifier._paged
    sequence = watched.handle.sequence
    before = [keys.clone() for keys in paged.kv.layer(0)], list(sequence.pages)
    rows = sequence.lead + sequence.committed
    (tree,) = SelfPrunedDrafter(0.0).propose([watched.request])
    assert len(tree) == 4
    assert paged.kv.bytes_copied == rows % 16 * paged.kv.bytes_per_page // 16 > 0
    assert before[1] == sequence.pages
    slots = paged.kv.slots(sequence, 0, sequence.committed)
    for old, new in zip(before[0], paged.kv.layer(0), strict=True):
        assert torch.equal(old[:, :, slots], new[:, :, slots])


def test_where_pages_do_not_suffice_nothing_is_drafted() -> None:
    """A request that dies, or pages that stay borrowed, because its drafts found no room."""
    watched = Watched("llava", "inside", 4)
    kv = watched.verifier._paged.kv
    taken = kv.allocator.num_taken
    kv.allocator.limit = taken
    kv.allocator.allocate(kv.allocator.num_pages - taken)
    with pytest.raises(OutOfPages):
        kv.allocator.allocate(1)
    taken = kv.allocator.num_taken
    drafter = SelfPrunedDrafter(0.0)
    watched.request.shape = chain(9)
    (tree,) = drafter.propose([watched.request])
    assert tree.tokens == (watched.request.tokens[-1],)
    assert kv.allocator.num_taken == taken


def test_answers_stay_the_same_where_pages_are_few() -> None:
    model, inputs, *_ = build("llava")
    given = inputs(2, 9)
    probe = TransformersVerifier(model, page_size=4)
    plain = specdec.generate(model, **given, verifier=probe, max_new_tokens=16, do_sample=False)
    pages = -(-(given["input_ids"].shape[1] + 17) // 4) + 1
    few = TransformersVerifier(model, page_size=4, kv_cache_bytes=pages * probe.bytes_per_page)
    drafter = SelfPrunedDrafter(0.25)
    out = specdec.generate(
        model,
        **given,
        verifier=few,
        drafter=drafter,
        tree=static((2, 2, 2)),
        max_new_tokens=16,
        do_sample=False,
    )
    assert out.tolist() == plain.tolist()
    few.check_integrity()


@pytest.mark.parametrize("shape", [static((3, 2)), Dynamic(8, 4)], ids=["static", "dynamic"])
def test_branches_see_their_own_ancestors(shape: Any) -> None:
    """A root that branches do not see, or siblings that see each other: behind every path the
    children are the model's most probable tokens."""
    watched = Watched("qwen2_5_vl", "inside", 4)
    watched.request.shape = shape
    (tree,) = SelfPrunedDrafter(0.0).propose([watched.request])
    hidden = watched.wholly_visual()
    for node, children in enumerate(tree.topology.children):
        if children:
            path = [tree.tokens[ancestor] for ancestor in tree.topology.path(node)]
            best = watched.plainly(path, hidden)[-1].topk(len(children)).indices.tolist()
            assert [tree.tokens[child] for child in children] == best


@pytest.mark.parametrize("every", [3, 0])
def test_it_chooses_again_when_the_verifier_has_looked_again(every: int) -> None:
    """A choice that stays, or is made by where the verifier looked before; never again with
    ``every=0``."""
    model, inputs, *_ = build("llava")
    drafter = SelfPrunedDrafter(0.25, every=every)
    seen: list[Any] = []
    propose = drafter.propose

    def noted(batch: Any) -> Any:
        trees = propose(batch)
        if len(batch[0].shape) > 1:
            seen.append(batch[0].gaze)
            assert drafter._choices[batch[0].id].gaze is batch[0].gaze
        return trees

    vars(drafter)["propose"] = noted
    specdec.generate(
        model, **inputs(1, 9), drafter=drafter, tree=chain(1), max_new_tokens=24, do_sample=False
    )
    changes = [i for i, gaze in enumerate(seen) if i == 0 or gaze is not seen[i - 1]]
    assert len(seen) > 6
    assert changes == (list(range(0, len(seen), every)) if every else [0])
    assert all(len(gaze) == len(seen[0]) for gaze in seen)


class TestSkipping:
    def drafts(self, watched: Watched, skip: tuple[int, ...]) -> list[Tensor]:
        """Logits of a second proposal: the first one runs the layers still."""
        drafter = SelfPrunedDrafter(1.0, skip=skip)
        drafter.propose([watched.request])
        watched.logits.clear()
        drafter.propose([watched.request])
        return watched.logits

    @pytest.mark.parametrize("name", [name for name in NAMES if name not in SHARE_KEYS])
    def test_skipped_layers_are_as_if_they_were_not_there(self, name: str) -> None:
        """A layer that runs all the same, or that stays skipped: against layers that hand on what
        they get, and answers that are the verifier's own."""
        layout = build(name).layouts[0]
        watched = Watched(name, layout, 4)
        found = self.drafts(watched, (1,))
        layer = text_layers(watched.model)[1]
        assert "forward" not in vars(layer)
        own = watched.plainly([5, 6], [])
        handle = layer.register_forward_hook(
            lambda layer, args, kwargs, out: (
                (args[0] if args else kwargs["hidden_states"],)
                if isinstance(out, tuple)
                else (args[0] if args else kwargs["hidden_states"])
            ),
            with_kwargs=True,
        )
        (tree,) = SelfPrunedDrafter(1.0).propose([watched.request])
        handle.remove()
        again = torch.cat(watched.logits[len(found) // 2 :])[-3:]
        assert torch.allclose(torch.cat(found[:3]), again, atol=1e-5)
        assert len(tree) == 4
        assert torch.equal(own, watched.plainly([5, 6], []))

    def test_answers_are_those_of_plain_decoding(self) -> None:
        model, pairs = build("gemma3").model, checks.answers("gemma3", 6, 16, ends=False)
        verifier = TransformersVerifier(model, page_size=4, gaze=True)
        drafter = SelfPrunedDrafter(0.5, skip=(1, 2))
        said, _ = checks.run(model, verifier, pairs, drafter, chain(3), 16, ends=False)
        for answer, (given, plain) in zip(said, pairs, strict=True):
            assert answer == plain[0, given["input_ids"].shape[1] :].tolist()

    def test_other_threads_and_failures_see_the_whole_model(self) -> None:
        """Another thread's plain forward that is short of a layer; a layer that stays skipped
        behind an exception."""
        watched = Watched("llava", "inside", 4)
        drafter = SelfPrunedDrafter(1.0, skip=(1,))
        drafter.propose([watched.request])
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            expected = watched.model(ids).logits
        others: list[Tensor] = []

        def look(*_: Any) -> None:
            def plainly() -> None:
                with torch.no_grad():
                    others.append(watched.model(ids).logits)

            if not others:
                others.append(expected)  # not in the thread's own forward
                thread = threading.Thread(target=plainly)
                thread.start()
                thread.join()
                raise RuntimeError("the forward broke")

        handle = text_layers(watched.model)[2].register_forward_pre_hook(look)
        with pytest.raises(RuntimeError, match="the forward broke"):
            drafter.propose([watched.request])
        handle.remove()
        assert torch.equal(others[1], expected)
        assert "forward" not in vars(text_layers(watched.model)[1])
        watched.verifier.check_integrity()

    def test_layers_whose_keys_others_read_are_not_skipped(self) -> None:
        watched = Watched("gemma4_shared", "inside", 4)
        with pytest.raises(ValueError, match=r"Gemma4.*keys of others"):
            SelfPrunedDrafter(1.0, skip=(1,)).propose([watched.request])


@pytest.mark.parametrize("name", KEEP_STATES)
def test_verifiers_that_keep_states_are_refused_by_name(name: str) -> None:
    model, inputs, *_ = build(name)
    with pytest.raises(ValueError, match=r"self_pruned .*keeps more of a text than keys"):
        specdec.generate(
            model, **inputs(0, 5), drafter="self_pruned", tree=2, max_new_tokens=4, do_sample=False
        )


@pytest.mark.parametrize("skip", [(3,), (-1,), (0, 1, 2)])
def test_layers_that_are_not_there_are_refused(skip: tuple[int, ...]) -> None:
    spec = TransformersVerifier(build("llava").model).spec
    with pytest.raises(ValueError, match=r"skips layers .*Llava.* has 3"):
        SelfPrunedDrafter(skip=skip).check(spec)
