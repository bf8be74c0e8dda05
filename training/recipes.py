"""Recipes: options of a command in a YAML file, by their names. Knows no command.

kind: eagle
vision: shared
answers: 4096
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any  # values are whatever YAML holds; contexts are those of typer's click

import typer

_SHIPPED = "recipes"


def shipped() -> list[str]:
    """The names of the recipes that come along."""
    folder = files("specdec.training") / _SHIPPED
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_recipe(recipe: str) -> dict[str, Any]:
    """Options by their names, dashes or underscores alike, as underscores.

    Args:
        recipe: a name of :func:`shipped`, or a file.

    Raises:
        ValueError: there is no such recipe, or it is none.
    """
    import yaml  # type: ignore[import-untyped]  # it ships no type information

    file: Traversable = Path(recipe)
    if recipe in shipped():
        file = files("specdec.training") / _SHIPPED / f"{recipe}.yaml"
    if not file.is_file():
        raise ValueError(
            f"recipe {recipe}: neither a file nor one of those that come along: "
            f"{', '.join(shipped())}"
        )
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {recipe} is no YAML: {error}") from error
    if not isinstance(found, dict) or not all(map(_is_option, found.values())):
        raise ValueError(f"recipe {recipe}: expected lines such as 'answers: 4096'")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


def _is_option(value: object) -> bool:
    """Whether an option can have this value, or these, if it may be repeated."""
    every = value if isinstance(value, list) else [value]
    return not any(isinstance(each, (dict, list)) for each in every)


def use_recipe(context: typer.Context, recipe: str | None) -> str | None:
    """An option's callback: the recipe's values become the defaults of the command's other options.

    Raises:
        typer.BadParameter: it cannot be read, or names an option that the command has not.
    """
    if recipe is not None:
        try:
            values = read_recipe(recipe)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        known = {str(each.name) for each in context.command.params} - {"recipe", "out", "resume"}
        if unknown := sorted(values.keys() - known):
            raise typer.BadParameter(
                f"recipe {recipe}: no options {', '.join(unknown)}; there are "
                f"{', '.join(sorted(known))}"
            )
        context.default_map = {**(context.default_map or {}), **values}
    return recipe
