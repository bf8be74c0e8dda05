"""The README's picture and the record it is drawn from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from specdec.eval.readme_figure import TREE, UNIT, figure

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs/results/drafters.json").read_text())


def test_the_picture_is_that_of_the_record() -> None:
    """A new measurement whose picture nobody drew again leaves the README with old figures."""
    assert (ROOT / "docs/speed.svg").read_text() == figure(RECORD, TREE), (
        "run `python -m specdec.eval.readme_figure`"
    )


def test_bars_are_as_long_as_the_figures_say() -> None:
    """A bar from another column, or another scale for one of the two, flatters. Lengths are
    written to a tenth of a pixel.
    """
    drawn = re.findall(r'class="decode" x="\d+" y="\d+" width="([\d.]+)"', figure(RECORD, TREE))
    each = {k: v for k, v in RECORD["drafters"].items() if k.endswith(f", {TREE}")}
    wanted = [UNIT * entry["tasks"]["all"]["speedup_decode"]["median"] for entry in each.values()]
    assert len(wanted) > 3
    assert [float(width) for width in drawn] == pytest.approx(wanted, abs=0.051)


def test_an_unknown_tree_is_refused() -> None:
    """An empty picture would take the old one's place."""
    with pytest.raises(ValueError, match=r"chain of 5.*there are: .*chain of 8"):
        figure(RECORD, "chain of 5")
