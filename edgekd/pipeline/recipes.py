"""Resolved recipes: a request and its graph as one YAML file that runs again anywhere, and overrides into it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

import edgekd
from edgekd.core.blobs import disk_errors
from edgekd.core.graph import Graph
from edgekd.core.schema import Schema, suggest
from edgekd.errors import UserError
from edgekd.pipeline.request import Options, Request

COMPOSED_FROM = ("request.", "options.")


class Recipe(Schema):
    """Everything a run is made of; `edgekd run` takes the file unchanged.

    Attributes:
        edgekd: Version that wrote the file, for the reader; another version may still run it.
        request: What was asked.
        options: How to try. Request and options say how the graph came about; changing either composes it anew.
        decisions: Why the graph has its shape.
        graph: The nodes.
    """

    schema_version: Literal[1] = 1
    edgekd: str = Field(default=edgekd.__version__)
    request: Request
    options: Options = Field(default_factory=Options)
    decisions: tuple[str, ...] = ()
    graph: Graph


def recipe_to_yaml(recipe: Recipe) -> str:
    """YAML text that `recipe_from_yaml` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False, allow_unicode=True, width=120)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the recipe, making the folder.

    Raises:
        UserError: The place cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe_to_yaml(recipe), encoding="utf-8")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, bool]:
    """Reads a recipe file and applies `key=value` overrides; tells whether its graph must be composed anew.

    Args:
        path: A file that `write_recipe` wrote, or one written by hand in the same form.
        overrides: Dotted keys. `request.` and `options.` reach what the graph is composed from; `graph.` reaches a node
            by its name: `graph.nodes.student-distill.config.epochs=5`.

    Raises:
        UserError: No such file, not YAML, an unknown key (with the near name), or a value that does not fit.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UserError(f"Cannot read the recipe {path}: {err.strerror}.") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"{path} is not valid YAML: {err}") from err
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a recipe (a mapping with request and graph), got {type(data).__name__}.")
    asked = [override for override in overrides if override.startswith(COMPOSED_FROM)]
    drawn = [override for override in overrides if not override.startswith(COMPOSED_FROM)]
    if asked and drawn:
        raise UserError(
            f"{asked[0]!r} composes the graph anew, so {drawn[0]!r} cannot be applied to the old one.",
            hint="run twice: first with --dry-run and the request's overrides, then the new resolved.yaml",
        )
    for override in overrides:
        _override_(data, override)
    return Recipe.parse(data, str(path)), bool(asked)


def _override_(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"The override {override!r} is not of the form key=value.", hint="request.seed=1, for example")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise UserError(f"The value of the override {override!r} is not valid YAML.") from err
    place: Any = data
    *parents, last = key.split(".")
    for part in parents:
        place = _inside(place, part, override)
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UserError(f"The override {override!r}: there are no keys below {parents[-1]!r}.")


def _inside(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, override)]
    if isinstance(place, dict) and part in place:
        return place[part]
    known = list(place) if isinstance(place, dict) else []
    names = [str(name) for name in known]
    hint = f"keys there: {', '.join(names)}" if names else None
    raise UserError(f"The override {override!r}: no key {part!r}.{suggest(part, names)}", hint=hint)


def _index(place: list[Any], part: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in place]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    known = [name for name in names if name]
    raise UserError(f"The override {override!r}: no entry {part!r}.{suggest(part, known)}")
