"""Device memory, copies and events on a board with CUDA but without PyTorch: the few calls that it takes.

The library is called through `ctypes`, so nothing has to be compiled or installed. Not run on hardware yet. Standard
library of Python 3.10 only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from typing import Any

DRIVER = "libcuda.so.1"
_HOST_TO_DEVICE, _DEVICE_TO_HOST = 1, 2
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_PLACES = ("", "/usr/local/cuda/lib64/")
_WHEELS = ("nvidia/cuda_runtime/lib/", "nvidia/cu13/lib/")
"""Below a folder of Python packages: where NVIDIA's wheels of CUDA 12 and 13 put it, which come along with TensorRT's.
The system's loader does not look there."""


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
        """Gives the bytes back."""
        self._call("cudaFree", ctypes.c_void_p(place))

    def to_device(self, place: int, host: Any, size: int) -> None:
        """Queues a copy of a ctypes buffer to the device."""
        self._copy(ctypes.c_void_p(place), ctypes.cast(host, ctypes.c_void_p), size, _HOST_TO_DEVICE)

    def to_host(self, host: Any, place: int, size: int) -> None:
        """Queues a copy from the device to a ctypes buffer."""
        self._copy(ctypes.cast(host, ctypes.c_void_p), ctypes.c_void_p(place), size, _DEVICE_TO_HOST)

    def wait(self) -> None:
        """Until everything that was queued is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def event(self) -> ctypes.c_void_p:
        """A new event, which notes the time when the stream reaches it."""
        made = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(made))
        return made

    def record(self, event: ctypes.c_void_p) -> None:
        """Queues an event behind everything that was queued."""
        self._call("cudaEventRecord", event, self.stream)

    def elapsed_ns(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> int:
        """Time between two events that the stream has passed, known to about half a microsecond."""
        found = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(found), first, second)
        return round(found.value * 1e6)

    def device(self) -> tuple[int, int, str]:
        """(major, minor, name): compute capability and what the driver calls the device."""
        number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        self._call("cudaGetDevice", ctypes.byref(number))
        driver = ctypes.CDLL(DRIVER)
        driver.cuDeviceGetName(name, ctypes.c_int(len(name)), number)
        return self._attribute(_CAPABILITY_MAJOR, number), self._attribute(_CAPABILITY_MINOR, number), _text(name)

    def multiprocessors(self) -> int:
        """How many the current device has."""
        number = ctypes.c_int()
        self._call("cudaGetDevice", ctypes.byref(number))
        return self._attribute(_MULTIPROCESSORS, number)

    def memory_mib(self) -> tuple[int, int]:
        """(free, total) memory of the device; a Jetson's is the memory of the whole board."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value >> 20, total.value >> 20

    def version(self) -> str:
        """Of the runtime library: `12.6`."""
        number = ctypes.c_int()
        self._call("cudaRuntimeGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

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


def _text(buffer: Any) -> str:
    return str(buffer.value.decode(errors="replace"))
