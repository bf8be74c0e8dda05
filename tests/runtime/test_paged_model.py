"""The transformers hook: tree nodes against plain decoding of their paths, and the model left
alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specdec.cache import OutOfPages
from specdec.runtime import NodeBatch, PagedModel, PrefillRow, TextTower, hook, paged_model
from specdec.runtime.seam import text_attention_configs
from specdec.runtime.taps import Taps
from specdec.tree import chain, random_topology
from support import families


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def attention_names(model: PreTrainedModel) -> dict[int, str]:
    """The attention that every submodule's config names."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return {id(part.config): part.config._attn_implementation for part in parts}


def plain_logits(model: PreTrainedModel, prompt: Tensor, path: list[int]) -> Tensor:
    return model(torch.cat([prompt, torch.tensor([path])], dim=1)).logits[0, -1]


def prefilled(model: PreTrainedModel, prompt: Tensor, **options: Any) -> tuple[PagedModel, Any]:
    paged = PagedModel(model, **options)
    sequence = paged.kv.add()
    paged.prefill({"input_ids": prompt}, [PrefillRow(0, sequence, 0)])
    return paged, sequence


@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("seed", range(4))
def test_nodes_match_plain_decoding_of_their_paths(seed: int, page_size: int) -> None:
    """An ancestor that is missed, a cousin that is seen, a position that counts nodes instead of
    depth; over three trees in a row also a commit that keeps the wrong keys.

    Logits are of size 10; 1e-4 is their fp32 rounding over three layers.
    """
    model = families.causal_lm(seed, layers=3)
    prompt = torch.randint(2, 140, (1, 11))
    paged, sequence = prefilled(model, prompt, page_size=page_size)
    for round_ in range(3):
        topology = random_topology(9, 10 * seed + round_)
        tokens = torch.randint(2, 140, (9,)).tolist()
        logits = paged.forward([NodeBatch(sequence, tokens, topology.depths, topology.ancestors)])
        for node in range(9):
            path = [tokens[ancestor] for ancestor in topology.path(node)]
            torch.testing.assert_close(
                logits[node], plain_logits(model, prompt, path), atol=1e-4, rtol=1e-4
            )
        kept = topology.path(topology.levels[-1][-1])
        paged.kv.commit(sequence, kept)
        paged.kv.check_integrity()
        prompt = torch.cat([prompt, torch.tensor([[tokens[node] for node in kept]])], dim=1)


def test_a_tree_may_be_run_level_by_level() -> None:
    """Nodes that do not see the scratch keys of earlier calls."""
    model = families.causal_lm(0, layers=2)
    prompt = torch.randint(2, 140, (1, 7))
    paged, sequence = prefilled(model, prompt)
    topology = random_topology(12, 3)
    tokens = torch.randint(2, 140, (12,)).tolist()
    order: list[int] = []
    for depth, level in enumerate(topology.levels):
        order += level
        visible = topology.ancestors[list(level)][:, order]
        nodes = NodeBatch(sequence, [tokens[n] for n in level], [depth] * len(level), visible)
        for node, row in zip(level, paged.forward([nodes]), strict=True):
            path = [tokens[ancestor] for ancestor in topology.path(node)]
            torch.testing.assert_close(row, plain_logits(model, prompt, path), atol=1e-4, rtol=1e-4)


def test_a_ragged_batch_equals_each_sequence_alone() -> None:
    """Segments of different lengths read through one mask: an offset between them would show."""
    model = families.causal_lm(0, layers=2)
    paged = PagedModel(model, page_size=4)
    prompts = [torch.randint(2, 140, (1, length)) for length in (3, 17, 8)]
    batch = []
    for index, prompt in enumerate(prompts):
        sequence = paged.kv.add()
        paged.prefill({"input_ids": prompt}, [PrefillRow(0, sequence, 0)])
        topology = random_topology(4 + index, index)
        tokens = torch.randint(2, 140, (len(topology),)).tolist()
        batch.append(NodeBatch(sequence, tokens, topology.depths, topology.ancestors))
    rows = iter(paged.forward(batch))
    for index, (prompt, nodes) in enumerate(zip(prompts, batch, strict=True)):
        topology = random_topology(4 + index, index)
        for node in range(len(topology)):
            path = [nodes.tokens[ancestor] for ancestor in topology.path(node)]
            torch.testing.assert_close(
                next(rows), plain_logits(model, prompt, path), atol=1e-4, rtol=1e-4
            )


