"""ONNX Runtime on the CPU, with the settings that edgekd measured with."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.session import FloatArray, Options, model_file

INSTALL = "pip install 'edgekd-runtime[onnxruntime]'"
FORMATS: tuple[str, ...] = ("onnx",)
PROVIDER = "CPUExecutionProvider"
_LOG_ERRORS_ONLY = 3
_FOLD_WEIGHTS = ("session.disable_quant_qdq", "1")
"""Weight-only INT8 is expanded once, at loading, instead of on every call."""


class OnnxRuntimeSession:
    """A graph in ONNX Runtime; see `Session` for the contract.

    The batch of 1 has a session of its own, in which the batch is fixed: memory is planned and kernels are chosen for
    it, as they were when its latency was measured. A second one for other batches is opened when the first comes.
    """

    max_batch = None

    def __init__(self, bundle: Bundle, entry: EngineEntry, threads: int | None) -> None:
        import onnxruntime

        self._library, self._threads = onnxruntime, threads
        self._bundle, self._file = bundle, model_file(entry, "model.onnx")
        self._folds = entry.scheme == "weight-only"
        spec = bundle.deploy.input
        self._input, self._output = spec.name, bundle.deploy.outputs[0].name
        self._axis = spec.shape[0] if isinstance(spec.shape[0], str) else None
        self.batch = None if self._axis is not None else int(spec.shape[0])
        self._one: Any = self._opened(fixed=self._axis is not None)
        self._any: Any = None if self._axis is not None else self._one
        if self._input not in [given.name for given in self._one.get_inputs()]:
            raise Unusable(f"the graph has no input {self._input!r}")

    def run(self, images: FloatArray) -> FloatArray:
        if self._axis is not None and len(images) == 1:
            session = self._one
        else:
            if self._any is None:
                self._any = self._opened(fixed=False)
            session = self._any
        return np.asarray(session.run([self._output], {self._input: images})[0], dtype=np.float32)

    def facts(self) -> dict[str, Any]:
        return {
            "version": self._library.__version__,
            "provider": self._one.get_providers()[0],
            "threads": self._threads,
        }

    def close(self) -> None:
        self._one = self._any = None

    def _opened(self, *, fixed: bool) -> Any:
        content = self._bundle.read(self._file)  # not kept: it is as large as the weights
        options = self._library.SessionOptions()
        options.log_severity_level = _LOG_ERRORS_ONLY
        options.inter_op_num_threads = 1
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if fixed:
            options.add_free_dimension_override_by_name(str(self._axis), 1)
        if self._folds:
            options.add_session_config_entry(*_FOLD_WEIGHTS)
        try:
            return self._library.InferenceSession(content, options, providers=[PROVIDER])
        except Exception as err:  # the library's exceptions have no common base below Exception
            version = self._library.__version__
            raise Unusable(f"ONNX Runtime {version} cannot load the graph: {str(err).strip()[:300]}") from err


def open_engine(bundle: Bundle, entry: EngineEntry, options: Options) -> OnnxRuntimeSession:
    """See `Opener`."""
    import onnxruntime  # noqa: F401  # first, so that a missing library costs nothing

    return OnnxRuntimeSession(bundle, entry, options.threads or entry.threads)
