"""What a drafter is worth: what the watcher notes against drafts whose fate is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

import specdec
from specdec.drafters import NgramDrafter
from specdec.drafters.calibration import Calibration
from specdec.interfaces import DraftRequest, VerifierSpec
from specdec.training import worth
from specdec.training.answers import Teacher
from specdec.training.prompts import Asked
from specdec.tree import DraftTree, topology
from support import families, processors

FIRST, SECOND = 0.6, 0.3


class Knowing:
    """Drafts two tokens deep, two children each, of which the true one comes first at even places
    of the answer and second at odd ones; the deeper pair hangs below the true one.
    """

    name, model_seconds = "knowing", 0.0

    def __init__(self, answers: dict[tuple[int, ...], list[int]]) -> None:
        self.answers = answers

    def check(self, verifier: VerifierSpec) -> None: ...

    def release(self, request_id: int) -> None: ...

    def propose(self, batch: Sequence[DraftRequest]) -> list[DraftTree]:
        return [self._tree(request) for request in batch]

    def _tree(self, request: DraftRequest) -> DraftTree:
        answer = self.answers[tuple(request.tokens[: request.prompt_length])]
        place = len(request.tokens) - request.prompt_length
        tokens, parents, q, true = [request.tokens[-1]], [-1], torch.zeros(5, families.VOCAB), 0
        for at in (place, place + 1):
            right = answer[at] if at < len(answer) else 7
            pair = [right, (right + 1) % families.VOCAB][:: 1 if at % 2 == 0 else -1]
            q[true, pair[0]], q[true, pair[1]] = FIRST, SECOND
            parents += [true, true]
            tokens += pair
            true = len(tokens) - 2 + pair.index(right)
        return DraftTree(topology(tuple(parents)), tuple(tokens), q).truncate(request.shape.depth)


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return [Asked(processors.messages(i), [processors.image(i)], f"task {i % 2}") for i in range(6)]


def answers(teacher: Teacher, asked: Sequence[Asked]) -> dict[tuple[int, ...], list[int]]:
    found = {}
    for each in asked:
        inputs = teacher.inputs([each])
        prompt = inputs["input_ids"].shape[1]
        out = specdec.generate(
            teacher.model, **inputs, do_sample=False, max_new_tokens=teacher.max_new_tokens
        )[0].tolist()
        found[tuple(out[:prompt])] = out[prompt:]
    return found


def test_watching_notes_what_became_of_every_draft(teacher: Teacher, asked: list[Asked]) -> None:
    """Each place that was drafted behind a true beginning counts once, with both of its children;
    a tree compared with the wrong part of the answer shows as tokens that were not accepted.
    """
    known = answers(teacher, asked)
    watched = worth.watch(teacher, asked, Knowing(known))
    # The first token comes with the prompt, every third with a step that took both drafts, and of
    # the longest answer the last one needs no draft.
    last = teacher.max_new_tokens - 1
    places = [p for said in known.values() for p in range(1, len(said)) if p % 3 and p < last]
    assert len(watched.log_q) == 2 * len(places)
    assert watched.log_q.exp().tolist() == pytest.approx([FIRST, SECOND] * len(places))
    assert watched.first.tolist() == [True, False] * len(places)
    right = [first == (place % 2 == 0) for place in places for first in (True, False)]
    assert watched.accepted.tolist() == right


def test_tokens_that_depend_on_the_image_are_those_that_a_blank_one_changes(
    teacher: Teacher, asked: list[Asked]
) -> None:
    """Against transformers over the whole text at once."""
    known = answers(teacher, asked)
    visual = []
    for each, (prompt, answer) in zip(asked, known.items(), strict=True):
        said = []
        for image in (each.images[0], Image.new("RGB", each.images[0].size, "white")):
            inputs: dict[str, Any] = dict(teacher.inputs([each._replace(images=[image])]))
            inputs["input_ids"] = torch.tensor([[*prompt, *answer]])
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with torch.no_grad():
                logits = teacher.model(**inputs).logits[0, len(prompt) - 1 : -1]
            said.append(logits.argmax(-1))
        changes = (said[0] != said[1]).tolist()
        last = teacher.max_new_tokens - 1
        visual += [changes[p] for p in range(1, len(answer)) if p % 3 and p < last]
    watched = worth.watch(teacher, asked, Knowing(known))
    assert watched.visual[watched.first].tolist() == visual
    assert 0 < sum(visual) < len(visual)
    for name, depends in (("visual", True), ("language", False)):
        chosen = watched.first & (watched.visual == depends)
        found = worth.by_modality(watched)[name]
        assert found["num_draft_tokens"] == int(chosen.sum())
        share = float(watched.accepted[chosen].float().mean())
        assert found["draft_acceptance_rate"] == pytest.approx(share, abs=1e-4)


def test_calibration_recovers_how_often_drafts_are_accepted() -> None:
    """100,000 tokens accepted by a known curve: slope and shift to within five standard errors,
    about 0.02 each; a shift with the wrong sign or a slope on q instead of its logit is far off.
    """
    generator = torch.Generator().manual_seed(5)
    logit = torch.randn(100_000, generator=generator) * 2
    accepted = torch.rand(len(logit), generator=generator) < (0.7 * logit - 0.4).sigmoid()
    alike = torch.zeros_like(accepted)
    found = worth.calibrate(
        worth.Watched(torch.nn.functional.logsigmoid(logit), accepted, *[alike] * 2)
    )
    assert found.slope == pytest.approx(0.7, abs=0.05)
    assert found.shift == pytest.approx(-0.4, abs=0.05)
    assert math.exp(found.log_accepted(torch.tensor(0.5).log())) == pytest.approx(0.4013, abs=0.02)


@pytest.mark.parametrize("accepted", [[True] * 4, [True, True, False, False]])
def test_calibration_is_none_where_it_cannot_be_told(accepted: list[bool]) -> None:
    """All alike, or less probable tokens accepted more often: path probabilities stay as they are,
    since a slope below 0 would order trees the wrong way round.
    """
    log_q = torch.tensor([0.1, 0.2, 0.8, 0.9]).log()
    alike = torch.zeros(4, dtype=torch.bool)
    watched = worth.Watched(log_q, torch.tensor(accepted), alike, alike)
    assert worth.calibrate(watched) == Calibration()


def test_acceptance_is_told_by_task(teacher: Teacher, asked: list[Asked]) -> None:
    [row] = worth.acceptance(teacher, asked, NgramDrafter(), chains=(2,))
    by_task = row["mean_acceptance_length_by_task"]
    assert list(by_task) == ["task 0", "task 1"]
    for task, tau in by_task.items():
        [alone] = worth.acceptance(
            teacher, [each for each in asked if each.task == task], NgramDrafter(), chains=(2,)
        )
        assert tau == pytest.approx(alone["mean_acceptance_length"], abs=1e-3)
