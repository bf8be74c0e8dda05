from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from specdec.eval import report, report_pareto, report_plots, report_tables
from specdec.eval.bench_record import measured, read_record
from specdec.eval.report import render, write_report
from specdec.eval.report_html import Html, tag, ticks
from support import bench_records
from support.bench_records import PIXEL, Record

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = '</td></script><script>alert("x")</script><img src=x onerror=alert(1)> & "\''


class Page(HTMLParser):
    """Elements with their attributes and the text they stand in; refuses what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {name} {attrs}"
        self.elements.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open, f"</{name}> closes nothing"
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        for name in set(self.open):
            self.text.setdefault(name, []).append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == name]

    def words(self, name: str) -> str:
        return " ".join(self.text.get(name, []))


@pytest.fixture(scope="module")
def record() -> Record:
    return bench_records.record()


def replaced(part: Any, text: str) -> Any:
    """``part`` with ``text`` for every free text; names of methods stay different."""
    fixed = {"schema", "origin", "images", "started"}
    if isinstance(part, dict):
        return {
            name: value if name in fixed else replaced(value, text) for name, value in part.items()
        }
    if isinstance(part, list):
        return [replaced(each, text) for each in part]
    return f"{part} {text}" if isinstance(part, str) else part


def test_page_is_well_formed_and_in_order(record: Record) -> None:
    """A section that is lost, or an element that swallows those behind it."""
    page = Page(render(record))
    titles = [text for text in page.text["h2"] if text.strip()]
    assert titles == [
        *("Methods", "Speedup", "Acceptance by position", "τ by task", "Speed against fidelity"),
        *("Where the time goes", "Image and words", "Memory", "Answers", "Measure again"),
    ]
    assert len(page.all("h1")) == 1
    assert all(each.get("scope") for each in page.all("th"))
    assert all(each["role"] == "img" and each["aria-label"] for each in page.all("svg"))
    assert all("alt" in each for each in page.all("img"))


def test_page_refers_to_nothing_outside(record: Record) -> None:
    """A page that loads fonts or scripts is blank on a train and tells strangers who reads it."""
    text = render(record)
    page = Page(text)
    for name, attributes in page.elements:
        assert name not in {"link", "iframe", "object", "base", "use", "a"}
        for attribute in ("src", "href", "action", "srcset", "data"):
            assert (attributes.get(attribute) or "data:").startswith("data:")
        assert not any(attribute.startswith("on") for attribute in attributes)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_one_script_is_ours_and_allowed(record: Record) -> None:
    """A script that the page's own policy refuses would leave the viewer dead."""
    page = Page(render(replaced(record, HOSTILE)))
    assert len(page.all("script")) == 1
    script = "".join(page.text["script"])
    assert script == Path(report.__file__).with_name("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (each["content"] for each in page.all("meta") if "http-equiv" in each)
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_all_text_is_escaped(record: Record) -> None:
    """Prompts, answers, names and errors are strangers' text: as markup they could do anything."""
    hostile = replaced(record, HOSTILE)
    hostile["machine"][HOSTILE] = "a name"
    hostile["answers"][0]["methods"] = {HOSTILE: hostile["answers"][0]["methods"].popitem()[1]}
    hostile["methods"][1]["tasks"] = {HOSTILE: hostile["methods"][1]["overall"]}
    hostile["methods"][1]["modalities"] = {HOSTILE: {"drafted": 3, "accepted": 2}}
    page = Page(render(hostile))
    before = Page(render(record))
    assert {name for name, _ in page.elements} == {name for name, _ in before.elements}
    assert len(page.all("img")) == len(before.all("img"))
    for name in ("title", "code", "td", "th", "option", "article", "header"):
        assert '<script>alert("x")</script>' in page.words(name)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (PIXEL, True),
        (PIXEL.replace("image/png", "image/webp"), True),
        (PIXEL.replace("image/png", "image/svg+xml"), False),
        ("data:text/html;base64,PHNjcmlwdD4=", False),
        ("https://example.org/a.png", False),
        (PIXEL + '" onerror="alert(1)', False),
        ("data:image/png,raw", False),
        (PIXEL + "\n", False),
    ],
)
def test_only_embedded_pictures_are_shown(record: Record, source: str, shown: bool) -> None:
    """An image of another kind may hold a script, or tell a server who reads the page."""
    changed = copy.deepcopy(record)
    changed["answers"] = changed["answers"][:1]
    changed["answers"][0]["images"] = [source]
    page = Page(render(changed))
    assert [each["src"] for each in page.all("img")] == ([source] if shown else [])


