"""Where the verifier looks, against the attentions that transformers gives itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from specdec.interfaces import Prefilled
from specdec.tree import DraftTree, chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.families.checks import build

EXPANDING = ("kimi_k25", "deepseek_v3")
STATES = ("qwen3_5", "mllama")
# transformers' eager attention, the only one that shows its weights, masks PaliGemma's prompts
# otherwise than its sdpa does: their logits differ as well.
SHOWN_OTHERWISE = ("paligemma",)
NAMES = [name for name in families.NAMES if name not in (*STATES, *SHOWN_OTHERWISE)]


@torch.no_grad()
def attentions(name: str, given: families.Inputs, path: list[int]) -> Tensor:
    """Float32 ``(L,)``: how much the last of these tokens behind the prompt, or the prompt's own,
    looks at each, averaged over the heads of the upper half of the layers. transformers is made to
    compute it in the open, with a cache that forgets nothing.
    """
    model = families.build(name).model
    model.set_attn_implementation("eager")
    written = given["input_ids"].shape[1]
    out = model.generate(
        **given,
        past_key_values=DynamicCache(),  # without a config: layers of all kinds keep everything
        max_new_tokens=len(path) + 1,
        prefix_allowed_tokens_fn=lambda row, ids: [[*path, 2][len(ids) - written]],
        do_sample=False,
        return_dict_in_generate=True,
        output_attentions=True,
    )
    layers = out.attentions[-1][len(out.attentions[-1]) // 2 :]
    return torch.stack([layer[0, :, -1].float().mean(0) for layer in layers]).mean(0)


def prefill(verifier: TransformersVerifier, given: families.Inputs) -> Prefilled:
    return verifier.prefill(families.prepare(verifier.model, given, 8), room=30)


def same(found: Tensor | None, expected: Tensor, length: int) -> None:
    """Float32; seen: below 1e-6, of shares of 1."""
    assert found is not None
    assert len(found) == length
    torch.testing.assert_close(found, expected[:length], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_where_the_last_token_of_the_prompt_looks(name: str) -> None:
    """Another token's gaze, another layer's, without its window or softcap."""
    verifier = TransformersVerifier(build(name).model, gaze=True)
    for seed, layout in enumerate(build(name).layouts[:3]):
        given = build(name).inputs(seed, 9, layout)
        (gaze,) = prefill(verifier, given).gaze
        same(gaze, attentions(name, given, []), given["input_ids"].shape[1])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in EXPANDING])
def test_in_a_tree_it_is_where_the_root_looks(name: str) -> None:
    """A gaze over scratch keys or those of another request, or of another node; the prompt's part
    of it only."""
    model, inputs, *_ = build(name)
    verifier = TransformersVerifier(model, gaze=True, gaze_every=2, page_size=4)
    given = inputs(0, 3), inputs(1, 5)
    handles = [prefill(verifier, each).handles[0] for each in given]
    for step in range(2):
        trees = [DraftTree(static((2,)), (5, 6, 7)), DraftTree(chain(1), (8, 9))]
        gazes = verifier.verify(handles, trees).gaze
        for handle in handles:
            verifier.commit(handle, [0])
        if step == 0:
            assert gazes == [None, None]
    for gaze, each, path in zip(gazes, given, [[5, 5], [8, 8]], strict=True):
        same(gaze, attentions(name, each, path), each["input_ids"].shape[1])


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_it_is_the_same_in_a_batch_and_from_the_cache(name: str) -> None:
    """Padding that is looked at, another row's gaze, a beginning found in the cache that nobody
    looks at, or a twin without any."""
    model, inputs, _, together = build(name)
    rows = [inputs(0, 5), inputs(1, 12), inputs(0, 5)]
    alone = [prefill(TransformersVerifier(model, gaze=True), row).gaze[0] for row in rows]
    verifier = TransformersVerifier(model, gaze=True, page_size=4)
    batch = together(rows)
    prompt = families.prepare(model, batch, 8)
    padding = tuple((batch["attention_mask"] == 0).sum(-1).tolist())
    for expect_cached in (False, True):
        prefilled = verifier.prefill(prompt._replace(padding=padding), room=30)
        assert any(prefilled.cached[:2]) is expect_cached
        for gaze, expected in zip(prefilled.gaze, alone, strict=True):
            assert expected is not None
            same(gaze, expected, len(expected))


@pytest.mark.parametrize("name", ["llava", *STATES])
def test_nobody_pays_who_does_not_ask(name: str) -> None:
    """And models that keep states do not say, whoever asks."""
    model, inputs, *_ = build(name)
    verifier = TransformersVerifier(model, gaze=name in STATES, gaze_every=1)
    prefilled = prefill(verifier, inputs(0, 5))
    verified = verifier.verify(prefilled.handles, [DraftTree(chain(1), (5, 6))])
    assert len(prefilled.gaze) == len(verified.gaze) == 0
