"""Whose a folder of answers is."""

from __future__ import annotations

from pathlib import Path

import pytest

from specdec.training.claims import claim_answers

FACTS = {"verifier": "lvlm", "tasks": ("a", "b"), "seed": 0}


def test_runs_that_ask_the_same_share_answers(tmp_path: Path) -> None:
    """A folder that is there from the second run on, refused as if it were somebody else's."""
    folder = tmp_path / "answers"
    for _ in range(2):
        claim_answers(FACTS, folder)
        (folder / "answers-00000.arrow").touch()


def test_answers_of_others_are_refused(tmp_path: Path) -> None:
    """Another verifier's answers taken for this one's train a drafter for that."""
    claim_answers(FACTS, tmp_path / "answers")
    with pytest.raises(ValueError, match="of verifier='lvlm', this run's of 'other'"):
        claim_answers({**FACTS, "verifier": "other"}, tmp_path / "answers")
    (tmp_path / "answers-00000.arrow").touch()
    with pytest.raises(ValueError, match=r"no answers\.json says whose"):
        claim_answers(FACTS, tmp_path)


def test_no_other_folder_is_filled_with_answers(tmp_path: Path) -> None:
    """The folder of a run, given for that of its answers: they would lie among its files, and all
    be asked for again.
    """
    own = tmp_path / "unfinished" / "answers"
    claim_answers(FACTS, own)
    (tmp_path / "drafter.json").touch()
    with pytest.raises(ValueError, match=f"give {own}, which holds answers"):
        claim_answers(FACTS, tmp_path)
    with pytest.raises(ValueError, match="give an empty folder"):
        claim_answers(FACTS, tmp_path / "unfinished")
    assert {path.name for path in tmp_path.iterdir()} == {"drafter.json", "unfinished"}
    (tmp_path / "empty").mkdir()
    claim_answers(FACTS, tmp_path / "empty")
