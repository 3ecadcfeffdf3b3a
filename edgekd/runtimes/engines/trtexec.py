"""The program `trtexec`: where it is, which version it is, and what its output says.

Its output is a log for people; what is read here is printed alike from 8.5 to 11: the banner, lines marked `[E]`, the
parser's report of a node, the times of the build and the performance summary. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgekd.runtimes.engines.settings import Version

PROGRAM = "trtexec"
PLACES = ("/usr/src/tensorrt/bin", "/usr/local/tensorrt/bin", "/opt/tensorrt/bin")
"""Where JetPack, NVIDIA's packages and its containers put it, beside the PATH."""
_BANNER = re.compile(r"&&&& (?P<state>RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(?P<number>\d+)\]")
_ERROR = re.compile(r"^(?:\[[^\]]*\] )?\[E\] (?P<text>.+?)\s*$", re.MULTILINE)
_MARKS = re.compile(r"^(?:\[TRT\]\s*|Error\[\d+\]:\s*|\d+:\s*|\[[\w.]+::[^\]]*\]\s*)+")
_NODE = re.compile(r'While parsing node number (?P<number>\d+) \[(?P<operator>\w+) -> "(?P<output>[^"]*)"')
_OPERATOR = re.compile(r'^op_type: "(?P<operator>\w+)"', re.MULTILINE)
_REASON = re.compile(r"ERROR: \S+ In function \w+:\s*\n(?P<text>\[\d+\] .+)")
_CONSEQUENCES = (
    "Failed to parse onnx",
    "Parsing model failed",
    "Failed to create engine",
    "Engine set up failed",
    "Engine could not be created",
    "Engine deserialization failed",
    "Building engine failed",
    "Inference set up failed",
    "Got invalid engine",
    "--- Begin node",
    "--- End node",
    "While parsing node",
    "ModelImporter.cpp",
)
"""What `trtexec` and the parser say after the cause, or around it."""
_BUILT = re.compile(r"Engine built in (?P<seconds>[\d.]+) sec")
_SIZE = re.compile(r"(?:Created engine with size|Loaded engine size): (?P<mib>[\d.]+) MiB")
_PEAK = re.compile(r"Peak memory usage of TRT CPU/GPU memory allocators: CPU (?P<cpu>\d+) MiB, GPU (?P<gpu>\d+) MiB")
_COMPUTE = re.compile(
    r"GPU Compute Time: .*?median = (?P<median>[\d.e+-]+) ms.*?percentile\(99%\) = (?P<p99>[\d.e+-]+) ms"
)
_DEVICE = re.compile(r"\[I\] Selected Device: (?P<name>.+?)\s*$", re.MULTILINE)
_CAPABILITY = re.compile(r"\[I\] Compute Capability: (?P<value>\d+\.\d+)")
_PROCESSORS = re.compile(r"\[I\] SMs: (?P<count>\d+)")
_SAID_BY_HELP_S = 60.0


@dataclass(frozen=True)
class Said:
    """What an output says; None where it says nothing.

    Attributes:
        version: Of the banner.
        passed: Whether the last banner reports success.
        error: The cause of a failure, its node and operator included; empty without one.
        build_s: Time of the build.
        size_mib: Of the engine.
        peak_gpu_mib: Most device memory that the builder held.
        median_ms: GPU compute time.
        p99_ms: GPU compute time.
        gpu: Name of the device.
        compute_capability: `8.7`.
        multiprocessors: Of the device.
    """

    version: Version | None
    passed: bool
    error: str
    build_s: float | None = None
    size_mib: float | None = None
    peak_gpu_mib: int | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    gpu: str | None = None
    compute_capability: str | None = None
    multiprocessors: int | None = None


def find_trtexec() -> Path | None:
    """The program on the PATH or where JetPack puts it; None when there is none."""
    found = shutil.which(PROGRAM)
    for place in () if found else PLACES:
        found = found or shutil.which(PROGRAM, path=place)
    return None if found is None else Path(found)


def version_of(program: Path) -> Version | None:
    """The version of the TensorRT that a program belongs to; None when it does not say.

    Its help is asked for: `--version` is unknown up to 10 and fails in 11.
    """
    try:
        done = subprocess.run(
            [program, "--help"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SAID_BY_HELP_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said_by(done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")).version


def said_by(output: str) -> Said:
    """What the output of one run says."""
    banners = list(_BANNER.finditer(output))
    passed = bool(banners) and banners[-1]["state"] == "PASSED"
    built, peak, times = (pattern.search(output) for pattern in (_BUILT, _PEAK, _COMPUTE))
    size = _SIZE.search(output)
    device, capability, processors = (pattern.search(output) for pattern in (_DEVICE, _CAPABILITY, _PROCESSORS))
    return Said(
        version=version_from_number(banners[0]["number"]) if banners else None,
        passed=passed,
        error="" if passed else cause_in(output),
        build_s=float(built["seconds"]) if built else None,
        size_mib=float(size["mib"]) if size else None,
        peak_gpu_mib=int(peak["gpu"]) if peak else None,
        median_ms=float(times["median"]) if times else None,
        p99_ms=float(times["p99"]) if times else None,
        gpu=device["name"] if device else None,
        compute_capability=capability["value"] if capability else None,
        multiprocessors=int(processors["count"]) if processors else None,
    )


def cause_in(output: str) -> str:
    """The first error that is not the consequence of another, with the node where the parser names one."""
    errors = (_MARKS.sub("", found["text"]).strip() for found in _ERROR.finditer(output))
    first = next((text for text in errors if text and not any(word in text for word in _CONSEQUENCES)), "")
    node, operator, reason = _NODE.search(output), _OPERATOR.search(output), _REASON.search(output)
    if node:
        where = f"the operator {node['operator']} (node {node['number']}, output {node['output']!r})"
    elif operator:
        where = f"the operator {operator['operator']}"
    else:
        return first
    return f"it cannot take {where}: {reason['text'].strip() if reason else first}".rstrip(": ")


def version_from_number(number: str) -> Version:
    """The version in a banner's number: 8601 is 8.6.1, 101601 is 10.16.1."""
    value = int(number)
    major_size = 1000 if value < 10_000 else 10_000
    return value // major_size, value % major_size // 100, value % 100
