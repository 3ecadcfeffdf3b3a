"""An ncnn network: loaded with the settings that are timed, fed and run; here and on a board.

Standard library of Python 3.10, and inside functions ncnn with the NumPy that it brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.runtimes.native_output import native_stderr


class NcnnError(Exception):
    """Files that do not load, an image that is not taken, or a run that failed; the message says which."""


class NcnnNetwork:
    """A network of one input and one output, without a batch axis.

    The precision is set: ncnn would otherwise compute any network in half precision where the CPU can.

    Args:
        param: The `.param` file.
        weights: The `.bin` file.
        threads: One where nobody asks for more: several wait for each other after each layer, and where another process
            has a core they wait long. 300 images took 10 minutes instead of 20 seconds on a busy machine with 2 cores.
        half: Whether it may compute in float16.

    Raises:
        NcnnError: The files do not load, or the network has several inputs or outputs.
        ImportError: ncnn is not installed.
    """

    def __init__(self, param: Path, weights: Path, *, threads: int, half: bool) -> None:
        import ncnn

        self._ncnn = ncnn
        self._network: Any = ncnn.Net()
        options = self._network.opt
        options.use_vulkan_compute = False
        options.num_threads = threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_packed = options.use_bf16_storage = False
        with native_stderr() as said:
            failed = self._network.load_param(str(param)) or self._network.load_model(str(weights))
        inputs, outputs = self._network.input_names(), self._network.output_names()
        if failed or len(inputs) != 1 or len(outputs) != 1:
            raise NcnnError(said.last or f"it has the inputs {inputs} and outputs {outputs}, not one of each")
        self._input, self._output = inputs[0], outputs[0]

    def answer(self, image: Any) -> Any:
        """(K,) float32, a copy, to one image (C, H, W) in float32.

        Raises:
            NcnnError: It does not take the image, or failed.
        """
        import numpy

        extractor = self._network.create_extractor()
        pixels = numpy.ascontiguousarray(image)  # held until the end: the matrix looks at its memory
        if extractor.input(self._input, self._ncnn.Mat(pixels)):
            raise NcnnError(f"it does not take an image of shape {image.shape}")
        failed, found = extractor.extract(self._output)
        if failed:
            raise NcnnError(f"running it gives the code {failed}")
        return numpy.array(found, dtype=numpy.float32)

    def close(self) -> None:
        """Frees the network."""
        self._network = None


def arithmetic(*, half: bool) -> str:
    """What this CPU computes in: float16 only where that is allowed and its instructions can."""
    import ncnn

    return "float16" if half and ncnn.cpu_support_arm_asimdhp() else "float32"
