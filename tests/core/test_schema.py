from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgekd.core.schema import Schema, suggest
from edgekd.errors import UserError


class Inner(Schema):
    epochs: int = 1
    rates: tuple[float, ...] = ()


class Outer(Schema):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def problem(data: object) -> str:
    with pytest.raises(UserError) as caught:
        Outer.parse(data, "recipe.yaml")
    return str(caught.value)


def test_plain_data_comes_back_equal() -> None:
    made = Outer(name="x", inner=Inner(rates=(0.5,)), many=(Inner(), Inner(epochs=2)))
    assert Outer.parse(made.plain(), "x") == made


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"nam": "x"}, "unknown key 'nam'. Did you mean 'name'?"),
        ({"name": "x", "inner": {"epoch": 2}}, "unknown key 'inner.epoch'. Did you mean 'epochs'?"),
        ({"name": "x", "many": [{}, {"ratse": 1}]}, "unknown key 'many.1.ratse'. Did you mean 'rates'?"),
        ({"name": "x", "maybe": {"epcohs": 1}}, "unknown key 'maybe.epcohs'. Did you mean 'epochs'?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_near_one_at_any_depth(data: object, words: str) -> None:
    assert words in problem(data)


def test_every_problem_is_named_at_once_and_the_file_first() -> None:
    text = problem({"inner": {"epochs": "three"}, "zzz": 1})
    assert text.startswith("recipe.yaml: ")
    assert "'name' is missing." in text
    assert "'inner.epochs': Input should be a valid integer" in text
    assert "(got 'three')" in text
    assert "unknown key 'zzz'." in text
    assert "Did you mean" not in text


def test_what_is_no_mapping_is_refused() -> None:
    assert problem([1]) == "recipe.yaml: expected a mapping of keys, got list."


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(UserError, match="finite"):
        Inner.parse({"rates": [value]}, "x")


def test_a_schema_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().epochs = 2  # type: ignore[misc]


def test_only_near_names_are_suggested() -> None:
    assert suggest("distil", ["distill", "prune"]) == " Did you mean 'distill'?"
    assert suggest("xyz", ["distill", "prune"]) == ""


def test_a_near_name_is_suggested_inside_a_mapping_of_models() -> None:
    class Leaf(Schema):
        size: int

    class Tree(Schema):
        leaves: dict[str, Leaf]

    with pytest.raises(UserError, match=r"unknown key 'leaves\.left\.sise'\. Did you mean 'size'\?"):
        Tree.parse({"leaves": {"left": {"size": 1, "sise": 2}}}, "tree.yaml")
