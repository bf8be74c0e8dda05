from __future__ import annotations

import pytest

from support.small import Small, build


@pytest.fixture(scope="session")
def small() -> Small:
    return build()
