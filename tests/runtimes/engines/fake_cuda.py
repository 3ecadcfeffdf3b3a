"""A CUDA runtime whose device is the process's own memory: the real signatures, so that pointers and sizes are real."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = """
#include <stdlib.h>
#include <string.h>
#include <time.h>
static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
int cudaStreamCreate(void **stream) { *stream = (void *)0x1234; return 0; }
int cudaMalloc(void **place, size_t size) { *place = malloc(size); return 0; }
int cudaFree(void *place) { free(place); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (stream != (void *)0x1234 || (kind != 1 && kind != 2)) return 1;
    memcpy(to, from, size);
    return 0;
}
int cudaStreamSynchronize(void *stream) { return stream == (void *)0x1234 ? 0 : 1; }
int cudaEventCreate(void **event) { *event = malloc(sizeof(double)); return 0; }
int cudaEventRecord(void *event, void *stream) { *(double *)event = now_ms(); return 0; }
int cudaEventElapsedTime(float *ms, void *first, void *second) {
    *ms = (float)(*(double *)second - *(double *)first);
    return 0;
}
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 8;
    return 0;
}
int cudaMemGetInfo(size_t *free, size_t *total) { *free = 1ul << 31; *total = 1ul << 32; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
const char *cudaGetErrorString(int error) { return "invalid argument"; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
"""


def make_cuda(folder: Path) -> Path:
    """A folder for `LD_LIBRARY_PATH` that holds the runtime and the driver's library; skips without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    source = folder / "cudart.c"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcudart.so", source], check=True, timeout=60)
    # A real runtime of this machine is found by the name of its version: it stands behind this one.
    for name in ("libcuda.so.1", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"):
        shutil.copy(folder / "libcudart.so", folder / name)
    return folder
