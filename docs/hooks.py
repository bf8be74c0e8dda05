"""What the site needs beside mkdocs: pages that lie outside this folder, and links that lead there.

Links are written relative to the file that they stand in, so that they work where the repository is
read, and are followed from there: README.md is the site's first page, and whatever else of the
repository a page links to comes along under source/. A link to nothing is left as it is, for mkdocs
to refuse.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Files of the repository that are pages of the site, and where.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
ORIGINS = {uri: path for path, uri in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?P<path>[^\s()#:]+)(?=[)#])")
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):(?=<code>)")  # as docstrings are written


def place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"source/{path}")


def origin(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    if uri.startswith("source/"):
        return uri.removeprefix("source/")
    return ORIGINS.get(uri, f"docs/{uri}")


def targets(text: str, path: str) -> dict[str, str]:
    """The links of the file at ``path`` that lead to files of the repository, and to which."""
    found = {}
    for match in LINK.finditer(text):
        link = match["path"]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if not target.startswith("..") and (ROOT / target).is_file():
            found[link] = target
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere, and what pages link to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        for target in targets(page.content_string, origin(page.src_uri)).values():
            if files.get_file_from_path(place(target)) is None:
                files.append(File.generated(config, place(target), abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let links lead to where their targets lie in the site."""
    uri = page.file.src_uri
    found = targets(markdown, origin(uri))

    def lead(match: re.Match[str]) -> str:
        target = found.get(match["path"])
        if target is None:
            return match["path"]
        return posixpath.relpath(place(target), posixpath.dirname(uri))

    return LINK.sub(lead, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Show names in docstrings as names, without the roles that editors read."""
    return ROLE.sub("", html)