def test_left_padded_rows_are_stored_without_their_padding() -> None:
    """Keys of padding tokens that reach the pages."""
    model = families.causal_lm(0, layers=2)
    ids = torch.randint(2, 140, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    paged = PagedModel(model)
    sequences = [paged.kv.add(), paged.kv.add()]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    rows = [PrefillRow(0, sequences[0], 0), PrefillRow(1, sequences[1], 4)]
    last = paged.prefill(inputs, rows)
    assert [sequence.committed for sequence in sequences] == [9, 5]
    for row, prompt in enumerate((ids[:1], ids[1:, 4:])):
        torch.testing.assert_close(last[row], model(prompt).logits[0, -1], atol=1e-4, rtol=1e-4)
        node = NodeBatch(sequences[row], [7], [0], chain(0).ancestors)
        torch.testing.assert_close(
            paged.forward([node])[0], plain_logits(model, prompt, [7]), atol=1e-4, rtol=1e-4
        )


def test_keep_selects_rows() -> None:
    model = families.causal_lm(0)
    paged, sequence = prefilled(model, torch.randint(2, 140, (1, 5)))
    topology = chain(3)
    nodes = NodeBatch(sequence, [5, 6, 7, 8], topology.depths, topology.ancestors)
    every = paged.forward([nodes])
    paged.kv.rollback(sequence)
    torch.testing.assert_close(paged.forward([nodes], keep=torch.tensor([3, 1])), every[[3, 1]])


def test_a_mask_that_is_no_window_is_refused() -> None:
    """Taken for a window it would let a node see what the model hides from it."""
    paged, sequence = prefilled(families.causal_lm(0), torch.randint(2, 140, (1, 7)))
    paged.kv.extend(sequence, [0, 1])
    forward = hook.TreeForward(paged.kv, [hook.TreeRows(sequence, 2, None)])

    def window(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k > q - 4)

    first = forward.mask(window, torch.float32, torch.device("cpu"))
    assert first is not None
    assert first.flatten().tolist() == [4, 5]
    with pytest.raises(RuntimeError, match="no window"):
        forward.mask(
            lambda b, h, q, k: window(b, h, q, k) & (k != 5), torch.float32, torch.device("cpu")
        )


def test_long_texts_are_appended_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that does not see the one before it, or logits of the wrong one: three texts, of
    one, two and three pieces."""
    monkeypatch.setattr(paged_model, "PIECE", 4)
    model = families.causal_lm(0, layers=2)
    prompts = [torch.randint(2, 140, (1, length)) for length in (5, 3, 7)]
    paged = PagedModel(model, page_size=4)
    texts = []
    for prompt, length in zip(prompts, (4, 11, 7), strict=True):
        sequence = paged.kv.add()
        paged.prefill({"input_ids": prompt}, [PrefillRow(0, sequence, 0)])
        tokens = torch.randint(2, 140, (length,)).tolist()
        texts.append(NodeBatch(sequence, tokens, range(length)))
    logits, _ = paged.append(texts)
    for prompt, text, row in zip(prompts, texts, logits, strict=True):
        assert text.sequence.committed == prompt.shape[1] + len(text.tokens)
        expected = plain_logits(model, prompt, list(text.tokens))
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", families.NAMES)
def test_only_the_text_tower_is_switched(name: str) -> None:
    """A vision tower that is switched along; a name that is not put back."""
    model = families.build(name).model
    before = attention_names(model)
    configs = text_attention_configs(model)
    assert attention_names(model) == before
    assert model.config.get_text_config() in configs
    vision = getattr(model.config, "vision_config", None)
    assert not any(config is vision for config in configs)


class Stop(Exception):
    """Raised by a test inside a forward."""


def test_a_failing_forward_leaves_model_and_pages_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families.causal_lm(0)
    paged, sequence = prefilled(model, torch.randint(2, 140, (1, 5)))
    before = attention_names(model)

    def fail(*args: Any, **kwargs: Any) -> Any:
        assert model.config._attn_implementation == hook.NAME
        raise Stop

    nodes = NodeBatch(sequence, [5, 6], chain(1).depths, chain(1).ancestors)
    with monkeypatch.context() as patch:
        patch.setattr(model.lm_head, "forward", fail)
        with pytest.raises(Stop):
            paged.forward([nodes])
    assert attention_names(model) == before
    assert hook.CURRENT.get() is None
    assert (sequence.committed, sequence.length) == (5, 5)
    paged.kv.check_integrity()
    paged.forward([nodes])


@pytest.mark.parametrize("step", ["_remember", "set_limit"])
def test_what_fails_behind_the_forward_leaves_no_nodes(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same nodes are run again, each request for itself, behind those of the failed step."""
    model = families.causal_lm(0)
    prompt = torch.randint(2, 140, (1, 5))
    paged, sequence = prefilled(model, prompt, taps=(0,), remembers=True)

    def fail(*args: Any) -> None:
        raise Stop

    nodes = NodeBatch(sequence, [5, 6], chain(1).depths, chain(1).ancestors)
    with monkeypatch.context() as patch:
        patch.setattr(paged, step, fail)
        with pytest.raises(Stop):
            paged.forward([nodes])
    assert (sequence.committed, sequence.length) == (5, 5)
    paged.forward([nodes])


def test_a_full_cache_leaves_every_sequence_as_it_was() -> None:
    model = families.causal_lm(0)
    paged, first = prefilled(model, torch.randint(2, 140, (1, 4)), page_size=4)
    paged.kv.allocator.limit = 3
    second = paged.kv.add()
    paged.prefill({"input_ids": torch.randint(2, 140, (1, 4))}, [PrefillRow(0, second, 0)])
    nodes = [NodeBatch(sequence, [5], [0], chain(0).ancestors) for sequence in (first, second)]
    with pytest.raises(OutOfPages):
        paged.forward(nodes)
    assert (first.length, second.length) == (4, 4)
    paged.kv.check_integrity()


def test_the_budget_is_kept_in_bytes() -> None:
    """A page that is counted in one layer only, or without its values."""
    model = families.causal_lm(0, layers=2)
    text = model.config
    page = 2 * 2 * 4 * 4 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    paged, _ = prefilled(
        model, torch.randint(2, 140, (1, 4)), page_size=4, kv_cache_bytes=5 * page + 1
    )
    assert paged.kv.bytes_per_page == page
    assert paged.kv.allocator.limit == 5


def test_others_may_call_the_model_meanwhile() -> None:
    """A plain forward of the same model from another thread, while the name is switched: it must
    get sdpa and its own cache, not the pages."""
    model = families.causal_lm(0)
    prompt = torch.randint(2, 140, (1, 5))
    expected = model(prompt).logits
    results: list[Tensor] = []

    def plain() -> None:
        with torch.no_grad():
            results.append(model(prompt, past_key_values=DynamicCache()).logits)

    def in_between(*args: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=plain)
            thread.start()
            thread.join()

    handle = model.model.register_forward_pre_hook(lambda *args: in_between())
    try:
        prefilled(model, prompt)
    finally:
        handle.remove()
    torch.testing.assert_close(results[0], expected)


@pytest.mark.parametrize("kind", ["stopped", "given", "tapped"])
def test_others_may_call_the_model_while_a_hook_is_being_added(kind: str) -> None:
    """torch adds a hook, and a moment later its note that it takes keyword arguments: in between,
    another thread's forward failed for what is none of its business.
    """
    model = families.causal_lm(0)
    prompt = torch.randint(2, 140, (1, 5))
    expected, results = model(prompt).logits, list[Tensor]()
    watched = model.model.layers[0] if kind == "tapped" else model.model

    def plain() -> None:
        with torch.no_grad():
            results.append(model(prompt).logits)

    def in_between() -> None:
        notes = dict(watched._forward_pre_hooks_with_kwargs)
        watched._forward_pre_hooks_with_kwargs.clear()
        thread = threading.Thread(target=plain)
        thread.start()
        thread.join()
        watched._forward_pre_hooks_with_kwargs.update(notes)

    def call(*args: Any, **kwargs: Any) -> Any:
        in_between()
        return model(prompt)

    tower = TextTower(model)
    if kind == "stopped":
        tower.called_with(cast(Any, call), {})
    else:
        with Taps(model, (0,)).watched() if kind == "tapped" else tower.given({}):
            in_between()
    assert torch.equal(results[0], expected)
