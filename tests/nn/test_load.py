from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekd.core.blobs import FolderBlobs
from edgekd.core.preprocess import Preprocessing
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import PROGRAM_FILE, module_from_bundle
from edgekd.nn.load import LoadedModel, load_model
from edgekd.nn.overrides import PreprocessingOverrides
from edgekd.nn.timm import module_from_timm
from edgekd.testing.toys import toy_cnn, toy_recipe
from tests.nn.test_sniff import Bomb, onnx_file, torchscript_file
from tests.nn.zoo import Mixed, Tokens, exported, images, randomised, saved

KWARGS = toy_recipe().kwargs


class Loader:
    """`load_model` with the folders of the test."""

    def __init__(self, folder: Path, blobs: FolderBlobs, scratch: Path) -> None:
        self.path, self.blobs, self.scratch = folder / "model.pt", blobs, scratch

    def __call__(self, **options: Any) -> LoadedModel:
        return load_model(self.path, blobs=self.blobs, scratch=self.scratch, **options)

    def refused(self, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            self(**options)
        return str(caught.value)

    def weights(self, seed: int = 0) -> Loader:
        torch.save(toy_cnn(seed=seed).state_dict(), self.path)
        return self


@pytest.fixture
def loader(tmp_path: Path, blobs: FolderBlobs, scratch: Path) -> Loader:
    return Loader(tmp_path, blobs, scratch)


def toy_arch(**options: Any) -> dict[str, Any]:
    return {"arch": "edgekd:residual", "arch_kwargs": KWARGS, "input_shape": (3, 8, 8), **options}


def test_weights_with_their_architecture_become_a_bundle(loader: Loader) -> None:
    loaded = loader.weights(seed=4)(**toy_arch(labels=("a", "b", "c", "d")))
    module = module_from_bundle(loaded.bundle, loader.blobs)
    assert torch.equal(module(images()), toy_cnn(seed=4)(images()))
    assert loaded.trainable
    assert loaded.bundle.model.labels == ("a", "b", "c", "d")


def test_safetensors_and_old_files_load_like_new_ones(loader: Loader) -> None:
    content = loader.weights()(**toy_arch()).bundle.content
    torch.save(toy_cnn().state_dict(), loader.path, _use_new_zipfile_serialization=False)
    assert loader(**toy_arch()).bundle.content == content
    save_file(toy_cnn().state_dict(), loader.path)
    assert loader(**toy_arch()).bundle.content == content


def test_an_assumed_preprocessing_is_said_and_a_given_one_is_not(loader: Loader) -> None:
    loader.weights()
    given = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    assumed = loader(**toy_arch())
    assert assumed.bundle.model.preprocessing == Preprocessing(size=(8, 8))
    assert re.match(r"Assumed the preprocessing 8x8, mean \[0\.485", assumed.notes[-1])
    told = loader(**toy_arch(input_shape=None, preprocessing=given))
    assert told.bundle.model.preprocessing == given
    assert told.notes == ()


def test_what_is_given_comes_before_what_is_assumed_and_the_rest_is_said(loader: Loader) -> None:
    loader.weights()
    mean = PreprocessingOverrides(mean=(0.5,) * 3)
    loaded = loader(**toy_arch(preprocessing_overrides=mean))
    assert loaded.bundle.model.preprocessing == Preprocessing(size=(8, 8), mean=(0.5,) * 3)
    assert loaded.notes[-1].startswith("Assumed the preprocessing 8x8, std [0.229")
    assert "mean" not in loaded.notes[-1]
    everything = PreprocessingOverrides(
        mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest", channel_order="BGR", crop_fraction=0.9
    )
    assert loader(**toy_arch(preprocessing_overrides=everything)).notes == ()
    full = Preprocessing(size=(8, 8), std=(0.1,) * 3)
    both = loader(**toy_arch(preprocessing=full, preprocessing_overrides=mean))
    assert both.bundle.model.preprocessing == full.model_copy(update={"mean": (0.5,) * 3})


def test_one_given_value_leaves_the_others_of_timm_as_they_are(loader: Loader) -> None:
    torch.save(module_from_timm("test_resnet", {}).state_dict(), loader.path)
    own = loader(arch="timm:test_resnet").bundle.model.preprocessing
    loaded = loader(arch="timm:test_resnet", preprocessing_overrides=PreprocessingOverrides(crop_fraction=0.5))
    assert loaded.bundle.model.preprocessing == own.model_copy(update={"crop_fraction": 0.5})
    assert own != Preprocessing(size=own.size, crop_fraction=own.crop_fraction)
    assert loaded.notes[-1].endswith("Used instead, as given: crop fraction 0.5.")


def test_a_program_tells_the_size_to_partly_given_preprocessing(loader: Loader) -> None:
    saved(exported(toy_cnn(), images(2)), loader.path.with_suffix(".pt2")).rename(loader.path)
    loaded = loader(preprocessing_overrides=PreprocessingOverrides(std=(0.25,) * 3))
    assert loaded.bundle.model.preprocessing == Preprocessing(size=(8, 8), std=(0.25,) * 3)


def test_a_factory_of_the_users_own_module_is_recorded_in_the_recipe(
    loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_nets.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self, k):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(48, k))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save({"1.weight": torch.zeros(3, 48), "1.bias": torch.zeros(3)}, loader.path)
    loaded = loader(arch="users_nets:Net", arch_kwargs={"k": 3}, input_shape=(3, 4, 4))
    assert loaded.bundle.model.builder == "module:users_nets:Net"
    assert loaded.bundle.outputs[0].shape == ("N", 3)


