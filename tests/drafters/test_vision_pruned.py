"""A small vision-language model as a drafter, with a part of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec
from specdec.arguments import prepare
from specdec.drafters import VisionPrunedDrafter, load_drafter
from specdec.drafters.loading import save_vision_pruned
from specdec.drafters.selection import select
from specdec.interfaces import DraftRequest, Prompt
from specdec.tree import chain, static
from specdec.verifiers import TransformersVerifier
from support import families
from support.families import checks
from support.families.checks import build

REFUSED = ("qwen3_5", "mllama", "llama4")
NAMES = [name for name in families.SIGHTED if name not in REFUSED]
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


def prompt_of(model: PreTrainedModel, given: families.Inputs) -> Prompt:
    """As the engine gets it, pixels included."""
    prepared = prepare(model, {**given, "max_new_tokens": 8, "do_sample": False})
    return Prompt(prepared.input_ids, prepared.padding, prepared.model_kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_with_everything_in_sight_the_verifier_itself_is_always_right(name: str) -> None:
    """Images of another row, positions or masks that are not the model's own: the verifier as the
    small model, alone and in a padded batch, has every draft accepted."""
    model, inputs, layouts, together = build(name)
    left_out = {"none"} if "mixed" in layouts else {"none", "video"}
    order = [*[layout for layout in layouts if layout not in left_out], "none"]
    rows = [inputs(seed, 4 + 2 * seed, order[seed % len(order)]) for seed in range(len(order))]
    for given in [together(rows), *(inputs(7, 9, layout) for layout in layouts)]:
        out = specdec.generate(
            model,
            **given,
            **GREEDY,
            drafter=VisionPrunedDrafter(model, 1.0),
            tree=chain(3),
            max_new_tokens=10,
            return_dict_in_generate=True,
        )
        assert out.stats.num_accepted_draft_tokens == out.stats.num_draft_tokens > 0


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_plain_decoding(name: str) -> None:
    """Whatever it drafts; and no page of it stays behind."""
    model, pairs = build(name).model, checks.answers(name, 4, 16, ends=False)
    drafter = VisionPrunedDrafter(model, 0.3)
    for given, plain in pairs:
        how: dict[str, Any] = {**GREEDY, "drafter": drafter, "tree": static((2, 2))}
        assert specdec.generate(model, **given, **how, max_new_tokens=16).tolist() == plain.tolist()
    drafter._paged.kv.check_integrity()
    assert drafter._paged.kv.allocator.num_taken == 0


class Spied:
    """A drafter, and what its model says behind a prompt and behind what follows it."""

    def __init__(self, model: PreTrainedModel, ratio: float) -> None:
        self.drafter = VisionPrunedDrafter(model, ratio)
        self.logits: list[Tensor] = []
        paged = self.drafter._paged
        for name in ("prefill", "forward"):
            vars(paged)[name] = self._watched(getattr(paged, name))

    def _watched(self, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Tensor:
            logits: Tensor = function(*args, **kwargs)
            self.logits.append(logits)
            return logits

        return watched


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_left_out_is_as_if_it_were_masked(name: str, ratio: float) -> None:
    """Positions closed up, windows counted by what is left, an image's masks or features of other
    tokens: against a plain forward over everything in which nobody sees the columns left out, both
    at the last token that is kept and behind the prompt. 1e-4 of the largest logit, in fp32.
    """
    model, inputs, layouts, _ = build(name)
    for seed, layout in enumerate(layouts):
        if layout in ("start", "none"):  # a first token that sees nothing is no number
            continue
        given = inputs(seed, 9, layout)
        prompt = prompt_of(model, given)
        verifier = TransformersVerifier(model, gaze=True)
        prefilled = verifier.prefill(prompt, 20)
        handle, positions = prefilled.handles[0], prefilled.positions[0]
        tokens, root = prompt.input_ids[0].tolist(), 5
        spied = Spied(model, ratio)
        spied.drafter.check(verifier.spec)
        request = DraftRequest(0, [*tokens, root], len(tokens), chain(1), prompt=prompt)
        request.gaze = prefilled.gaze[0]
        spied.drafter.propose([request])

        visual = verifier.source(handle).visual
        kept = set(select(visual, request.gaze, ratio))
        left_out = [place for place in visual if place not in kept]
        last = max(place for place in range(len(tokens)) if place not in left_out)
        mask = torch.ones(1, len(tokens), dtype=torch.long)
        mask[0, left_out] = 0
        more = {k: v for k, v in given.items() if k not in ("input_ids", "attention_mask")}
        rows = positions if len(positions) == 1 else positions[:, None]
        out = model(input_ids=prompt.input_ids, attention_mask=mask, position_ids=rows, **more)
        close(spied.logits[-2][-1], out.logits[0, last])
        after = handle.offset[:, None] + len(tokens)
        behind = model(
            input_ids=torch.tensor([[root]]),
            attention_mask=torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], 1),
            position_ids=after if len(after) == 1 else after[:, None],
            past_key_values=out.past_key_values,
        )
        close(spied.logits[-1][0], behind.logits[0, -1])


def close(found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < 1e-4, error


def test_only_what_is_kept_is_stored() -> None:
    """A ratio that saves nothing."""
    model, inputs, *_ = build("llava")
    prompt = prompt_of(model, inputs(0, 9))
    tokens = [*prompt.input_ids[0].tolist(), 5]
    for ratio, images in [(0.0, 0), (0.25, 4), (1.0, 16)]:
        drafter = VisionPrunedDrafter(model, ratio)
        drafter.propose([DraftRequest(0, tokens, len(tokens) - 1, chain(1), prompt=prompt)])
        sequence = drafter._texts._texts[0].sequence
        assert (sequence.committed, sequence.end) == (len(tokens) - 16 + images, len(tokens))
        drafter.release(0)
        assert drafter._paged.kv.allocator.num_taken == 0


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_without_pixels_it_reads_the_words(name: str) -> None:
    """Several samples of a prompt, for which transformers runs the vision tower itself, and prompts
    that it ran altogether."""
    model, inputs, *_ = build(name)
    how: dict[str, Any] = {"do_sample": True, "top_k": 1, "max_new_tokens": 6}
    drafter = VisionPrunedDrafter(model, 1.0)
    given = inputs(1, 6)
    plain = model.generate(**given, **how, num_return_sequences=2)
    fast = specdec.generate(model, **given, **how, num_return_sequences=2, drafter=drafter)
    assert fast.tolist() == plain.tolist()
    merged = model.get_input_embeddings()(torch.tensor([[5, 6, 7]]))
    greedy: dict[str, Any] = {**GREEDY, "max_new_tokens": 6, "inputs_embeds": merged}
    plain = model.generate(**greedy)
    assert specdec.generate(model, **greedy, drafter=drafter).tolist() == plain.tolist()


def test_a_saved_one_comes_back(tmp_path: Path) -> None:
    model, inputs, *_ = build("llava")
    save_vision_pruned(model, tmp_path, verifier="a verifier", ratio=1.0)
    drafter = load_drafter(tmp_path, model)
    assert isinstance(drafter, VisionPrunedDrafter)
    assert drafter.ratio == 1.0
    out = specdec.generate(
        model,
        **inputs(1, 6),
        **GREEDY,
        drafter=tmp_path,
        max_new_tokens=8,
        return_dict_in_generate=True,
    )
    assert out.stats.num_accepted_draft_tokens == out.stats.num_draft_tokens > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("qwen3_5", r"keeps more of a text than keys"),
        ("mllama", r"keeps more of a text than keys"),
        ("llama4", r"Llama4.* count what is in the cache"),
        ("llama", r"names no image token"),
    ],
)
def test_what_cannot_leave_tokens_out_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        VisionPrunedDrafter(build(name).model)


def test_a_model_that_reads_other_prompts_is_refused_by_name() -> None:
    drafter = VisionPrunedDrafter(build("llava").model)
    spec = TransformersVerifier(build("qwen2_5_vl").model).spec
    drafter.check(spec)
    other = type(spec)(**{**_fields(spec), "visual_token_ids": frozenset([7])})
    with pytest.raises(ValueError, match=r"Llava.* by tokens \[150\], verifier Qwen2_5.*\[7\]"):
        drafter.check(other)
    other = type(spec)(**{**_fields(spec), "vocab_size": 4000})
    with pytest.raises(ValueError, match=r"Llava.* vocabulary of 160, verifier Qwen2_5.*4000"):
        drafter.check(other)


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}
