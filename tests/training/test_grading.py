"""Wording and grading: facts survive every paraphrase, and nothing but the facts counts."""

import random
from itertools import pairwise

import pytest

from specdec.training import curriculum, dialogues, grading, scenes

pytest.importorskip("sklearn", reason="the train extra")


def _dialogue(task: str, seed: int) -> dialogues.Dialogue:
    if task == "pair_first":
        pair = [scenes.make_scene(seed + 1000 * i, "held_out", "shapes") for i in range(2)]
        return dialogues.about_pair(pair[0], pair[1], seed)
    scene = scenes.make_scene(seed, "held_out", dialogues.KIND_OF[task])
    return dialogues.about(
        scene, task, seed, follow_up=seed % 3 == 0 and task in dialogues.FOLLOW_UPS
    )


@pytest.mark.parametrize("task", dialogues.TASK_NAMES)
def test_every_paraphrase_parses_back_to_its_fields(task: str) -> None:
    """Catches a synonym that reads as a fact, or a fact that no pattern finds."""
    for seed in range(150):
        made = _dialogue(task, seed)
        said = made.turns[-1].answer
        assert grading.score(task, made.fields, said).exact, (made.fields, said)


@pytest.mark.parametrize("task", dialogues.TASK_NAMES)
def test_any_wrong_field_is_not_exact(task: str) -> None:
    """Catches a parser that reads a field off the question or off another field."""
    for seed in range(30):
        made = _dialogue(task, seed)
        for name, value in made.fields.items():
            got = grading.score(task, made.fields | {name: value + "?"}, made.turns[-1].answer)
            assert (got.right, got.total) == (len(made.fields) - 1, len(made.fields))


@pytest.mark.parametrize("task", dialogues.TASK_NAMES)
def test_an_answer_about_another_image_is_not_exact(task: str) -> None:
    """Catches fields that could be told without the image: swapped answers must mostly fail."""
    made = [_dialogue(task, seed) for seed in range(40)]
    swapped = sum(
        grading.score(task, a.fields, b.turns[-1].answer).exact for a, b in pairwise(made)
    )
    assert (
        swapped <= 13
    )  # table_cell has one digit, "not there" answers share a count; most tasks score 0


def test_silence_scores_nothing() -> None:
    """Catches defaults that count as right."""
    got = grading.score(
        "bar_compare", {"first": "3", "second": "5", "difference": "2", "taller": "B"}, ""
    )
    assert (got.right, got.exact) == (0, False)


def test_two_statements_of_one_fact_are_none() -> None:
    """An answer that says both 3 and 4 must not be graded by whichever comes first."""
    assert "number" not in grading.parse("table_cell", "the value is 3, or 4")


def test_wording_varies_and_facts_do_not() -> None:
    """Catches templates: fifty answers about one scene are worded in at least forty-five ways."""
    scene = scenes.make_scene(3, "held_out", "bars")
    made = [dialogues.about(scene, "bar_extreme", seed) for seed in range(50)]
    assert len({d.turns[-1].answer for d in made}) >= 45
    assert len({tuple(d.fields.items()) for d in made}) == 1


def test_brief_turns_are_seeded() -> None:
    """Catches an unseeded choice in the curriculum."""
    scene = scenes.make_scene(3, "train", "shapes")
    assert curriculum.brief(scene, random.Random(1)) == curriculum.brief(scene, random.Random(1))


def test_unknown_task_is_refused() -> None:
    """The error names the task."""
    with pytest.raises(ValueError, match="'riddle'"):
        grading.parse("riddle", "")
