"""Labels and features of a verifier's answers, against plain forwards of one question each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from specdec.sampling import total_variation
from specdec.training import counterfactual
from specdec.training.counterfactual import Answered, Judged
from specdec.training.prompts import Asked, model_inputs
from specdec.verifiers import TransformersVerifier
from support import families, processors

TOKENS = 12


def plain(small: Any, each: Answered, shown: Asked) -> tuple[Tensor, Tensor]:
    """Logits ``(A, V)`` at the answer's tokens and the hidden states ``(A, H)`` they come from."""
    inputs = dict(model_inputs(small.model, small.processor, [shown]))
    ids = torch.cat([each.prompt, each.answer])[None]
    mask = torch.ones_like(ids)
    given = inputs | {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        out = small.model(**given, output_hidden_states=True)
    behind = slice(len(each.prompt) - 1, -1)
    return out.logits[0, behind], out.hidden_states[-1][0, behind]


@pytest.fixture(scope="module")
def answered(small: Any) -> list[Answered]:
    """One answer is cut to a single token, which leaves nothing to verify."""
    found = counterfactual.answer(
        small.model, small.processor, small.questions, max_new_tokens=TOKENS, batch=3
    )
    return [*found[:-1], found[-1]._replace(answer=found[-1].answer[:1])]


@pytest.fixture(scope="module")
def judged(small: Any, answered: list[Answered]) -> list[Judged]:
    verifier = TransformersVerifier(small.model, page_size=4, hidden=True, visual_mass=True)
    found = counterfactual.judge(verifier, small.processor, small.drafter, answered, batch=3)
    assert verifier.pages_taken == 0
    return found


def test_answers_are_those_of_generate(small: Any, answered: list[Answered]) -> None:
    """Padding taken for text, or answers handed to other questions."""
    for each, question in zip(answered[:-1], small.questions, strict=False):
        inputs = model_inputs(small.model, small.processor, [question])
        ids = small.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)[0]
        assert torch.cat([each.prompt, each.answer]).tolist() == ids.tolist()


def test_labels_follow_their_definition(
    small: Any, answered: list[Answered], judged: list[Judged]
) -> None:
    """Off by one place, or with the images of the wrong row, labels would still look plausible.

    Either of the two other images is enough; random weights make both cases occur.
    """
    questions = [each.question for each in answered]
    swapped, blank = counterfactual.swapped(questions), counterfactual.blanked(questions)
    only = {"swapped": 0, "blank": 0, "neither": 0}
    for i, each in enumerate(answered):
        right = plain(small, each, questions[i])[0].argmax(-1)
        changed = plain(small, each, swapped[i])[0].argmax(-1) != right
        vanished = plain(small, each, blank[i])[0].argmax(-1) != right
        assert judged[i].argmax.tolist() == right.tolist()
        assert judged[i].dependent.tolist() == (changed | vanished).tolist()
        only["swapped"] += int((changed & ~vanished).sum())
        only["blank"] += int((vanished & ~changed).sum())
        only["neither"] += int((~changed & ~vanished).sum())
    assert min(only.values()) > 0


def test_features_belong_to_the_token_that_follows(
    small: Any, answered: list[Answered], judged: list[Judged]
) -> None:
    """A probe trained on the state of the token itself would have seen the answer. 1e-5 of states
    of size one: fp32 sums in another order."""
    for each, found in zip(answered, judged, strict=True):
        if len(each.answer) == 1:
            assert found.hidden is None
            continue
        _, hidden = plain(small, each, each.question)
        assert found.hidden is not None
        assert found.visual_mass is not None
        assert float((found.hidden - hidden[1:]).abs().max()) <= 1e-5 * float(hidden.abs().max())
        text = small.model.config.get_text_config()
        heads = text.num_hidden_layers * text.num_attention_heads
        assert found.visual_mass.shape == (len(each.answer) - 1, heads)


def test_the_drafter_reads_the_text_only(
    small: Any, answered: list[Answered], judged: list[Judged]
) -> None:
    for each, found in zip(answered, judged, strict=True):
        words = [token for token in each.prompt.tolist() if token != families.IMAGE]
        with torch.no_grad():
            ids = torch.tensor([words + each.answer.tolist()])
            q = small.drafter(input_ids=ids).logits[0, len(words) - 1 : -1]
        assert found.drafted.tolist() == q.argmax(-1).tolist()
        logits, _ = plain(small, each, each.question)
        expected = total_variation(logits.softmax(-1), q.softmax(-1)).float()
        torch.testing.assert_close(found.divergence, expected, atol=1e-5, rtol=0)
        assert found.mismatched.tolist() == (found.argmax != found.drafted).tolist()


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5", "mllama", "gemma3"])
def test_other_kinds_of_models_are_read_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions in several rows, states and cross-attention: what a plain forward over a longer
    text gets wrong unless it is told more than the text.

    The inputs are made without a processor, one question at a time.
    """
    family = families.build(name)
    given = [dict(family.inputs(seed, 6, family.layouts[0])) for seed in (0, 1)]
    for inputs in given:
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    asked = [Asked([{"seed": seed}], [processors.image(seed)]) for seed in (0, 1)]

    def encoded(model: Any, processor: Any, asked: list[Asked]) -> Any:
        return given[asked[0].messages[0]["seed"]]

    monkeypatch.setattr(counterfactual, "model_inputs", encoded)
    found = counterfactual.answer(family.model, None, asked, max_new_tokens=8, batch=1)
    verifier = TransformersVerifier(family.model, hidden=True)
    for i, behind in counterfactual.read(verifier, None, found, asked, batch=1):
        assert behind.logits.argmax(-1).tolist() == found[i].answer.tolist()


def test_swapping_takes_an_image_that_differs() -> None:
    """An image that is shown twice is no counterfactual of itself."""
    same, other = processors.image(1), processors.image(2)
    asked = [Asked([], [image], "t") for image in (same, same.copy(), other)]
    swapped = counterfactual.swapped(asked)
    assert [each.images[0].tobytes() == other.tobytes() for each in swapped] == [True, True, False]
    with pytest.raises(ValueError, match="'t' has no two questions with 1 images that differ"):
        counterfactual.swapped(asked[:2])
    with pytest.raises(ValueError, match="with 2 images"):
        counterfactual.swapped([*asked, Asked([], [same, other], "t")])
    (white,) = counterfactual.blanked([Asked([], [Image.new("RGB", (3, 5))])])
    assert (white.images[0].size, white.images[0].getpixel((0, 0))) == ((3, 5), (255, 255, 255))
