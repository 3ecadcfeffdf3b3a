"""A stand-in for TensorRT's Python binding and for CUDA's libraries, on the CPU, with the names of the real ones.

`write_binding` writes a module `tensorrt` that a process of its own can import as well; `build_cuda` compiles a library
whose device memory is host memory. An "engine" is JSON; it computes `logits[n, k] = (k + 1) * mean(images[n])`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = r"""
#include <stdlib.h>
#include <string.h>
int cudaStreamCreate(void** s) { *s = malloc(1); return 0; }
int cudaStreamDestroy(void* s) { free(s); return 0; }
int cudaStreamSynchronize(void* s) { return s ? 0 : 400; }
int cudaMalloc(void** p, size_t n) { if (n > (1ull << 40)) return 2; *p = malloc(n); return 0; }
int cudaFree(void* p) { free(p); return 0; }
int cudaMemcpyAsync(void* to, const void* from, size_t n, int kind, void* s)
{ if (kind < 1 || kind > 2 || !s) return 21; memcpy(to, from, n); return 0; }
int cudaGetDevice(int* d) { *d = 0; return 0; }
int cudaDeviceGetAttribute(int* v, int what, int d)
{ *v = what == 75 ? 8 : what == 76 ? 7 : what == 16 ? 16 : -1; return d; }
const char* cudaGetErrorString(int e) { return e == 2 ? "out of memory" : "some error"; }
int cuDeviceGetName(char* name, int n, int d) { strncpy(name, "Orin", n); return d; }
"""

BINDING = """
import ctypes, json, os, sys, time
__version__ = "VERSION"

class _Name:
    def __init__(self, name): self.name = name
    def __eq__(self, other): return self.name == other.name
class TensorIOMode: INPUT, OUTPUT = _Name("INPUT"), _Name("OUTPUT")
class NetworkDefinitionCreationFlag: FLAGS
class BuilderFlag: FP16, INT8, TF32, SPARSE_WEIGHTS, VERSION_COMPATIBLE, GPU_FALLBACK = range(6)
class MemoryPoolType: WORKSPACE = 0
class HardwareCompatibilityLevel: AMPERE_PLUS = 1
class DeviceType: DLA = 1
class Logger:
    ERROR, WARNING = 1, 2
    def __init__(self, level): pass

class _Context:
    def __init__(self, engine): self.engine, self.at = engine, {}
    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= self.engine.plan["max_batch"]
    def get_tensor_shape(self, name): return (self.shape[0], 4) if name == "logits" else self.shape
    def set_tensor_address(self, name, place): self.at[name] = place
    def execute_async_v3(self, stream):
        n, size = self.shape[0], self.shape[1] * self.shape[2] * self.shape[3]
        images = (ctypes.c_float * (n * size)).from_address(self.at["images"])
        logits = (ctypes.c_float * (n * 4)).from_address(self.at["logits"])
        for row in range(n):
            mean = sum(images[row * size:(row + 1) * size]) / size
            for k in range(4): logits[row * 4 + k] = (k + 1) * mean
        return bool(stream)
class _Engine:
    def __init__(self, plan): self.plan, self.num_io_tensors = plan, 2
    def get_tensor_name(self, index): return ("images", "logits")[index]
    def get_tensor_mode(self, name): return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT
    def get_tensor_shape(self, name): return (-1, 3, 8, 8)
    def get_tensor_profile_shape(self, name, index): return [(size, 3, 8, 8) for size in (1, 1, self.plan["max_batch"])]
    def get_tensor_dtype(self, name): return _Name("FLOAT")
    def create_execution_context(self): return _Context(self)
class Runtime:
    def __init__(self, logger): self.engine_host_code_allowed = False
    def deserialize_cuda_engine(self, content):
        try: plan = json.loads(content)
        except ValueError: return None
        return None if plan.get("host_code") and not self.engine_host_code_allowed else _Engine(plan)

class _Cache:
    def __init__(self, content): self.content = content
    def serialize(self): return self.content + b"+"
class _Config:
    def __init__(self): self.flags, self.pool, self.cache, self.profile = [], None, None, None
    def set_flag(self, flag): self.flags.append(flag)
    def clear_flag(self, flag): self.flags.append(-flag)
    def set_memory_pool_limit(self, pool, size): self.pool = size
    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0
    def create_timing_cache(self, content): return _Cache(content)
    def set_timing_cache(self, cache, ignore):
        if cache.content.startswith(b"other"): return False
        self.cache = cache
        return True
    def get_timing_cache(self): return self.cache
class _Profile(dict):
    def set_shape(self, name, low, opt, high): self[name] = [low, opt, high]
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return {"network_flags": flags}
    def create_builder_config(self): return _Config()
    def create_optimization_profile(self): return _Profile()
    def build_serialized_network(self, network, config):
        if os.environ.get("FAKE_TRT") == "crash": os._exit(11)
        if os.environ.get("FAKE_TRT") == "hang": time.sleep(60)
        if os.environ.get("FAKE_TRT") == "fail": return None
        high = 1 if config.profile is None else config.profile["images"][2][0]
        plan = {"max_batch": high, **network, "flags": config.flags, "pool": config.pool,
                "cache": config.cache.content.decode(), "profile": config.profile, "host_code": 4 in config.flags}
        return json.dumps(plan).encode()
class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def parse(self, content): return len(content) > 100
    def get_error(self, index): return "no such operator"
"""
FLAGS = {
    "8": "EXPLICIT_BATCH = 0",
    "10": "EXPLICIT_BATCH, STRONGLY_TYPED = 0, 1",
    "11": "STRONGLY_TYPED = 1",
}


def write_binding(folder: Path, version: str = "10.3.0", *, builder: bool = True) -> None:
    """A module `tensorrt` of a version; without a builder it is like the lean runtime."""
    text = BINDING.replace("VERSION", version, 1).replace("FLAGS", FLAGS[version.split(".")[0]], 1)
    if not builder:
        text = text[: text.index("class Builder:")]
    folder.mkdir(exist_ok=True)
    (folder / "tensorrt.py").write_text(text)


def build_cuda(folder: Path) -> Path:
    """A library with the functions of libcudart and libcuda."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (folder / "cuda.c").write_text(CUDA)
    library = folder / "libcudart.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True)
    return library
