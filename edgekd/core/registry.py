"""Named implementations, loaded when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from edgekd.core.schema import suggest
from edgekd.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to a lazily imported object, and answers an unknown name with the nearest known one.

    Args:
        noun: What is registered, for messages (`"objective"`).
        entries: `{"kd": "edgekd.distill.objectives.kd:KD"}`.
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self.noun = noun
        self._where = dict(entries)
        for name, place in self._where.items():
            if place.count(":") != 1 or name != name.lower():
                raise ValueError(f"{noun} {name!r}: expected a lower-case name and 'module:attribute', got {place!r}")

    def register(self, name: str, place: str) -> None:
        """Adds an entry of another package.

        Raises:
            UserError: The name is taken.
        """
        if name in self._where:
            raise UserError(f"The {self.noun} {name!r} is registered already, as {self._where[name]}.")
        self._where[name] = place

    def get(self, name: str) -> T:
        """The object registered under `name`.

        Raises:
            UserError: No such name; the message suggests the near one and lists all.
        """
        if name not in self._where:
            known = ", ".join(self._where)
            raise UserError(f"Unknown {self.noun} {name!r}.{suggest(name, self._where)}", hint=f"known: {known}")
        module, attribute = self._where[name].split(":")
        loaded: T = getattr(importlib.import_module(module), attribute)
        return loaded

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
