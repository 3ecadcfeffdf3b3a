from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from edgekd.core.bundle import TensorSpec
from edgekd.errors import BuildFailed, UserError
from edgekd.runtimes.onnx_file import graph_from_file, onnx_interface, write_graph
from edgekd.testing.toy_graphs import toy_graph


def test_graphs_that_differ_in_their_origin_alone_give_equal_bytes(tmp_path: Path) -> None:
    plain, traced = toy_graph(), toy_graph()
    traced.producer_name = "some exporter"
    traced.metadata_props.add(key="made", value="today")
    traced.graph.doc_string = "from /home/me"
    traced.graph.node[0].doc_string = "line 3"
    traced.graph.node[0].metadata_props.add(key="stack", value="line 3")
    traced.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    write_graph(plain, tmp_path / "plain.onnx", made_by="test")
    write_graph(traced, tmp_path / "traced.onnx", made_by="test")
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "traced.onnx").read_bytes()


def test_an_invalid_graph_is_not_written(tmp_path: Path) -> None:
    graph = toy_graph()
    graph.graph.node[0].input[0] = "nowhere"
    with pytest.raises(BuildFailed, match="that the test made is not valid ONNX"):
        write_graph(graph, tmp_path / "model.onnx", made_by="the test")
    assert not (tmp_path / "model.onnx").exists()


def test_a_written_graph_comes_back(tmp_path: Path) -> None:
    write_graph(toy_graph(), tmp_path / "model.onnx", made_by="test")
    assert graph_from_file(tmp_path / "model.onnx").graph.node[0].op_type == "Conv"
    onnx.checker.check_model(tmp_path / "model.onnx")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match="not a readable ONNX file"):
        graph_from_file(tmp_path / "model.onnx")


def test_a_file_of_pytorch_in_the_place_of_a_graph_is_told_which_verb_makes_one(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"not a graph")
    with pytest.raises(UserError) as caught:
        graph_from_file(tmp_path / "model.pt")
    assert "edgekd export" in (caught.value.hint or "")


def test_the_interface_of_a_file_leaves_out_weights_that_are_listed_as_inputs(tmp_path: Path) -> None:
    graph = toy_graph()
    graph.graph.input.append(helper.make_tensor_value_info("head.bias", onnx.TensorProto.FLOAT, [4]))
    graph.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    onnx.save(graph, tmp_path / "model.onnx")
    inputs, outputs = onnx_interface(tmp_path / "model.onnx")
    assert inputs == (TensorSpec(name="images", shape=("N", 3, 8, 8)),)
    assert outputs == (TensorSpec(name="logits", shape=("?", 4)),)
