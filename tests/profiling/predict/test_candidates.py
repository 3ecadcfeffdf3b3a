"""Predictions for candidates that came as `torch.export` programs, whose graph no longer holds the program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report import PredictedLatency
from edgekd.errors import DeviceUnavailable, EdgekdError
from edgekd.nn.build import PROGRAM_FILE
from edgekd.nn.count import layer_costs
from edgekd.nn.onnx import onnx_from_module
from edgekd.profiling.predict.candidates import predicted_latency
from edgekd.targets.latency import latency_model_from_target
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import exported, saved
from tests.profiling.cards import card


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(exported(toy_cnn(), torch.zeros(2, 3, 8, 8)), tmp_path_factory.mktemp("program") / "model.pt2")


def bundle(form: str, **more: object) -> ModelBundle:
    recipe = ModelRecipe(builder="program", kwargs={"form": form}, preprocessing=Preprocessing(size=(8, 8)))
    return ModelBundle.model_validate({"kind": BundleKind.ONNX, "recipe": recipe, **more})


def predicted(found: ModelBundle, blobs: FolderBlobs) -> PredictedLatency | EdgekdError:
    return predicted_latency(found, card(here=False), blobs, "fp32", "onnxruntime", 1)


@pytest.mark.parametrize("form", ["rebuilt", "frozen"])
def test_a_graph_finds_its_program_by_its_tag_and_is_counted(program: Path, tmp_path: Path, form: str) -> None:
    blobs = FolderBlobs(tmp_path)
    digest = blobs.add(program)
    tagged = predicted(bundle(form, tags={"program": digest}), blobs)
    held = predicted(bundle(form, files={PROGRAM_FILE: digest}), blobs)
    assert isinstance(tagged, PredictedLatency)
    assert tagged.origin == "predicted"
    assert tagged.median_ms > 0
    assert tagged == held


def test_a_bare_graph_is_predicted_as_the_module_it_was_exported_from(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    path, module = tmp_path / "toy.onnx", toy_cnn()
    onnx_from_module(module, (3, 8, 8), path)
    recipe = ModelRecipe(builder="onnx", preprocessing=Preprocessing(size=(8, 8)))
    bare = ModelBundle(kind=BundleKind.ONNX, recipe=recipe, files={"model.onnx": blobs.add(path)})
    found = predicted(bare, blobs)
    assert isinstance(found, PredictedLatency)
    model = latency_model_from_target(card(here=False))
    assert found.median_ms == pytest.approx(model.predict_ms(layer_costs(module, (3, 8, 8)), "fp32"), rel=0.01)


def test_a_prediction_says_by_what_and_how_wrong_it_may_be(program: Path, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    found = predicted(bundle("rebuilt", tags={"program": blobs.add(program)}), blobs)
    assert isinstance(found, PredictedLatency)
    assert "roofline of toy-board" in found.model
    assert (found.relative_error, found.level) == (0.3, 0.5)
    assert found.low_ms == pytest.approx(0.7 * found.median_ms)
    assert not hasattr(found, "p95_ms"), "a prediction has no percentiles"


@pytest.mark.parametrize("tags", [{}, {"program": "0" * 64}])
def test_a_program_that_is_not_here_gives_a_reason_and_no_number(tmp_path: Path, tags: dict[str, str]) -> None:
    found = predicted(bundle("rebuilt", tags=tags), FolderBlobs(tmp_path))
    assert isinstance(found, DeviceUnavailable)
    assert "not measured, since this machine is not toy-board; not predicted: " in found.message