def test_half_a_surrogate_pair_is_written(record: Record, tmp_path: Path) -> None:
    """JSON can hold what UTF-8 cannot: half an emoji from a token would end in an error."""
    changed = copy.deepcopy(record)
    changed["answers"][0]["prompt"] = "half \ud83d of it"
    path = tmp_path / "page.html"
    write_report(changed, path)
    assert "half ? of it" in path.read_text(encoding="utf-8")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_nulls_are_left_out(record: Record) -> None:
    """A record without acceptance, intervals and the like must not end in an error or "None"."""
    empty = bench_records.nulls(record)
    empty["machine"] = {}
    empty["wall_seconds"] = float("nan")
    page = Page(render(empty))
    titles = [text for text in page.text["h2"] if text.strip()]
    assert titles == ["Methods", "Measure again"]
    body = page.words("body")
    assert "No lossless speedup was measured" in body
    assert not re.search(r"\bNone\b|\bnan\b|\bnull\b", body)
    assert render(bench_records.record(methods=[], answers=[]))


def test_missing_parts_are_left_out(record: Record) -> None:
    """An older or smaller writer leaves keys out altogether."""
    small = {name: record[name] for name in record if name not in {"forwards", "answers"}}
    small["methods"] = [
        {
            **{name: each[name] for name in ("name", "batch", "temperature", "lossless")},
            "overall": {},
        }
        for each in record["methods"]
    ]
    assert "Measure again" in render(small)


def test_figures_are_those_of_the_record(record: Record) -> None:
    """A table that shows one figure under another's name."""
    table = report_tables.methods(record)
    (line,) = re.findall(r"<tr[^>]*><th scope=\"row\">eagle-shared, chain of 4.*?</tr>", table)
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", line)]
    assert cells == [
        *("3.41", "60%", "2.17 [2.12, 2.22]", "2.39 [2.34, 2.44]", "3.23", "24.3", "8.70"),
        *("1.00", "0.93", "0.970", "11 of 12, 1 tie"),
    ]
    assert "refused: ValueError: other tokens" in table
    page = render(record)
    for told in ("2.17×", "2.17 [2.12, 2.22]", "55%, 116 of 212", "87%, 377 of 431", "50%"):
        assert told in page
    assert "A Processor, 2 cores" in page
    assert "16.4M parameters" in page
    assert "specdec bench --questions 12" in page


def test_positions_are_shares_of_steps_that_drafted() -> None:
    """Steps that drafted nothing could not accept anything and must not count."""
    acceptance = {
        **{"num_spec_steps": 10, "num_plain_steps": 2},
        "num_accepted_tokens_per_pos": [6, 4, 1],
    }
    assert report_plots.by_position({"overall": {"acceptance": acceptance}}) == [0.75, 0.5, 0.125]
    acceptance["num_plain_steps"] = 10
    assert report_plots.by_position({"overall": {"acceptance": acceptance}}) == []


def test_headline_is_lossless_ours_and_right(record: Record) -> None:
    """The fastest method of all relaxes; one that says something else is no better."""
    found = report_tables.best(record)
    assert found is not None
    assert found["name"] == "eagle-shared, chain of 4"
    changed = copy.deepcopy(record)
    changed["methods"][1]["gate"]["wrong"] = 1
    found = report_tables.best(changed)
    assert found is not None
    assert found["name"] == "ngram, chain of 4"
    assert "1 wrong" in render(changed)
    uncompared = copy.deepcopy(record)
    for each in uncompared["methods"]:
        each["gate"] = None
    found = report_tables.best(uncompared)
    assert found is not None
    assert found["name"] == "eagle-shared, chain of 4"
    assert "not compared one by one" in report_tables.headline(uncompared)
    rival = bench_records.method("somebody else’s", 3.0, ours=False)
    changed["methods"].append(rival)
    assert "somebody else’s is faster: 3.00" in report_tables.headline(changed)


def test_settings_are_told_apart(record: Record) -> None:
    """Speedups at other batch sizes refer to another reference; side by side they mislead."""
    changed = copy.deepcopy(record)
    changed["methods"] += [
        bench_records.method("eagle-shared, chain of 4", 1.5, 3.3, drafter="e", batch=4),
        bench_records.method("eagle-shared, chain of 4", 1.7, 3.2, drafter="e", temperature=0.7),
    ]
    page = render(changed)
    assert "eagle-shared, chain of 4, batch 4" in page
    assert "eagle-shared, chain of 4, temperature 0.7" in page
    captions = Page(page).text["figcaption"]
    assert "End to end, batch 4, temperature 0" in captions
    assert "End to end, batch 1, temperature 0.7" in captions
    assert not any("batch" in each for each in Page(render(record)).text["figcaption"])


