"""A runtime named onnxruntime that does what its model file says: answers, refuses, crashes or hangs."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import os, signal, time
from pathlib import Path
import numpy

__version__ = "0.fake"


class Named:
    def __init__(self, name):
        self.name = name


class SessionOptions:
    def add_free_dimension_override_by_name(self, axis, size): pass
    def add_session_config_entry(self, key, value): pass


class InferenceSession:
    def __init__(self, path, options, providers):
        self.does = Path(path).read_text()
        self.calls = 0
        if self.does == "refuse":
            raise ValueError("no graph")
        if self.does == "crash while opening":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.does == "crash afterwards":
            import edgekd.profiling.agent.onnxruntime as adapter
            adapter.OnnxRuntimeEngine.device_ns = lambda engine, calls: os.kill(os.getpid(), signal.SIGSEGV)
        if self.does == "hang while opening":
            time.sleep(600)

    def end_profiling(self): raise RuntimeError("no trace")
    def get_outputs(self): return [Named("logits")]
    def get_providers(self): return ["CPUExecutionProvider"]

    def run(self, names, feeds):
        self.calls += 1
        if self.calls > 5:
            if self.does == "crash": os.kill(os.getpid(), signal.SIGSEGV)
            if self.does == "hang": time.sleep(600)
            if self.does == "raise": raise RuntimeError("out of ideas")
        time.sleep(0.0005)
        return [numpy.array([[1.0, 2.0]], dtype=numpy.float32)]
"""


def install(folder: Path) -> Path:
    """Writes the package; returns what PYTHONPATH has to hold."""
    package = folder / "runtime" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SOURCE)
    return package.parent
