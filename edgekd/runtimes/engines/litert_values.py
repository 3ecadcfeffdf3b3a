"""What goes into a LiteRT file and comes out of it, and which kernels run it; here and on a board.

Standard library of Python 3.10, and NumPy inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def quantized(value: Any, told: Mapping[str, Any]) -> Any:
    """The input as the file takes it: float32, or integers round(x / scale) + zero point, saturated.

    Args:
        value: float32.
        told: LiteRT's description of the tensor: `dtype`, `quantization` (scale, zero point).
    """
    import numpy as np

    if told["dtype"] is np.float32:
        return value
    scale, zero = told["quantization"]
    limits = np.iinfo(told["dtype"])
    steps = np.rint(value / np.float32(scale)) + np.float32(zero)
    return np.clip(steps, limits.min, limits.max).astype(told["dtype"])


def dequantized(value: Any, told: Mapping[str, Any]) -> Any:
    """The output in float32, scale (q - zero point); a copy that the caller owns."""
    import numpy as np

    if told["dtype"] is np.float32:
        return np.array(value, dtype=np.float32)
    scale, zero = told["quantization"]
    return np.asarray((value.astype(np.float32) - np.float32(zero)) * np.float32(scale), dtype=np.float32)


def kernels(interpreter: Any) -> dict[str, Any]:
    """What runs: `provider`, `operators` outside of XNNPACK, `xnnpack_parts`, `input_type`.

    One part when XNNPACK runs the whole graph without a break; with more, other kernels run in between.
    """
    operators = [str(told["op_name"]) for told in interpreter._get_ops_details()]
    delegates = operators.count("DELEGATE")
    return {
        "provider": "XNNPACK" if delegates else "built-in kernels",
        "operators": len(operators) - delegates,
        "xnnpack_parts": delegates,
        "input_type": interpreter.get_input_details()[0]["dtype"].__name__,
    }
