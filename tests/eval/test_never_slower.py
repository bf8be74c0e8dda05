"""The comparison of adaptive speculation with plain decoding, at toy size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specdec.drafters import TextOnlyDrafter
from specdec.drafters.eagle import EagleDrafter
from specdec.drafters.eagle_head import EagleHead
from specdec.eval import never_slower
from specdec.eval.comparison import GateError
from specdec.eval.never_slower import all_drafters, measure, randomised
from specdec.training.answers import Teacher
from specdec.training.kinds import Geometry, head_config


def test_every_cell_is_measured(small: Any) -> None:
    """A task or a batch size left out would be where speculation is slower."""
    drafters = all_drafters(small.drafter)
    asked = small.questions[:3]
    cells = list(measure(small.model, small.processor, asked, drafters, rounds=2, max_new_tokens=8))
    tasks = {each.task for each in asked}
    found = {(cell.task, cell.drafter, cell.batch) for cell in cells}
    assert found == {(task, name, b) for task in tasks for name in drafters for b in (1, 4)}
    for cell in cells:
        assert cell.speed.low <= cell.speed.median <= cell.speed.high
        assert cell.plain > 0
        count = sum(each.task == cell.task for each in asked)
        runs = 2 * -(-count // cell.batch)
        assert cell.pairs == runs
        assert cell.stats.num_generated_tokens == runs * cell.batch * 8
        assert json.loads(json.dumps(cell.to_dict()))["drafter"] == cell.drafter


def test_gate_refuses_a_wrong_token(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a decoder that answers something else must never be handed out."""
    generate = never_slower.generate

    def planted(*args: Any, drafter: Any, **how: Any) -> Any:
        out = generate(*args, drafter=drafter, **how)
        if drafter is not None:
            out[0, -1] += 1
        return out

    monkeypatch.setattr(never_slower, "generate", planted)
    drafters = {"text_only": TextOnlyDrafter(small.drafter)}
    with pytest.raises(GateError, match="text_only, batch of 1"):
        next(measure(small.model, small.processor, small.questions[:1], drafters, rounds=1))


def test_a_random_drafter_is_one(small: Any) -> None:
    """Were the trained weights shared, the useless drafter would be a good one, or both useless."""
    before = [parameter.clone() for parameter in small.drafter.parameters()]
    other = randomised(small.drafter, seed=0)
    pairs = list(zip(before, small.drafter.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(old, now) for old, now, _ in pairs)
    assert not any(torch.equal(old, new) for old, _, new in pairs if old.dim() > 1)


def test_questions_are_chosen_by_task(small: Any) -> None:
    asked = small.questions
    tasks = sorted({each.task for each in asked})
    chosen = never_slower._some(asked, 1, None)
    assert sorted(each.task for each in chosen) == tasks
    assert {each.task for each in never_slower._some(asked, 2, tasks[:1])} == set(tasks[:1])
    with pytest.raises(ValueError, match="task juggling; known: "):
        never_slower._some(asked, 1, ["juggling"])


def test_the_record_says_what_ran_it(small: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A ratio without machine, versions and settings cannot be compared with another."""
    monkeypatch.setattr(
        never_slower.suite, "load_verifier", lambda *_: (small.model, small.processor)
    )
    config = head_config(Teacher(small.model, small.processor), Geometry(vision="shared"))
    eagle = EagleDrafter(EagleHead(config), small.model.get_input_embeddings())
    drafters = {"text": TextOnlyDrafter(small.drafter), "eagle": eagle}
    monkeypatch.setattr(never_slower, "load_drafter", lambda path, _: drafters[path.name])
    monkeypatch.setattr(never_slower.suite, "load_questions", lambda _: small.questions[:1])
    out = tmp_path / "record.json"
    never_slower.never_slower(
        drafter=Path("text"),
        eagle=[Path("eagle")],
        questions=1,
        rounds=1,
        batch="1",
        max_new_tokens=4,
        task=None,
        threads=None,
        out=out,
    )
    record = json.loads(out.read_text())
    assert {"machine", "goal", "cells", "rounds", "dtype"} <= record.keys()
    assert record["machine"]["torch"] == torch.__version__
    assert [cell["drafter"] for cell in record["cells"]] == [
        "text_only",
        "ngram",
        "random",
        "ngram+text_only",
        "eagle-shared",
        "random eagle-shared",
    ]
