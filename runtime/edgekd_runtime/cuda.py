"""Device memory, copies and the device's identity through CUDA's own library: nothing to compile, nothing to install.

Called with `ctypes`, because TensorRT's Python binding does not move memory and PyTorch is not here. Not run on
hardware yet: tested against a library of the same names.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

DRIVER = "libcuda.so.1"
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76
"""Numbers of device attributes in CUDA's interface, the same in every release."""
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_PLACES = ("", "/usr/local/cuda/lib64/")
_WHEELS = ("nvidia/cuda_runtime/lib/", "nvidia/cu13/lib/")
"""Below a folder of Python packages: where NVIDIA's wheels of CUDA 12 and 13 put it, unknown to the system's loader."""


class Cuda:
    """The current device and one stream.

    Raises:
        OSError: No CUDA runtime, or no device that it can use.
    """

    def __init__(self) -> None:
        self._library = _loaded()
        self.stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        place = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(place), ctypes.c_size_t(size))
        return int(place.value or 0)

    def free(self, place: int) -> None:
        """Gives memory back."""
        self._call("cudaFree", ctypes.c_void_p(place))

    def to_device(self, place: int, host: npt.NDArray[np.generic]) -> None:
        """Queues a copy of a contiguous array; the array must live until `wait`."""
        self._copy(ctypes.c_void_p(place), ctypes.c_void_p(host.ctypes.data), host.nbytes, _HOST_TO_DEVICE)

    def to_host(self, host: npt.NDArray[np.generic], place: int) -> None:
        """Queues a copy into a contiguous array."""
        self._copy(ctypes.c_void_p(host.ctypes.data), ctypes.c_void_p(place), host.nbytes, _DEVICE_TO_HOST)

    def wait(self) -> None:
        """Until everything that was queued is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Gives the stream back; idempotent."""
        if self.stream.value:
            self._call("cudaStreamDestroy", self.stream)
            self.stream = ctypes.c_void_p()

    def device(self) -> tuple[str, str, int]:
        """(name, compute capability, multiprocessors) of the current device: `("Orin", "8.7", 16)`."""
        number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        self._call("cudaGetDevice", ctypes.byref(number))
        ctypes.CDLL(DRIVER).cuDeviceGetName(name, ctypes.c_int(len(name)), number)
        major, minor, count = (
            self._attribute(which, number) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _MULTIPROCESSORS)
        )
        return name.value.decode(errors="replace"), f"{major}.{minor}", count

    def _attribute(self, attribute: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
        return value.value

    def _copy(self, to: ctypes.c_void_p, source: ctypes.c_void_p, size: int, kind: int) -> None:
        self._call("cudaMemcpyAsync", to, source, ctypes.c_size_t(size), ctypes.c_int(kind), self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self._library.cudaGetErrorString(ctypes.c_int(code)) or b"unknown"
            raise OSError(f"{name} failed: {reason.decode(errors='replace')} (CUDA error {code})")


def _loaded() -> Any:
    found = ctypes.util.find_library("cudart")
    places = [*_PLACES, *(f"{folder}/{wheel}" for folder in filter(None, sys.path) for wheel in _WHEELS)]
    for name in [*([found] if found else []), *(place + name for place in places for name in _NAMES)]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("the CUDA runtime library (libcudart) was not found")
