from __future__ import annotations

import pytest

from edgekd.core.registry import Registry
from edgekd.errors import UserError


def registry() -> Registry[object]:
    return Registry("number", {"pi": "math:pi", "tau": "math:tau", "broken": "no.such.module:x"})


def test_an_entry_is_loaded_when_it_is_asked_for() -> None:
    assert registry().get("pi") == pytest.approx(3.14159, abs=1e-5)
    with pytest.raises(ModuleNotFoundError):
        registry().get("broken")


def test_an_unknown_name_is_answered_with_the_near_one_and_all() -> None:
    with pytest.raises(UserError) as caught:
        registry().get("tua")
    assert caught.value.message == "Unknown number 'tua'. Did you mean 'tau'?"
    assert caught.value.hint == "known: pi, tau, broken"


def test_a_name_is_registered_once() -> None:
    numbers = registry()
    numbers.register("e", "math:e")
    assert numbers.get("e") == pytest.approx(2.71828, abs=1e-5)
    with pytest.raises(UserError, match="'e' is registered already, as math:e"):
        numbers.register("e", "cmath:e")


def test_a_registry_can_be_listed() -> None:
    assert list(registry()) == ["pi", "tau", "broken"]
    assert len(registry()) == 3
    assert "pi" in registry()
    assert "e" not in registry()


@pytest.mark.parametrize(("name", "place"), [("Pi", "math:pi"), ("pi", "math.pi"), ("pi", "a:b:c")])
def test_entries_are_lower_case_and_say_where(name: str, place: str) -> None:
    with pytest.raises(ValueError, match="expected a lower-case name"):
        Registry("number", {name: place})
