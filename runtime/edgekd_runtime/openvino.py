"""OpenVINO on the CPU, with the settings that edgekd measured with."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.session import FloatArray, Options, model_file

INSTALL = "pip install 'edgekd-runtime[openvino]'"
FORMATS: tuple[str, ...] = ("onnx",)
DEVICE = "CPU"


class OpenVinoSession:
    """A compiled graph; see `Session` for the contract.

    The batch of 1 is compiled for itself, as it was measured; a second model for other batches is compiled when the
    first such batch comes.
    """

    max_batch = None

    def __init__(self, bundle: Bundle, entry: EngineEntry, threads: int | None) -> None:
        import openvino

        self._library, self._threads = openvino, threads
        self._bundle, self._file = bundle, model_file(entry, "model.onnx")
        self._core = openvino.Core()
        self._free = isinstance(bundle.deploy.input.shape[0], str)
        self.batch = None if self._free else int(bundle.deploy.input.shape[0])
        self._name, self._output = bundle.deploy.input.name, bundle.deploy.outputs[0].name
        self._compiled: Any = self._opened(fixed=self._free)
        self._request: Any = self._compiled.create_infer_request()
        self._memory = self._bound()
        self._any: Any = None

    def run(self, images: FloatArray) -> FloatArray:
        if images.shape == self._memory.shape:
            self._memory[...] = images
            self._request.infer()
            found = self._request.get_tensor(self._output).data
        else:
            if self._any is None:
                self._any = self._opened(fixed=False).create_infer_request()
            self._any.infer({self._name: images}, share_inputs=True)
            found = self._any.get_tensor(self._output).data
        return np.array(found, dtype=np.float32)  # a copy: the request overwrites its own

    def facts(self) -> dict[str, Any]:
        return {
            "version": self._library.get_version().split("-")[0],
            "provider": ",".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
        }

    def close(self) -> None:
        self._request = self._compiled = self._any = None

    def _bound(self) -> FloatArray:
        """Input memory that stays with the request; handing arrays to each call costs about 0.1 ms."""
        port = self._compiled.input(self._name)
        tensor = self._library.Tensor(port.get_element_type(), port.get_shape())
        self._request.set_tensor(port, tensor)
        memory: FloatArray = tensor.data
        return memory

    def _opened(self, *, fixed: bool) -> Any:
        content = self._bundle.read(self._file)  # not kept: it is as large as the weights
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if self._threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        try:
            model = self._core.read_model(content, b"")
            if fixed:
                port = model.input(self._name)
                shape = port.get_partial_shape()
                shape[0] = self._library.Dimension(1)
                model.reshape({port: shape})
            return self._core.compile_model(model, DEVICE, settings)
        except RuntimeError as err:
            version = self._library.get_version().split("-")[0]
            raise Unusable(f"OpenVINO {version} cannot load the graph: {str(err).strip()[-300:]}") from err


def open_engine(bundle: Bundle, entry: EngineEntry, options: Options) -> OpenVinoSession:
    """See `Opener`."""
    import openvino  # noqa: F401  # first, so that a missing library costs nothing

    return OpenVinoSession(bundle, entry, options.threads or entry.threads)
