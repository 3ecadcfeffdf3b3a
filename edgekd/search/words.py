"""Says in a line what a student is: `depths 1-3-2, widths 16-16-32-64`."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from edgekd.core.recipe import ModelRecipe
from edgekd.search.space import Arch, GridSpace

_FIXED = ("classes", "in_channels")
"""The same for all students of a search."""


def words_of(space: GridSpace, arch: Arch) -> str:
    """The arguments of the student's builder, lists joined by dashes; its choices where it is an edited network."""
    recipe: ModelRecipe = space.recipe(arch)
    if recipe.edits:
        choices = zip(space.axes.items(), arch, strict=True)
        return ", ".join(f"{name} {axis[choice]}" for (name, axis), choice in choices)
    own = {name: value for name, value in recipe.kwargs.items() if name not in _FIXED}
    return ", ".join(f"{name} {text}" for name, text in _named(own))


def _named(kwargs: Mapping[str, JsonValue]) -> list[tuple[str, str]]:
    """(name, text) of each argument; a list of mappings is turned into one list for each of their keys."""
    named: list[tuple[str, str]] = []
    for name, value in kwargs.items():
        tables = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        if tables:
            named += [(key, "-".join(_text(table.get(key)) for table in tables)) for key in tables[0]]
        else:
            named.append((name, _text(value)))
    return [(name.replace("_", " "), text) for name, text in named]


def _text(value: JsonValue) -> str:
    if isinstance(value, list):
        return "-".join(_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
