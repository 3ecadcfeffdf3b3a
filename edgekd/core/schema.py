"""The strict base of every config, recipe, card and report: frozen, no unknown keys, errors a person can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from edgekd.errors import UserError


def suggest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known name, or the empty string."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


class Schema(BaseModel):
    """Frozen data whose unknown keys are errors that suggest the near name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def parse(cls, data: object, where: str) -> Self:
        """Validates plain data read from `where` (a file name, a flag).

        Raises:
            UserError: The data does not fit; one sentence per problem, each naming the key.
        """
        if not isinstance(data, Mapping):
            raise UserError(f"{where}: expected a mapping of keys, got {type(data).__name__}.")
        try:
            return cls.model_validate(dict(data))
        except ValidationError as err:
            raise UserError(f"{where}: " + " ".join(_problems(cls, err))) from err

    def plain(self) -> dict[str, Any]:
        """JSON-ready data; `parse` of it gives an equal object."""
        return self.model_dump(mode="json")


def _problems(cls: type[BaseModel], err: ValidationError) -> list[str]:
    lines = []
    for problem in err.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(cls, problem["loc"][:-1])
            lines.append(f"unknown key '{place}'.{suggest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"'{place}' is missing.")
        else:
            lines.append(f"'{place}': {problem['msg']} (got {problem['input']!r}).")
    return lines


def _fields_at(cls: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Field names of the model that stands at `loc` inside `cls`, empty when the path leaves the models."""
    current: type[BaseModel] = cls
    is_key = False
    for part in loc:
        if isinstance(part, int) or is_key:
            is_key = False  # a place in a sequence, or a key of a mapping of models
            continue
        field = current.model_fields.get(part)
        inner = None if field is None else _model_in(field.annotation)
        if field is None or inner is None:
            return []
        is_key = getattr(field.annotation, "__origin__", None) is dict
        current = inner
    return list(current.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
