"""Writes `tensorrt_names.json`: what the published Python bindings of TensorRT offer, version by version.

    python tests/golden/tensorrt_names.py FOLDER

FOLDER holds one sub-folder per version with an unpacked wheel of the bindings (`tensorrt-bindings` of 8.6,
`tensorrt-cu12-bindings` of 10, `tensorrt-cu13-bindings` of 11; `pip download --no-deps`). The native libraries are not
needed: a library of empty functions takes the place of each, so that the module imports. Names, enumerations and the
signatures in the docstrings are the real ones. Nothing here says what a call does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = Path(__file__).with_name("tensorrt_names.json")
CLASSES = (
    "Builder", "BuilderFlag", "DataType", "DeviceType", "EngineInspector", "HardwareCompatibilityLevel",
    "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IProfiler", "IProgressMonitor", "ITimingCache", "LayerInformationFormat", "Logger",
    "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "ProfilingVerbosity", "Runtime",
    "TensorIOMode",
)  # fmt: skip
"""Whose members are recorded; of the module itself, all names are."""
SEVERITIES = "ILogger.Severity"
_STUBBED = re.compile(r"create\w+_INTERNAL|get(Builder)?PluginRegistry|getNvOnnx\w+|initLib\w+|_ZN\d+nv\w+")


def stubbed(package: Path, folder: Path) -> None:
    """Puts libraries of empty functions into `folder`, one for each that the bindings are linked with."""
    binary = next(package.rglob("tensorrt*.so"))
    symbols = subprocess.run(["nm", "-D", "--undefined-only", binary], check=True, capture_output=True, text=True)
    names = [line.split()[-1].partition("@")[0] for line in symbols.stdout.splitlines()]
    source = folder / "stub.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names if _STUBBED.fullmatch(name)))
    needed = subprocess.run(["readelf", "-d", binary], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"\[(libnv[^\]]+)\]", needed):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, source]
        subprocess.run(command, check=True)


def offered(package: Path) -> dict[str, object]:
    """`version`, and by name what is there: the signature of a function, else an empty text."""
    with tempfile.TemporaryDirectory() as name:
        stubbed(package, Path(name))
        environment = {**os.environ, "LD_LIBRARY_PATH": name, "PYTHONPATH": str(package)}
        command = [sys.executable, __file__, "--inspect"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=name)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def inspected() -> dict[str, object]:
    """What the bindings on the path offer."""
    import tensorrt_bindings as trt  # type: ignore[import-not-found]

    names = {name: _signature(getattr(trt, name)) for name in dir(trt) if not name.startswith("_")}
    for owner in (*CLASSES, SEVERITIES):
        found = trt
        for part in owner.split("."):
            found = getattr(found, part, None)
        for member in dir(found) if found is not None else ():
            if not member.startswith("_") or member == "__init__":
                names[f"{owner}.{member}"] = _signature(getattr(found, member))
    return {"version": trt.__version__, "names": names}


def _signature(value: object) -> str:
    """Of each overload: the arguments after `self`, without their types, `=` after those with a default."""
    lines = (getattr(value, "__doc__", None) or "").splitlines() if callable(value) else []
    found = []
    for line in lines:
        call = re.match(r"(?:\d+\. )?\w+\((?P<arguments>.*)\) ->", line)
        if call and not call["arguments"].startswith("*args"):
            found.append(", ".join(_arguments(call["arguments"])))
    return " | ".join(dict.fromkeys(found))


def _arguments(text: str) -> list[str]:
    """Names of `self: A, x: B[C, D], y: E = 0`: `x`, `y=`."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text + ","):
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
    named = [(part.partition(":")[0], "=" in part) for part in parts if part and ":" in part]
    return [name + ("=" if has_default else "") for name, has_default in named if name not in ("self", "cls")]


def main() -> None:
    """Writes the table."""
    if sys.argv[1] == "--inspect":
        sys.stdout.write(json.dumps(inspected()))
        return
    tables = [offered(folder) for folder in sorted(Path(sys.argv[1]).iterdir()) if folder.is_dir()]
    tables.sort(key=lambda table: [int(part) for part in str(table["version"]).split(".")])
    versions = [str(table["version"]) for table in tables]
    every = sorted({name for table in tables for name in table["names"]})  # type: ignore[attr-defined]
    rows: dict[str, str | list[str]] = {}
    for name in every:
        signatures = [table["names"].get(name) for table in tables]  # type: ignore[attr-defined]
        there = "".join("-" if signature is None else "Y" for signature in signatures)
        known = list(dict.fromkeys(signature for signature in signatures if signature))
        rows[name] = [there, *known] if known else there
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    NAMES.write_text(f'{{"versions": {json.dumps(versions)},\n"names": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
