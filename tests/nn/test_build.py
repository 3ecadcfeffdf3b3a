from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import Edit, ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle, module_from_recipe
from edgekd.testing.toys import toy_bundle, toy_cnn, toy_recipe
from tests.nn.zoo import images

FACTORY = """
from torch import nn
def small(width, classes=3):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
def pair():
    return small(2), {}
"""


def recipe(builder: str, **kwargs: object) -> ModelRecipe:
    return ModelRecipe(builder=builder, kwargs=kwargs, preprocessing=Preprocessing(size=(8, 8)))


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_networks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "my_networks", raising=False)
    return "module:my_networks"


def test_a_bundle_gives_back_the_outputs_of_the_module_it_was_made_from(blobs: FolderBlobs, scratch: Path) -> None:
    rebuilt = module_from_bundle(toy_bundle(blobs, scratch, seed=3), blobs)
    assert torch.equal(rebuilt(images()), toy_cnn(seed=3)(images()))
    assert not rebuilt.training


def test_equal_seeds_give_equal_weights_and_other_seeds_others() -> None:
    one, same, other = (module_from_recipe(toy_recipe(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])


def test_building_leaves_the_global_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    module_from_recipe(toy_recipe(), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_factory_in_the_working_directory_is_found_and_called(factory: str) -> None:
    assert module_from_recipe(recipe(f"{factory}:small", width=5))(images()).shape == (3, 3)


@pytest.mark.parametrize(
    ("attribute", "kwargs", "words"),
    [
        ("smal", {}, "has no function or class 'smal'. Did you mean 'small'?"),
        ("small", {}, "missing a required argument: 'width'"),
        ("small", {"width": 2, "depth": 1}, "(width, classes=3)"),
        ("pair", {}, "must return a torch.nn.Module, but returned tuple"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(factory: str, attribute: str, kwargs: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        module_from_recipe(recipe(f"{factory}:{attribute}", **kwargs))
    assert words in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named_with_the_folder_to_run_from() -> None:
    with pytest.raises(UserError, match=r"cannot import no_such_package(.|\n)*run from the folder that holds no_such"):
        module_from_recipe(recipe("module:no_such_package.nets:make"))


def test_an_unknown_family_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'residual'"):
        module_from_recipe(recipe("edgekd:residul"))


def test_an_onnx_recipe_has_no_module() -> None:
    with pytest.raises(UserError, match="no PyTorch module"):
        module_from_recipe(recipe("onnx"))


def test_a_program_recipe_needs_its_file() -> None:
    with pytest.raises(UserError, match=r"needs the file program\.pt2"):
        module_from_recipe(recipe("program", form="rebuilt"))


def test_a_report_is_no_module(blobs: FolderBlobs) -> None:
    with pytest.raises(UserError, match="built from a torch bundle, but this is a report bundle"):
        module_from_bundle(ModelBundle(kind=BundleKind.REPORT), blobs)


def test_weights_that_do_not_fit_the_recipe_any_more_are_refused(blobs: FolderBlobs, scratch: Path) -> None:
    bundle = toy_bundle(blobs, scratch)
    changed = bundle.model_copy(update={"recipe": toy_recipe(classes=5)})
    with pytest.raises(UserError, match="do not fit the recipe of builder 'edgekd:residual'"):
        module_from_bundle(changed, blobs)


def test_an_edit_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UserError, match="cannot replay the edit 'rotate'"):
        module_from_recipe(toy_recipe().with_edit(Edit(kind="rotate")))


def test_only_a_frozen_program_and_a_graph_cannot_train() -> None:
    assert is_trainable(toy_recipe())
    assert is_trainable(recipe("program", form="rebuilt"))
    assert not is_trainable(recipe("program", form="frozen"))
    assert not is_trainable(recipe("onnx"))
