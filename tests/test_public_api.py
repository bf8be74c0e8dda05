"""The names that users import. Changing this list is a decision, not an accident."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import specdec

PUBLIC = [
    "AcceptanceStats",
    "Adaptive",
    "AsyncEngine",
    "DraftRequest",
    "DraftTree",
    "Drafter",
    "Engine",
    "NgramDrafter",
    "Relaxed",
    "TextOnlyDrafter",
    "ThreadedEngine",
    "Topology",
    "TransformersVerifier",
    "Verifier",
    "VerifierSpec",
    "chain",
    "decoder",
    "enabled",
    "generate",
    "load_drafter",
    "load_policy",
    "load_reliance",
    "save_policy",
    "static",
    "topology",
]


def test_public_names_are_these() -> None:
    assert specdec.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    """Names load on first use, so a wrong home shows only when somebody uses it."""
    value = getattr(specdec, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(specdec)


def test_type_checkers_see_the_same_names() -> None:
    """What type checkers read and what is loaded at run time are two lists; they must not part."""
    tree = ast.parse(Path(specdec.__file__ or "").read_text())
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(typed) == PUBLIC
    for name, module in typed.items():
        assert getattr(specdec, name).__module__.startswith(str(module)), name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generate_text'"):
        _ = specdec.generate_text
