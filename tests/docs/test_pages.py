"""What pages say: links lead somewhere, the reference is whole, figures are those recorded."""

from __future__ import annotations

import importlib
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import specdec
import specdec.drafters
from support.snippets import PAGES, ROOT

RESULTS = ROOT / "docs" / "results"
LINK = re.compile(r"\]\((?P<path>[^\s()#:]*)(?:#(?P<anchor>[^\s()]+))?\)")
REFERENCE = re.compile(r"^::: (\S+)", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (unicodedata.normalize("NFKC", re.sub(r"[`*\[\]]", "", t)).lower() for t in titles)
    return {re.sub(r"[^\w\- ]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """A page was renamed, or a heading, and others still lead to the old one. Followed from the
    file that the link stands in, as GitHub does.
    """
    lost = []
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for match in LINK.finditer(text):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        there = target.is_file() and target.is_relative_to(ROOT)
        if not there or (match["anchor"] and match["anchor"] not in anchors(target)):
            lost.append(match[0])
    assert not lost


def test_every_page_is_in_the_menu() -> None:
    """A page that the menu lacks is found by nobody."""
    menu = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if "docs" in page.parts}
    assert menu == pages | {"index.md", "contributing.md", "changelog.md"}


def test_the_reference_is_whole() -> None:
    """A new public name without an entry, or an entry whose name is gone."""
    entries = [
        entry
        for page in sorted((ROOT / "docs" / "api").glob("*.md"))
        for entry in REFERENCE.findall(page.read_text())
    ]
    assert len(entries) == len(set(entries))
    for entry in entries:
        resolve(entry)
    objects = {id(resolve(entry)) for entry in entries}
    for package in (specdec, specdec.drafters):
        missing = [n for n in package.__all__ if id(getattr(package, n)) not in objects]
        assert not missing, f"{package.__name__}: {missing}"


def resolve(name: str) -> Any:
    """The module or the object of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, member = name.rpartition(".")
        return getattr(importlib.import_module(module), member)


def test_every_record_is_listed_with_its_command() -> None:
    """A file of figures whose origin nobody remembers."""
    page = (ROOT / "docs" / "results.md").read_text()
    listed = re.findall(
        r"^\| \[([\w-]+\.json)\]\(results/\1\) .*`(?:python -m|specdec)", page, re.MULTILINE
    )
    assert sorted(listed) == sorted(path.name for path in RESULTS.glob("*.json"))


LABELS = {
    "transformers `generate`": "transformers generate",
    "a chain loop by hand, 4": "plain chain loop, 4",
}


def name_of(label: str) -> str:
    """What the record calls a row of a table."""
    plain = label.replace("**", "")
    drafter = re.fullmatch(r"specdec, `([^`]+)`, (.+)", plain)
    return LABELS.get(plain) or (", ".join(drafter.groups()) if drafter else plain)


def speeds() -> dict[str, list[str]]:
    """The rows of the tables of speeds, from the record."""
    rows = {}
    for method in json.loads((RESULTS / "bench.json").read_text())["methods"]:
        if method["batch"] == 1:
            figures, cells = method["overall"], []
            for key in ("speedup_decode", "speedup_end_to_end"):
                median, low, high = (figures[key][part] for part in ("median", "low", "high"))
                interval = f"{median:.2f} [{low:.2f}, {high:.2f}]"
                cells.append("1" if interval == "1.00 [1.00, 1.00]" else interval)
            acceptance = figures["acceptance"]
            length = f"{acceptance['mean_acceptance_length']:.1f}" if acceptance else ""
            rows[method["name"]] = [f"{figures['ms_per_token']:.2f}", *cells, length]
    return rows


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_speeds_are_those_that_were_recorded(page: str) -> None:
    """A new measurement, and a table that nobody wrote anew."""
    text, recorded = (ROOT / page).read_text(), speeds()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    found = {name_of(row[0]): row[1:] for row in rows if name_of(row[0]) in recorded}
    assert len(found) >= 7
    for name, cells in found.items():
        assert [cell.replace("**", "") for cell in cells] == recorded[name]
