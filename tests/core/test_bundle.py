from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.digest import digest
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import Edit, ModelRecipe
from edgekd.errors import UserError

RECIPE = ModelRecipe(
    builder="edgekd:residual",
    kwargs={"depths": [1, 2]},
    edits=(Edit(kind="resize", args={"a": 1}),),
    preprocessing=Preprocessing(size=(32, 32)),
    labels=("cat", "dog"),
)
BUNDLE = ModelBundle(
    kind=BundleKind.ONNX,
    inputs=(TensorSpec(name="images", shape=("N", 3, 32, 32)),),
    outputs=(TensorSpec(name="logits", shape=("N", 2)),),
    files={"model.onnx": digest("test", 1)},
    recipe=RECIPE,
    tags={"precision": "int8", "scheme": "ort-u8s8"},
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


def test_a_bundle_survives_json() -> None:
    assert ModelBundle.from_json(BUNDLE.to_json()) == BUNDLE


@settings(deadline=None, max_examples=50)
@given(kwargs=st.dictionaries(st.sampled_from("xyz"), plain), tags=st.dictionaries(st.sampled_from("xyz"), plain))
def test_the_content_survives_json(kwargs: dict[str, object], tags: dict[str, object]) -> None:
    recipe = RECIPE.model_copy(update={"kwargs": kwargs})
    bundle = BUNDLE.model_copy(update={"recipe": recipe, "tags": tags})
    assert ModelBundle.from_json(bundle.to_json()).content == bundle.content


def test_the_content_is_what_it_was_when_the_stores_of_our_users_were_written() -> None:
    assert BUNDLE.content == "5236f8cefb95d859b13f1b7be89c80a7f480f73b5d995454be8522a1d5a7e7c8"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": BundleKind.ENGINE},
        {"inputs": ()},
        {"outputs": ()},
        {"files": {"model.onnx": digest("test", 2)}},
        {"files": {"other.onnx": digest("test", 1)}},
        {"recipe": None},
        {"tags": {}},
        {"bound_to": "jetson"},
    ],
)
def test_every_field_is_part_of_the_content(change: dict[str, object]) -> None:
    assert BUNDLE.model_copy(update=change).content != BUNDLE.content


def test_a_missing_file_is_answered_with_those_there_are() -> None:
    assert BUNDLE.file("model.onnx") == digest("test", 1)
    with pytest.raises(UserError, match=r"This onnx bundle has no file 'x' \(it has: model\.onnx\)"):
        BUNDLE.file("x")


def test_a_report_has_no_model() -> None:
    assert BUNDLE.model == RECIPE
    with pytest.raises(UserError, match="this is a report bundle without a recipe"):
        _ = ModelBundle(kind=BundleKind.REPORT).model


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "bundle schema None, this edgekd reads 1"),
        ('{"schema_version": 2, "kind": "onnx"}', "bundle schema 2, this edgekd reads 1"),
        ('{"schema_version": 1, "kind": "onyx"}', "'kind'"),
        ('{"schema_version": 1, "kind": "onnx", "fils": {}}', "unknown key 'fils'. Did you mean 'files'"),
    ],
)
def test_what_is_no_bundle_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        ModelBundle.from_json(text, "out/bundle.json")
    assert caught.value.message.startswith("out/bundle.json: ")
    assert words in caught.value.message


@pytest.mark.parametrize("builder", ["timm:resnet18", "edgekd:residual", "module:my.pkg:make", "program", "onnx"])
def test_a_recipe_takes_every_known_builder(builder: str) -> None:
    assert ModelRecipe(builder=builder, preprocessing=Preprocessing(size=(8, 8))).builder == builder


@pytest.mark.parametrize("builder", ["", "timm", "timm:", "keras:x", "program:x", "onnx:x"])
def test_a_recipe_refuses_other_builders(builder: str) -> None:
    with pytest.raises(UserError, match="expected timm:NAME"):
        ModelRecipe.parse({"builder": builder, "preprocessing": {"size": [8, 8]}}, "recipe")


def test_an_edit_goes_to_the_end_and_changes_the_digest() -> None:
    edited = RECIPE.with_edit(Edit(kind="resize", args={"b": 2}))
    assert [edit.args for edit in edited.edits] == [{"a": 1}, {"b": 2}]
    assert edited.digest != RECIPE.digest
    assert len(RECIPE.edits) == 1


def test_bundle_json_is_stable_text() -> None:
    again = ModelBundle.from_json(json.dumps(json.loads(BUNDLE.to_json())))
    assert again.to_json() == BUNDLE.to_json()
