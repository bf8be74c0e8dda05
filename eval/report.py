"""A record of `specdec bench` as one HTML page that needs nothing else: no network, no script.

The script only serves the choice between answers. Knows nothing of how anything was measured.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template

from specdec.eval import report_answers, report_charts, report_pareto, report_plots, report_tables
from specdec.eval.bench_record import Json, check
from specdec.eval.report_html import Html, escaped, join, tag
from specdec.files import write_text

_SPEED = "How many times as fast as the reference; the line is the reference, whiskers are 95 %."
_POSITION = (
    "Of the steps that drafted, the share that accepted a token at each position of the draft."
)
_TAU = "Mean acceptance length: tokens a step of the verifier, its own one included."
_PARETO = (
    "Up is more faithful, right is faster; the dashed line joins what nothing else beats in both."
)
_SHARES = "Of the whole time, prompt included."
_IMAGE = (
    "Acceptance of drafted tokens that the image decides, whose greedy continuation is another "
    "one without it, and of those that words decide."
)
_ANSWERS = "Every token of an answer, and where it came from."


def render(record: Json) -> str:
    """The page.

    Raises:
        ValueError: not a record that can be shown.
    """
    check(record, "the record")
    sections = [
        _section("Methods", "", report_tables.methods(record)),
        _section("Speedup", _SPEED, report_charts.speeds(record)),
        _section("Acceptance by position", _POSITION, report_plots.positions(record)),
        _section("τ by task", _TAU, report_plots.tasks(record)),
        _section("Speed against fidelity", _PARETO, report_pareto.pareto(record)),
        _section("Where the time goes", _SHARES, report_charts.shares(record)),
        _section("Image and words", _IMAGE, report_charts.modalities(record)),
        _section("Memory", "", report_tables.memory(record)),
        _section("Answers", _ANSWERS, report_answers.answers(record), "answers"),
        _section("Measure again", "", report_tables.how(record)),
    ]
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_asset("report.html")).substitute(
        title=escaped(f"specdec bench: {record['model'].get('name') or 'a model'}"),
        script_digest=digest,
        style=_asset("report.css"),
        script=script,
        header=report_tables.headline(record),
        sections=join(sections),
        schema=escaped(record["schema"]),
    )


def write_report(record: Json, path: Path) -> None:
    """Write the page; the file appears, or is replaced, in one move.

    Raises:
        ValueError: not a record that can be shown.
    """
    write_text(path, render(record))


def _section(title: str, says: str, content: Html, name: str | None = None) -> Html:
    if not content:
        return Html("")
    return tag("section", tag("h2", title), tag("p", says) if says else "", content, id=name)


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
