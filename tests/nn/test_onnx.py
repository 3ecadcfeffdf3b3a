from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.onnx import onnx_from_module
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import PaddedShortcut, Tokens, images, randomised

SHAPE = (3, 8, 8)


def answers(path: Path, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": x.numpy()})[0]


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "model.onnx"
    onnx_from_module(toy_cnn(), SHAPE, path)
    return path


def test_the_graph_computes_what_the_module_computes_for_every_batch(toy_file: Path) -> None:
    for n in (1, 3):
        assert np.allclose(answers(toy_file, images(n)), toy_cnn()(images(n)).detach().numpy(), atol=1e-5)


def test_the_file_is_self_contained_named_and_valid(toy_file: Path) -> None:
    model = onnx.load(toy_file)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert model.opset_import[0].version == 20
    assert list(toy_file.parent.iterdir()) == [toy_file]


def test_equal_modules_give_equal_bytes_without_traces_of_this_machine(toy_file: Path, tmp_path: Path) -> None:
    onnx_from_module(toy_cnn(), SHAPE, tmp_path / "again.onnx")
    content = (tmp_path / "again.onnx").read_bytes()
    assert content == toy_file.read_bytes()
    assert b".py" not in content


def test_a_zero_padded_shortcut_exports(tmp_path: Path) -> None:
    module = randomised(PaddedShortcut())
    onnx_from_module(module, SHAPE, tmp_path / "model.onnx", opset=18)
    found = answers(tmp_path / "model.onnx", images())
    assert np.allclose(found, module(images()).detach().numpy(), atol=1e-5)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == 18


def test_a_module_in_training_mode_stays_so_and_its_graph_is_for_inference(tmp_path: Path) -> None:
    module = randomised(Tokens())
    expected = module(images(1)).detach().numpy()
    onnx_from_module(module.train(), SHAPE, tmp_path / "model.onnx", dynamic_batch=False)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert module.training
    assert "Dropout" not in {node.op_type for node in graph.node}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert np.allclose(answers(tmp_path / "model.onnx", images(1)), expected, atol=1e-5)


class Svd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x.flatten(1))[0]


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)[:, :4]


class ValueDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] if x.sum() > 0 else x.flatten(1)[:, 1:5]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Svd(), "Svd cannot be written in ONNX opset 20: no ONNX form of aten._linalg_svd."),
        (FixedBatch(), "specialized it to be a constant (2)"),
        (ValueDependent(), "data-dependent"),
    ],
)
def test_a_module_without_an_onnx_form_is_refused_with_the_reason(
    module: nn.Module, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildFailed) as caught:
        onnx_from_module(module, SHAPE, tmp_path / "model.onnx")
    assert words in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()
    assert capfd.readouterr() == ("", "")
