"""A program `trtexec`: it prints what the recorded ones print, refuses options it does not know, and fails as told."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from edgekd.runtimes.engines.settings import version_from_text
from tests.golden.trtexec_options import OPTIONS

CONTROL = "FAKE_TENSORRT"
STAMP = "[01/01/2026-00:00:00]"


def say(*lines: str) -> None:
    """Writes lines to standard output, at once."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def main(words: list[str]) -> int:
    """Carries out one command line."""
    place = Path(os.environ[CONTROL])
    control = json.loads(place.read_text())
    major, minor, patch = version_from_text(control["version"])
    number = f"{major}{minor}{patch:02}" if major < 10 else f"{major}{minor:02}{patch:02}"
    banner = f"TensorRT.trtexec [TensorRT v{number}] # trtexec {' '.join(words)}"
    say(f"&&&& RUNNING {banner}")
    if words == ["--help"]:
        return 0
    options = {word.partition("=")[0].removeprefix("--"): word.partition("=")[2] for word in words}
    unknown = [name for name in options if name not in json.loads(OPTIONS.read_text())[control["version"]]]
    for name in unknown:
        say(f"{STAMP} [E] Unknown option: --{name} {options[name]}")
    code = 1 if unknown else _run(options) if "loadEngine" in options else _build(options, control, place)
    say(f"&&&& {'FAILED' if code else 'PASSED'} {banner}")
    return code


def _build(options: dict[str, str], control: dict[str, object], place: Path) -> int:
    turns: list[dict[str, object]] = control.get("builds") or [{}]  # type: ignore[assignment]
    calls: list[dict[str, object]] = control.setdefault("calls", [])  # type: ignore[assignment]
    turn = turns[min(len(calls), len(turns) - 1)]
    cache = Path(options["timingCacheFile"])
    calls.append({"options": options, "cache": cache.read_text(errors="replace") if cache.is_file() else ""})
    place.write_text(json.dumps(control))
    how = turn.get("fail")
    if how == "hang":
        time.sleep(600)
    if how == "crash":
        say(f"{STAMP} [I] Start parsing network model.")
        os.kill(os.getpid(), 11)
    workspace = int(options["memPoolSize"].partition(":")[2])
    if how == "memory" and workspace > int(str(turn["until_mib"])):
        where = "Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2"
        say(f"{STAMP} [E] {where}: OutOfMemory (Requested size was 2833252352 bytes.)")
        say(f"{STAMP} [E] Engine could not be created from network")
        return 1
    if calls[-1]["cache"] == "damaged":
        say(f"{STAMP} [E] [TRT] Failed to create ITimingCache from file {cache}")
        return 1
    header = json.dumps({"error": turn.get("error", 0.0), "ms": turn.get("ms", 1.0)}).encode()
    Path(options["saveEngine"]).write_bytes(header + b"\n" + Path(options["onnx"]).read_bytes())
    cache.write_text("FAKE-CACHE Orin")
    Path(options["exportLayerInfo"]).write_text(json.dumps({"Layers": [{"Name": "conv"}], "Bindings": []}))
    say(f"{STAMP} [I] Engine built in 12.5 sec.", f"{STAMP} [I] Created engine with size: 1.5 MiB")
    return 0


def _run(options: dict[str, str]) -> int:
    import numpy as np
    import onnxruntime

    header, _, graph = Path(options["loadEngine"]).read_bytes().partition(b"\n")
    facts = json.loads(header)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name, path = options["loadInputs"].split(":")
    shape = [int(size) for size in options["shapes"].partition(":")[2].split("x")]
    values = np.fromfile(path, dtype=np.float32).reshape(shape)
    found = session.run(None, {name: values})[0] + facts["error"]
    numbers = ", ".join("nan" if np.isnan(value) else f"{value:.7g}" for value in found.ravel())
    output = session.get_outputs()[0].name
    text = f'[\n  {{ "name" : "{output}"\n  , "dimensions" : "1x4"\n  , "values" : [ {numbers} ]\n  }}\n]\n'
    Path(options["exportOutput"]).write_text(text)
    ms = facts["ms"]
    times = ", ".join(f"{name} = {ms} ms" for name in ("min", "max", "mean", "median", "percentile(99%)"))
    say(f"{STAMP} [I] GPU Compute Time: {times}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
