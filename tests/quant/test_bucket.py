"""Grids of weights: golden values, the straight properties of a quantizer, and what is stored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors import safe_open
from torch import Tensor

from edgekd.errors import UserError
from edgekd.quant.bucket import Bits, Granularity, WeightGrid, decode, projected, quantized
from edgekd.quant.codes import code_counts, huffman_bits, packed_bytes, read_codes, write_codes
from edgekd.quant.layers import GraphView, quantized_weight_of
from edgekd.quant.observe import observe
from edgekd.quant.onnxruntime import cpu_form, prepared_graph
from edgekd.quant.qd_stage import QuantizedDistillConfig
from edgekd.quant.ranges import range_of
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.samples import random_images
from edgekd.testing.toy_graphs import toy_graph

VALUES = torch.tensor([-1, -0.2, 0.1, 0.4, 2, 1, 0.3, 0.9, -0.6, 0.05], dtype=torch.float64)
FOURS = WeightGrid(bits=2, granularity="bucket", bucket_size=4)
GRIDS = [
    WeightGrid(bits=bits, granularity=granularity, bucket_size=7)
    for bits in (2, 3, 4, 8)
    for granularity in ("channel", "bucket")
] + [WeightGrid(bits=8, bucket_size=7, reduce_range=True)]


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_buckets_have_their_golden_values_and_the_tail_is_filled_with_the_last_value() -> None:
    q = quantized(VALUES, FOURS)
    assert q.offset is not None
    assert q.scale.flatten().tolist() == pytest.approx([1.4, 1.7, 0.65])
    assert q.offset.flatten().tolist() == pytest.approx([-1.0, 0.3, -0.6])
    expected = [-1, -0.066667, -0.066667, 0.4, 2, 0.866667, 0.3, 0.866667, -0.6, 0.05]
    assert decode(q).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_tensor_smaller_than_a_bucket_is_one_short_bucket() -> None:
    q = quantized(VALUES, FOURS.model_copy(update={"bucket_size": 256}))
    assert q.codes.shape == (1, 10)


def test_channels_have_symmetric_grids_that_hold_zero() -> None:
    weight = torch.tensor([[0.7, -0.1, 0.0, 0.34], [0.0, 2.0, -6.0, 1.0]])
    q = quantized(weight, WeightGrid(bits=4))
    assert q.scale.flatten().tolist() == pytest.approx([0.1, 6 / 7])
    assert q.codes.tolist() == [[7, -1, 0, 3], [0, 2, -7, 1]]
    assert projected(weight, WeightGrid(bits=4))[0, 2] == 0


def test_a_channel_grid_survives_the_scaling_of_its_channels() -> None:
    weight, factors = weights(0, 6, 3, 3, 3), torch.rand(6) * 4 - 2
    scaled = weight * factors[:, None, None, None]  # what folding BatchNorm does
    expected = projected(weight, WeightGrid(bits=8)) * factors[:, None, None, None]
    torch.testing.assert_close(projected(scaled, WeightGrid(bits=8)), expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_constant_and_zero_weights_stay_what_they_are(grid: WeightGrid) -> None:
    assert torch.equal(projected(torch.zeros(3, 5), grid), torch.zeros(3, 5))
    if grid.granularity == "bucket" or grid.bits == 8:
        torch.testing.assert_close(projected(torch.full((3, 5), 0.3), grid), torch.full((3, 5), 0.3))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_memory_format_does_not_matter(grid: WeightGrid) -> None:
    weight = weights(1, 8, 4, 3, 3)
    assert torch.equal(projected(weight.contiguous(memory_format=torch.channels_last), grid), projected(weight, grid))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    scale=st.floats(1e-6, 1e6),
    bits=st.sampled_from([2, 3, 4, 8]),
    granularity=st.sampled_from(["channel", "bucket"]),
)
def test_projection_is_near_within_few_levels_and_idempotent(
    seed: int, rows: int, columns: int, scale: float, bits: Bits, granularity: Granularity
) -> None:
    grid = WeightGrid(bits=bits, granularity=granularity, bucket_size=16)
    weight = scale * weights(seed, rows, columns)
    q = quantized(weight, grid)
    got = decode(q)
    step = q.scale if granularity == "channel" else q.scale / q.steps
    assert (got - weight).abs().max() <= 0.5 * step.max() * (1 + 1e-4)
    assert int(q.codes.unique().numel()) <= 2**bits
    torch.testing.assert_close(projected(got, grid), got, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_need_no_more_bits_than_the_grid_has(grid: WeightGrid) -> None:
    assert quantized(weights(9, 4, 9), grid).bits == grid.bits


def test_three_bits_are_packed_without_gaps(tmp_path: Path) -> None:
    q = quantized(torch.arange(8.0)[None], WeightGrid(bits=3, granularity="bucket", bucket_size=8))
    write_codes(tmp_path / "codes", {"w": decode(q)}, {"w": q})
    with safe_open(tmp_path / "codes", framework="pt") as stream:
        packed = stream.get_tensor("codes:w")
    whole = sum(code << (3 * place) for place, code in enumerate(range(8)))
    assert packed.tolist() == list(whole.to_bytes(3, "little"))


@pytest.mark.parametrize("granularity", ["channel", "bucket"])
def test_stochastic_rounding_takes_a_neighbour_and_is_right_in_the_mean(granularity: Granularity) -> None:
    torch.manual_seed(0)
    grid, weight = WeightGrid(bits=3, granularity=granularity, bucket_size=16), weights(10, 4, 16)
    drawn = torch.stack([projected(weight, grid, "stochastic") for _ in range(2000)])
    q = quantized(weight, grid)
    step = q.scale if granularity == "channel" else q.scale / q.steps
    assert ((drawn - weight).abs() <= step * (1 + 1e-4)).all()
    torch.testing.assert_close(drawn.mean(0), weight, rtol=0, atol=float(step.max()) * 0.05)


def test_huffman_codes_have_their_golden_length() -> None:
    assert huffman_bits([50, 25, 15, 10]) == pytest.approx(1.75)
    assert huffman_bits([7]) == 0
    assert huffman_bits([]) == 0
    assert huffman_bits([1] * 16) == 4


def test_huffman_codes_lie_between_the_entropy_and_one_bit_more() -> None:
    counts = code_counts([quantized(weights(2, 64, 64), WeightGrid(bits=4))])
    shares = [count / 4096 for count in counts if count]
    entropy = -sum(p * math.log2(p) for p in shares)
    assert entropy <= huffman_bits(counts) < min(4, entropy + 1)


@pytest.mark.parametrize("reduce_range", [False, True])
def test_int8_of_the_same_range_leaves_the_weights_where_they_are(tmp_path: Path, reduce_range: bool) -> None:
    grid, full = WeightGrid(bits=8, reduce_range=reduce_range), toy_graph()
    for entry in full.graph.initializer:
        if len(entry.dims) > 1:
            on_grid = projected(torch.from_numpy(numpy_helper.to_array(entry).copy()), grid).numpy()
            entry.CopyFrom(numpy_helper.from_array(on_grid, entry.name))
    write_graph(full, tmp_path / "m.onnx", made_by="test")
    prepared = prepared_graph(tmp_path / "m.onnx", tmp_path)
    seen = observe(prepared, random_images((3, 8, 8), samples=4, seed=0)).histograms
    ranges = {name: range_of(found, "minmax") for name, found in seen.items()}
    off = {}
    for reduced in (False, True):
        view = GraphView(cpu_form(prepared, reduce_range=reduced, attention=False).build(ranges))
        before, after = GraphView(prepared), quantized_weight_of(view, "block")
        assert after is not None
        weight = before.array(before.nodes["block"].input[1])
        off[reduced] = float(np.abs(after.values - weight).max() / np.abs(weight).max())
    assert off[reduce_range] < 1e-6
    assert off[not reduce_range] > 1e-3


def test_a_reduced_range_is_one_of_bytes_per_channel() -> None:
    with pytest.raises(UserError, match="reduce_range is for 8 bits per channel, not for 4 per channel"):
        WeightGrid.parse({"bits": 4, "reduce_range": True}, "test")
    with pytest.raises(UserError, match="reduce_range is for 8 bits per channel, not for 8 per bucket"):
        QuantizedDistillConfig.parse({"granularity": "bucket", "reduce_range": True}, "test")


@pytest.mark.parametrize(("bits", "megabytes"), [(4, 0.53125), (2, 0.28125)])
def test_a_million_weights_in_buckets_have_their_golden_size(bits: Bits, megabytes: float) -> None:
    grid = WeightGrid(bits=bits, granularity="bucket")
    q = quantized(torch.zeros(256 * 3906 + 64), grid)
    assert packed_bytes(full=0, coded=[q], bits=bits) / 1e6 == pytest.approx(megabytes, rel=1e-3)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_packed_weights_come_back_bit_for_bit(tmp_path: Path, grid: WeightGrid) -> None:
    masters = {"a.weight": weights(3, 5, 3, 3, 3), "b.weight": weights(4, 3, 11)}
    coded = {name: quantized(master, grid) for name, master in masters.items()}
    full = {"b.bias": weights(5, 3), "bn.num_batches_tracked": torch.tensor(7)}
    state = {**{name: decode(q) for name, q in coded.items()}, **full}
    write_codes(tmp_path / "codes", state, coded)
    again, codes = read_codes(tmp_path / "codes")
    assert set(again) == set(state)
    for name, value in state.items():
        assert torch.equal(again[name], value), name
    for name, q in coded.items():
        flat = q.codes.reshape(-1)[: q.shape.numel()]
        assert torch.equal(codes[name].codes.reshape(-1)[: q.shape.numel()], flat)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_packed_file_has_the_size_of_the_formula(tmp_path: Path, grid: WeightGrid) -> None:
    grid = grid.model_copy(update={"bucket_size": 256})
    coded = {"w": quantized(weights(6, 256, 64, 3, 3), grid)}
    write_codes(tmp_path / "codes", {"w": decode(coded["w"]), "b": weights(7, 2000)}, coded)
    expected = packed_bytes(full=2000, coded=coded.values(), bits=grid.bits)
    assert (tmp_path / "codes").stat().st_size == pytest.approx(expected, rel=0.01)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    grid = WeightGrid(bits=4)
    coded = {name: quantized(weights(8, 4, 4), grid) for name in ("x", "y", "z")}
    for copy in ("one", "two"):
        write_codes(tmp_path / copy, {name: decode(q) for name, q in coded.items()}, coded)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_file_is_not_taken_for_packed_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="format None of packed weights"):
        read_codes(tmp_path / "weights.safetensors")