def test_every_method_is_drawn_once(record: Record) -> None:
    """Many methods do not fit one drawing; none may be lost where they are dealt out."""
    changed = copy.deepcopy(record)
    drafters = [*("a",) * 4, *("b",) * 3, *("c",) * 8]
    changed["methods"] = [
        bench_records.method(f"method {place}", 1.1, 2.0, drafter=drafter)
        for place, drafter in enumerate(drafters)
    ]
    panels = report_plots._panels(measured(changed))
    names = [method["name"] for panel in panels for method in panel.methods]
    assert sorted(names) == sorted(method["name"] for method in changed["methods"])
    assert all(len(panel.methods) <= 6 for panel in panels)
    assert [method["drafter"] for method in panels[0].methods] == ["a"] * 4


def test_front_has_no_point_that_another_beats() -> None:
    """Equal speeds or equal scores are where such lines go wrong."""
    pairs = [(1.0, 0.9), (2.0, 0.9), (2.0, 0.8), (3.0, 0.7), (2.5, 0.7), (1.5, 0.95)]
    points = [report_pareto.Point({}, *pair) for pair in pairs]
    found = [(point.speedup, point.score) for point in report_pareto.front(points)]
    assert found == [(1.5, 0.95), (2.0, 0.9), (3.0, 0.7)]


def test_tokens_say_where_they_came_from_without_colour(record: Record) -> None:
    """Colour alone says nothing to many; v is what one looks for in a relaxed token."""
    page = render(record)
    assert re.search(r'class="from-relaxed" title="[^"]*v = 0.312"', page)
    assert " 6<sub>v 0.31</sub>" in page
    assert "5 tokens: 2 drafted and exact, 1 relaxed, 2 the verifier’s own" in page


def test_without_script_the_first_answer_is_shown(record: Record) -> None:
    """A viewer that starts hidden shows nothing where scripts do not run."""
    page = Page(render(record))
    articles = page.all("article")
    assert ["hidden" in each for each in articles] == [False, True]
    said = [each for each in page.all("div") if "data-method" in each]
    assert ["hidden" in each for each in said] == [False, True] * 2
    (controls,) = (each for each in page.all("div") if each.get("class") == "controls")
    assert "hidden" in controls


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(theme: int) -> None:
    """Text needs a contrast of 4.5, marks and bars one of 3 (WCAG 2, AA)."""
    style = Path(report.__file__).with_name("report.css").read_text(encoding="utf-8")
    shades = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", style.split(":root {")[theme + 1]))
    for text, ground in (
        *(("text", each) for each in ("page", "soft", "drafted", "relaxed")),
        *((each, "page") for each in ("dim", "own", "wrong", "s0")),
        ("dim", "soft"),
    ):
        assert contrast(shades[text], shades[ground]) >= 4.5, (text, ground)
    for mark in ("bar", "s0", "s1", "s2", "s3", "s4", "s5"):
        assert contrast(shades[mark], shades["page"]) >= 3, mark
    for fill in re.findall(r"\.part\.\w+ \{ fill: (#[0-9a-f]{6});", style):
        assert contrast("#14171b", fill) >= 4.5, fill


@pytest.mark.parametrize(("low", "high"), [(0, 1.3), (0, 3.2), (1, 8.4), (0.95, 0.97), (0, 140)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low <= min(found) <= max(found) <= high


def test_markup_that_was_made_of_text_is_text_again() -> None:
    """An f-string around markup must not smuggle what it also holds past the escaping."""
    inner = tag("b", "<i>")
    assert isinstance(inner, Html)
    assert tag("p", inner) == "<p><b>&lt;i&gt;</b></p>"
    assert (
        tag("p", f"{inner}<script>") == "<p>&lt;b&gt;&amp;lt;i&amp;gt;&lt;/b&gt;&lt;script&gt;</p>"
    )
    assert tag("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_reads_what_was_written(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert read_record(path) == record


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": "specdec.bench/9"}, "specdec.bench/9.*specdec.bench/1"),
        ({"methods": None}, "methods is None"),
        ({"methods": "all"}, "methods is 'all'"),
        ({"machine": []}, "machine is"),
        ({"methods": [{"name": "a"}]}, "method 0 lacks batch, temperature, lossless"),
        ({"methods": [7]}, "method 0 is 7"),
        (
            {"methods": [bench_records.method("a", 1.0)] * 2},
            "method 1 is a second 'a'",
        ),
    ],
)
def test_says_what_is_wrong_with_which_file(
    record: Record, tmp_path: Path, change: Record, complaint: str
) -> None:
    """A KeyError from within a drawing tells nobody which of two files is at fault."""
    path = tmp_path / "some.json"
    path.write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=rf"some\.json.*{complaint}"):
        read_record(path)


@pytest.mark.parametrize("content", ["{", "[]", "\xff", None], ids=["cut", "list", "latin", "none"])
def test_says_which_file_is_no_record(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"some\.json"):
        read_record(path)


def test_names_what_is_missing(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps({name: record[name] for name in record if name != "model"}))
    with pytest.raises(ValueError, match=r"some\.json lacks model"):
        read_record(path)
