from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind
from edgekd.errors import UserError
from edgekd.nn.build import WEIGHTS_FILE
from edgekd.nn.save import bundle_from_module, checked_weights, count_classes
from edgekd.testing.toys import toy_bundle, toy_cnn, toy_recipe


def test_a_bundle_describes_its_input_and_its_logits(blobs: FolderBlobs, scratch: Path) -> None:
    bundle = toy_bundle(blobs, scratch, classes=6, size=12, channels=1)
    assert bundle.kind is BundleKind.TORCH
    assert bundle.inputs[0].shape == ("N", 1, 12, 12)
    assert bundle.outputs[0].shape == ("N", 6)
    assert list(scratch.iterdir()) == []


def test_equal_modules_make_equal_content(blobs: FolderBlobs, scratch: Path) -> None:
    assert toy_bundle(blobs, scratch).content == toy_bundle(blobs, scratch).content
    assert toy_bundle(blobs, scratch).content != toy_bundle(blobs, scratch, seed=1).content


def test_saving_leaves_every_part_in_its_own_mode(blobs: FolderBlobs, scratch: Path) -> None:
    module = toy_cnn().train()
    module.stem[1].eval()
    statistics = module.stem[1].running_mean.clone()
    bundle_from_module(module, recipe=toy_recipe(), blobs=blobs, scratch=scratch)
    assert module.training
    assert not module.stem[1].training
    assert torch.equal(module.stem[1].running_mean, statistics)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_counted(bad: float, blobs: FolderBlobs, scratch: Path) -> None:
    module = toy_cnn()
    with torch.no_grad():
        module.classifier.weight[0, :2] = bad
    with pytest.raises(UserError, match=r"2 of 64 values of the weight 'classifier\.weight' are NaN or infinite"):
        bundle_from_module(module, recipe=toy_recipe(), blobs=blobs, scratch=scratch)


def test_labels_of_another_number_than_the_logits_are_refused(blobs: FolderBlobs, scratch: Path) -> None:
    recipe = toy_recipe().model_copy(update={"labels": ("cat", "dog")})
    with pytest.raises(UserError, match="gives 4 logits, but its recipe names 2 labels"):
        bundle_from_module(toy_cnn(), recipe=recipe, blobs=blobs, scratch=scratch)


def test_tied_views_and_strided_weights_are_kept_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = checked_weights({"a": base, "b": base, "view": base[:2], "turned": base.t()})
    assert all(value.is_contiguous() for value in state.values())
    assert len({value.untyped_storage().data_ptr() for value in state.values()}) == 4
    assert torch.equal(state["turned"], base.t())


def test_the_program_of_the_predecessor_travels_on(blobs: FolderBlobs, scratch: Path) -> None:
    bundle = toy_bundle(blobs, scratch)
    recipe = toy_recipe().model_copy(update={"builder": "program", "kwargs": {"form": "rebuilt"}})
    before = bundle.model_copy(update={"files": {**bundle.files, "program.pt2": bundle.files[WEIGHTS_FILE]}})
    after = bundle_from_module(toy_cnn(), recipe=recipe, blobs=blobs, scratch=scratch, carry=before, tags={"bits": 4})
    assert after.files["program.pt2"] == before.files["program.pt2"]
    assert after.tags == {"bits": 4}


def test_the_weights_file_holds_the_state_dict(blobs: FolderBlobs, scratch: Path) -> None:
    bundle = toy_bundle(blobs, scratch)
    assert load_file(blobs.path(bundle.files[WEIGHTS_FILE])).keys() == toy_cnn().state_dict().keys()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(("module", "found"), [(Pair(), "tuple"), (nn.Identity(), r"\(1, 3, 8, 8\)")])
def test_what_is_no_classifier_is_refused(module: nn.Module, found: str) -> None:
    with pytest.raises(UserError, match=f"one tensor of logits .* gives {found}"):
        count_classes(module, (3, 8, 8))


def test_an_input_shape_that_does_not_fit_is_refused_with_the_flag() -> None:
    with pytest.raises(UserError, match=r"does not take images of shape .* \(1, 8, 8\)(.|\n)*--input-shape"):
        count_classes(toy_cnn(), (1, 8, 8))