def test_a_fine_tuned_timm_model_needs_its_name_only(loader: Loader) -> None:
    module = module_from_timm("test_resnet", {"num_classes": 5})
    torch.save({"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}}, loader.path)
    loaded = loader(arch="timm:test_resnet")
    assert loaded.bundle.model.kwargs == {"num_classes": 5}
    assert loaded.bundle.model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert [note.split()[0] for note in loaded.notes] == ["Took", "The", "Took", "Preprocessing"]
    assert "--arch-arg in_chans=1" in loader.refused(arch="timm:test_resnet", input_shape=(1, 64, 64))
    assert loader(arch="timm:test_resnet", input_shape=(3, 64, 64)).bundle.inputs[0].shape == ("N", 3, 64, 64)


def test_a_program_becomes_a_trainable_bundle_that_carries_the_program(loader: Loader) -> None:
    module = randomised(Mixed())
    saved(exported(module, images(2)), loader.path.with_suffix(".pt2")).rename(loader.path)
    loaded = loader()
    assert loaded.trainable
    assert PROGRAM_FILE in loaded.bundle.files
    assert loaded.bundle.model.preprocessing.size == (8, 8)
    rebuilt = module_from_bundle(loaded.bundle, loader.blobs)
    assert torch.equal(rebuilt(images()), module(images()))
    assert isinstance(rebuilt.get_submodule("norm2"), nn.BatchNorm2d)


def test_a_program_that_cannot_be_rebuilt_stays_frozen_with_the_reason(loader: Loader) -> None:
    program = exported(toy_cnn(), images(2)).run_decompositions()
    saved(program, loader.path.with_suffix(".pt2")).rename(loader.path)
    loaded = loader()
    assert not loaded.trainable
    assert "not trained or pruned: The program normalises with" in loaded.notes[-1]
    frozen = module_from_bundle(loaded.bundle, loader.blobs)
    assert torch.allclose(frozen(images()), toy_cnn()(images()), atol=1e-5)


def test_a_program_of_another_image_size_is_refused(loader: Loader) -> None:
    saved(exported(toy_cnn(), images(2)), loader.path.with_suffix(".pt2")).rename(loader.path)
    assert "exported for images of shape (C, H, W) = (3, 8, 8), but (3, 16, 16)" in loader.refused(
        input_shape=(3, 16, 16)
    )


def test_a_program_of_one_batch_size_is_refused_with_the_way_to_export(loader: Loader) -> None:
    saved(exported(Tokens(), images(2), dynamic=False), loader.path.with_suffix(".pt2")).rename(loader.path)
    assert "for one batch size only" in loader.refused()
    assert "dynamic_shapes" in loader.refused()


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_a_program_of_two_inputs_is_refused(loader: Loader) -> None:
    program = torch.export.export(TwoInputs(), (images(2), images(2)))
    saved(program, loader.path.with_suffix(".pt2")).rename(loader.path)
    assert "expected one batch of images (N, C, H, W)" in loader.refused()


def test_a_pickle_is_refused_and_not_read_without_trust(loader: Loader, tmp_path: Path) -> None:
    torch.save({"w": Bomb(tmp_path / "ran")}, loader.path)
    message = loader.refused()
    assert not (tmp_path / "ran").exists()
    assert "is a pickle, and reading it runs code" in message
    assert f"torch.load('{loader.path}', weights_only=False).state_dict(), 'weights.pt')" in message
    assert "--trust-pickle" in message


def test_the_command_that_the_refusal_gives_converts_the_file(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(toy_cnn(), loader.path)
    code = re.search(r'python -c "(.*?)"', loader.refused())
    assert code is not None
    monkeypatch.chdir(loader.path.parent)
    exec(code[1], {})
    loader.path = loader.path.parent / "weights.pt"
    assert loader(**toy_arch()).trainable


def test_a_trusted_module_goes_on_as_a_program(loader: Loader) -> None:
    torch.save(toy_cnn(), loader.path)
    loaded = loader(trust_pickle=True, input_shape=(3, 8, 8))
    assert loaded.bundle.model.builder == "program"
    assert loaded.notes[0].startswith("Unpickled Residual on your word")
    assert torch.equal(module_from_bundle(loaded.bundle, loader.blobs)(images()), toy_cnn()(images()))
    assert "--input-shape" in loader.refused(trust_pickle=True)


def test_a_trusted_pickle_with_an_architecture_gives_its_weights(loader: Loader) -> None:
    torch.save(toy_cnn(), loader.path)
    assert loader(trust_pickle=True, **toy_arch()).bundle.model.builder == "edgekd:residual"
    torch.save({"model": toy_cnn().state_dict(), "args": Path("x")}, loader.path)
    assert loader(trust_pickle=True, **toy_arch()).bundle.model.builder == "edgekd:residual"


def test_a_trusted_pickle_that_cannot_be_read_says_what_to_do(loader: Loader) -> None:
    loader.path.write_bytes(pickle.dumps(nn.Linear(1, 1)))
    assert "only files of torch.save are read" in loader.refused(trust_pickle=True)


class ValueDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.filterwarnings("ignore")
def test_a_trusted_module_that_cannot_be_exported_says_so(loader: Loader) -> None:
    torch.save(ValueDependent(), loader.path)
    with pytest.raises(BuildFailed, match=r"The pickled ValueDependent in .* cannot be exported"):
        loader(trust_pickle=True, input_shape=(3, 8, 8))


def test_graphs_without_a_torch_form_are_refused_with_the_way_out(loader: Loader) -> None:
    onnx_file(loader.path)
    assert "is an ONNX graph, which cannot be trained or pruned" in loader.refused()
    torchscript_file(loader.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = loader.refused()
    assert "is a TorchScript archive" in message
    assert "torch.jit.load(" in message
    assert "--trust-pickle" not in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "holds 38 weights, such as stem.0.weight, and no architecture"),
        ({"arch": "resnet18"}, "--arch timm:resnet18"),
        (toy_arch(input_shape=None), "--input-shape 3x224x224"),
        (toy_arch(input_shape=(2, 8, 8)), "Images have 1 or 3 channels, but the input shape is (2, 8, 8)"),
        (
            toy_arch(preprocessing_overrides=PreprocessingOverrides(mean=(0.5,))),
            "takes images of 3 channels, but mean has 1 values.",
        ),
        (
            toy_arch(preprocessing_overrides=PreprocessingOverrides(crop_fraction=1.5)),
            "the preprocessing given: 'crop_fraction'",
        ),
        ({"arch": "program:x"}, "cannot import program"),
        (toy_arch(input_shape=(1, 8, 8)), "does not take images of shape"),
        (toy_arch(arch_kwargs={**KWARGS, "depths": [2, 1]}), "missing (stages.0.1.conv1.weight"),
        (toy_arch(labels=("cat", "dog")), "gives 4 logits, but its recipe names 2 labels"),
    ],
)
def test_what_is_missing_or_wrong_is_said(options: dict[str, Any], words: str, loader: Loader) -> None:
    loader.weights()
    assert words in loader.refused(**options)


def test_an_architecture_beside_a_program_is_refused(loader: Loader) -> None:
    saved(exported(toy_cnn(), images(2)), loader.path.with_suffix(".pt2")).rename(loader.path)
    assert "holds its own architecture; leave --arch edgekd:residual out" in loader.refused(**toy_arch())


def test_weights_that_diverged_are_refused_by_name(loader: Loader) -> None:
    state = toy_cnn().state_dict()
    state["stem.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, loader.path)
    assert "1 of 216 values of the weight 'stem.0.weight' are NaN" in loader.refused(**toy_arch())
