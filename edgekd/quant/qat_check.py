"""Whether a written graph holds the numbers that training ended with: an exact comparison, constant by constant.

Logits cannot tell this: they differ by whole steps wherever a value lies on the border of two codes, and a scale that
is wrong by a tenth costs no more. What is compared here are the numbers that the forward pass computes with, not those
that the export meant to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekd.errors import BuildFailed
from edgekd.quant.qat import QatNetwork
from edgekd.runtimes.onnx_view import attribute

Array = NDArray[Any]
SHOWN = 8


def require_as_trained(network: QatNetwork, written: onnx.ModelProto, images: torch.Tensor) -> None:
    """Refuses a graph of which any scale, zero point, code or other trained number is not that of the network.

    Args:
        network: As it was trained, on the CPU.
        written: As it was read back.
        images: (N, C, H, W), any: the constants of a forward pass do not depend on them.

    Raises:
        BuildFailed: The message names the constants.
    """
    held = {entry.name: numpy_helper.to_array(entry) for entry in written.graph.initializer}
    expected = {**_scales(network), **_zero_points(network), **_floats(network)}
    off = [name for name, value in expected.items() if not (held[name].ravel() == value.ravel()).all()]
    seen: dict[str, Array] = {}
    with torch.no_grad():
        network.run(images[:1], lambda name, value: seen.update({name: value.numpy()}))
    grids = (node for node in written.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear"))
    constant = [node for node in grids if node.input[0] in held]
    off += [node.input[0] for node in constant if not np.array_equal(_on_grid(node, held), seen[node.output[0]])]
    if off:
        raise BuildFailed(
            "The written graph holds other numbers than the network that was trained, in "
            f"{', '.join(dict.fromkeys(off[:SHOWN]))}."
        )


def _scales(network: QatNetwork) -> dict[str, Array]:
    names = {*network.activations.values(), *(weight.step for weight in network.weights.values())}
    found: dict[str, Array] = {name: network.step(name).numpy() for name in names}
    found |= {name: network.step(repeated).numpy() for name, repeated in network.copies.items()}
    for bias in network.biases.values():
        found[bias.step] = (network.step(bias.input_step) * network.step(bias.weight_step)).numpy()
    return found


def _zero_points(network: QatNetwork) -> dict[str, Array]:
    zeros = [weight.zero for weight in network.weights.values()] + [grid.zero for grid in network.grids.values()]
    return {name: network.constant(name).numpy() for name in zeros if name}


def _floats(network: QatNetwork) -> dict[str, Array]:
    """What trained and is on no grid."""
    steps = {weight.step for weight in network.weights.values()} | set(network.activations.values())
    on_grids = {*network.weights, *network.biases, *steps}
    return {name: value.detach().numpy() for name, value in network.trained().items() if name not in on_grids}


def _on_grid(node: onnx.NodeProto, held: Mapping[str, Array]) -> Array:
    """What a constant means behind its node, as ONNX defines it, in float32."""
    values, scale = held[node.input[0]], held[node.input[1]]
    zero = held[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale, dtype=values.dtype)
    if scale.size > 1:
        axis = attribute(node, "axis", 1)
        shape = [-1 if index == axis % values.ndim else 1 for index in range(values.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    codes = values
    if node.op_type == "QuantizeLinear":
        kind = np.iinfo(zero.dtype if np.issubdtype(zero.dtype, np.integer) else np.uint8)
        codes = (np.rint(values / scale) + zero.astype(np.float32)).clip(kind.min, kind.max)
    made: Array = (codes.astype(np.float32) - zero.astype(np.float32)) * scale
    return made
