"""What the page's files say, without a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import specdec

PAGE = Path(specdec.__file__).parent / "serving" / "page"

NEEDED = {  # of a colour on another: 4.5 for text, 3 for what else has to be seen (WCAG AA)
    4.5: [
        *(
            (text, ground)
            for text in ("text", "dim", "wrong", "accent")
            for ground in ("page", "soft")
        ),
        ("text", "drafted"),
        ("text", "relaxed"),
        ("on-accent", "accent"),
    ],
    3.0: [
        ("drafted-line", "page"),
        ("drafted-line", "drafted"),
        ("relaxed-line", "page"),
        ("relaxed-line", "relaxed"),
        ("verifier-line", "page"),
        ("edge", "page"),
        ("edge", "soft"),
        ("theirs", "page"),
        ("accent", "drafted"),
    ],
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_contrast(scheme: str) -> None:
    """Would catch a colour that cannot be read, in light or in dark."""
    light, dark = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", light if scheme == "light" else dark))
    for least, pairs in NEEDED.items():
        for one, other in pairs:
            ratio = contrast(colors[one], colors[other])
            assert ratio >= least, f"{one} on {other}: {ratio:.2f}"


def contrast(one: str, other: str) -> float:
    """Of WCAG 2: (L + 0.05) / (L' + 0.05)."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_nothing_comes_from_elsewhere_and_nothing_is_inline() -> None:
    """Would catch a script, style or address that the page's policy forbids in a browser that no
    test runs.
    """
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    for file in sorted(PAGE.iterdir()):
        addresses = re.findall(r"https?://[^\s'\"`]+", file.read_text())
        assert addresses in ([], ["http://www.w3.org/2000/svg"]), file.name
    assert {file.suffix for file in PAGE.iterdir()} == {".html", ".css", ".js"}


def test_the_page_names_its_files() -> None:
    """Would catch a file that is asked for and not there, and one that nobody asks for."""
    named = re.findall(r'(?:href|src)="([\w.]+)"', (PAGE / "index.html").read_text())
    for script in PAGE.glob("*.js"):
        named += re.findall(r'from "\./(.+)"', script.read_text())
    assert {*named, "index.html"} == {file.name for file in PAGE.iterdir()}
