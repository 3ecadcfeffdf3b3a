"""The networks that a latency model is fitted to are valid and cost what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.profiling.predict.nets import Net, probe_nets
from edgekd.runtimes.session import RUNTIMES

NETS = [*probe_nets("fp32"), *probe_nets("int8")]
NAMED = pytest.mark.parametrize("net", NETS, ids=[net.name for net in NETS])


@NAMED
def test_the_checker_accepts_every_network(net: Net) -> None:
    onnx.checker.check_model(net.model, full_check=True)


@NAMED
def test_costs_count_the_weights_of_the_graph(net: Net) -> None:
    stored = sum(int(np.prod(t.dims)) for t in net.model.graph.initializer if len(t.dims) > 0)
    assert sum(cost.params for cost in net.costs) == stored


@NAMED
def test_every_network_runs(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(net.model, path)
    shape = [dim.dim_value for dim in net.model.graph.input[0].type.tensor_type.shape.dim]
    with RUNTIMES.get("onnxruntime").open(path, threads=1, batch=1) as session:
        (out,) = session.infer({"images": np.ones(shape, np.float32)}).values()
    assert np.isfinite(out).all()


def test_a_convolution_costs_kernel_times_channels_times_pixels() -> None:
    net = next(net for net in NETS if net.name == "conv16-fp32")
    assert net.costs[0].macs == 16 * 16 * 9 * 32 * 32
    assert net.costs[0].activations == 2 * 16 * 32 * 32
    assert [cost.kind for cost in net.costs] == ["conv"] * 10 + ["pool"]


def test_each_kind_of_operation_is_the_main_cost_of_some_network() -> None:
    heaviest = {max(net.costs, key=lambda cost: cost.macs).kind for net in NETS}
    assert {"conv", "linear"} <= heaviest
    assert any(cost.kind == "depthwise" for net in NETS for cost in net.costs)
