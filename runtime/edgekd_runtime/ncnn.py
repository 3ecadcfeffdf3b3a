"""ncnn on the CPU: `.param` and `.bin` files that take one image a call."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.session import FloatArray, Options, model_file

INSTALL = "pip install 'edgekd-runtime[ncnn]'"
FORMATS: tuple[str, ...] = ("ncnn",)


class NcnnSession:
    """A loaded network; see `Session` for the contract.

    The precision of the engine sets what it computes in: ncnn would otherwise compute any network in half precision
    where the processor can.
    """

    batch = 1
    max_batch = None

    def __init__(self, param: str, weights: str, *, half: bool, threads: int | None) -> None:
        import ncnn

        self._library, self._threads = ncnn, threads or ncnn.get_physical_big_cpu_count()
        self._network: Any = ncnn.Net()
        options = self._network.opt
        options.use_vulkan_compute = False
        options.num_threads = self._threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_packed = options.use_bf16_storage = False
        failed = self._network.load_param(param) or self._network.load_model(weights)
        inputs, outputs = self._network.input_names(), self._network.output_names()
        if failed or len(inputs) != 1 or len(outputs) != 1:
            raise Unusable(f"ncnn {ncnn.__version__} cannot load the network (inputs {inputs}, outputs {outputs})")
        self._input, self._output = inputs[0], outputs[0]

    def run(self, images: FloatArray) -> FloatArray:
        extractor = self._network.create_extractor()
        pixels = np.ascontiguousarray(images[0])  # held until the end: the matrix looks at its memory
        if extractor.input(self._input, self._library.Mat(pixels)):
            raise Unusable(f"ncnn does not take an image of shape {pixels.shape}")
        failed, found = extractor.extract(self._output)
        if failed:
            raise Unusable(f"ncnn could not run the network: it gives the code {failed}")
        return np.array(found, dtype=np.float32)[None]

    def facts(self) -> dict[str, Any]:
        return {"version": str(self._library.__version__), "provider": "cpu", "threads": self._threads}

    def close(self) -> None:
        self._network = None


def open_engine(bundle: Bundle, entry: EngineEntry, options: Options) -> NcnnSession:
    """See `Opener`."""
    import ncnn  # noqa: F401  # first, so that a missing library costs nothing

    param, weights = (str(bundle.file(model_file(entry, name))) for name in ("model.param", "model.bin"))
    return NcnnSession(param, weights, half=entry.precision == "fp16", threads=options.threads or entry.threads)
