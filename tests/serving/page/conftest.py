"""One browser and one server per module, for the tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from support.browsing import Visit
    from support.fake_chat import Fake


@pytest.fixture(scope="module")
def one_visit() -> Iterator[tuple[Visit, Fake]]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("fastapi", reason="the serve extra is not installed")
    from support.browsing import visiting
    from support.fake_chat import Fake, app, served

    fake = Fake()
    with served(app(fake)) as address, visiting(address) as visit:
        yield visit, fake


@pytest.fixture
def fake(one_visit: tuple[Visit, Fake]) -> Fake:
    """The server, as new."""
    one_visit[1].reset()
    return one_visit[1]


@pytest.fixture
def visit(one_visit: tuple[Visit, Fake], fake: Fake) -> Iterator[Visit]:
    """Not opened yet, so that a test can say first what it meets."""
    visit = one_visit[0]
    visit.begin()
    yield visit
    visit.check()


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page
