"""Bare `.onnx` files as exporters write them: weights in a second file, open axes, inputs that are no float images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgekd.core.blobs import FolderBlobs
from edgekd.core.store import LocalStore
from edgekd.errors import UserError
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.sources import bundle_from_onnx, opened
from edgekd.runtimes.onnxruntime import RUNTIME
from edgekd.testing.toy_graphs import toy_graph

SIZE = 16


def _graph(path: Path, *, open_axes: bool = False, dtype: int = TensorProto.FLOAT) -> Path:
    model = toy_graph()
    value = next(value for value in model.graph.input if value.name not in {i.name for i in model.graph.initializer})
    value.type.tensor_type.elem_type = dtype
    if open_axes:
        for axis, name in zip(list(value.type.tensor_type.shape.dim)[2:], "HW", strict=True):
            axis.dim_param = name
    onnx.save(model, path)
    return path


def _answers(path: Path, size: int) -> np.ndarray:
    with RUNTIME.open(path) as session:
        (name,) = session.input_names
        images = np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)
        return next(iter(session.infer({name: images}).values()))


def test_weights_in_a_second_file_are_taken_into_the_first(tmp_path: Path) -> None:
    whole, apart = _graph(tmp_path / "whole.onnx"), tmp_path / "apart.onnx"
    size = bundle_from_onnx(whole, FolderBlobs(tmp_path / "a")).model.preprocessing.size[0]
    onnx.save_model(onnx.load(whole), apart, save_as_external_data=True, location="apart.data", size_threshold=0)
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = bundle_from_onnx(apart, blobs)
    (tmp_path / "apart.data").unlink()
    found = _answers(blobs.path(bundle.file("model.onnx")), size)
    np.testing.assert_array_equal(found, _answers(whole, size))
    with pytest.raises(UserError, match=r"apart\.onnx is not a readable ONNX file"):
        bundle_from_onnx(apart, blobs)


def test_open_axes_get_the_size_that_was_asked_for_and_fixed_ones_take_no_other(tmp_path: Path) -> None:
    path = _graph(tmp_path / "open.onnx", open_axes=True)
    with pytest.raises(UserError, match="known sizes") as caught:
        bundle_from_onnx(path, FolderBlobs(tmp_path / "blobs"))
    assert caught.value.hint is not None
    assert "--input-shape" in caught.value.hint
    asked = ModelSource(path=str(path), input_shape=(3, SIZE, SIZE))
    store = LocalStore(tmp_path / "store")
    bundle = opened(asked, store, seed=0).bundle
    assert bundle.inputs[0].shape[1:] == (3, SIZE, SIZE)
    assert bundle.model.preprocessing.input_shape == (3, SIZE, SIZE)
    kept = onnx.load(store.blobs.path(bundle.file("model.onnx")))
    assert [axis.dim_value for axis in kept.graph.input[0].type.tensor_type.shape.dim][1:] == [3, SIZE, SIZE]
    fixed = _graph(tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match="so it cannot be 3x48x48"):
        opened(ModelSource(path=str(fixed), input_shape=(3, 48, 48)), store, seed=0)


@pytest.mark.parametrize(("dtype", "said"), [(TensorProto.INT64, "int64"), (TensorProto.FLOAT16, "float16")])
def test_an_input_that_takes_no_float_images_is_refused_before_anything_runs(
    tmp_path: Path, dtype: int, said: str
) -> None:
    path = _graph(tmp_path / "other.onnx", dtype=dtype)
    with pytest.raises(UserError, match=f"takes {said}, and edgekd feeds preprocessed float32"):
        bundle_from_onnx(path, FolderBlobs(tmp_path / "blobs"))
