"""What this machine can do: the findings behind `edgekd doctor`."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Literal

import torch

from edgekd.core.schema import Schema
from edgekd.export.convert import CONVERTERS
from edgekd.pipeline.deliver import versions_here
from edgekd.profiling.agent.energy import meter_here, why_no_meter
from edgekd.profiling.environment import state
from edgekd.runtimes.engines.trtexec import PLACES, find_trtexec, version_of
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.load import load_target

DEVICES_TRIED = frozenset({"onnxruntime:openvino", "openvino:auto"})
"""Runtimes on a device that this version's tests have really run; the others were not run on hardware."""
UNTRIED = (
    "not run on hardware: calls and options were checked against the published bindings of 8.6, 10 and 11 and the "
    "source of trtexec; no engine was built by this version's tests"
)
NEEDED = frozenset({"onnxruntime", "openvino", "torch"})
"""Runtimes that come with edgekd; the others are extras and addons."""
ON_BOARDS = "run on x86-64 only, here and by the agent of boards over ssh; on no ARM board"


class Finding(Schema):
    """One thing that is there, missing, or worth knowing.

    Attributes:
        fix: Command or advice, empty when there is nothing to do.
    """

    name: str
    state: Literal["ok", "missing", "note"]
    detail: str
    fix: str = ""


def examine() -> tuple[Finding, ...]:
    """All findings about this machine; measures nothing and changes nothing."""
    return (*_machine(), *_runtimes(), *_devices(), *_training(), *_clocks(), *_energy(), *_places())


def _machine() -> list[Finding]:
    host = load_target("host")
    features = ", ".join(host.features) or "none known"
    versions = ", ".join(f"{name} {version}" for name, version in versions_here().items())
    return [
        Finding(name="machine", state="ok", detail=host.description),
        Finding(name="target host", state="ok", detail=f"{host.name}; instructions that matter: {features}"),
        Finding(name="versions", state="ok", detail=versions),
    ]


def _runtimes() -> list[Finding]:
    findings = []
    for name in RUNTIMES:
        found = RUNTIMES.get(name).availability()
        if found.ok:
            findings.append(Finding(name=name, state="ok", detail=f"version {found.version}"))
        elif name == "tensorrt" and not torch.cuda.is_available():
            findings.append(Finding(name=name, state="note", detail=f"{found.reason}; it needs an NVIDIA GPU anyway"))
        else:
            state = "missing" if name in NEEDED else "note"
            findings.append(Finding(name=name, state=state, detail=found.reason, fix=found.install))
    findings += _converters()
    findings.append(_trtexec())
    findings.append(Finding(name="tensorrt path", state="note", detail=UNTRIED))
    return findings


def _devices() -> list[Finding]:
    """The runtimes that are had by naming a device: those that would work here, in one line."""
    able = [name for name in RUNTIMES.on_devices if RUNTIMES.get(name).availability().ok]
    untried = " (not run on hardware by this version's tests)"
    shown = [name if name in DEVICES_TRIED else name + untried for name in able]
    others = ", ".join(name for name in RUNTIMES.on_devices if name not in able)
    text = f"{', '.join(shown) or 'none'} with --runtime; not here: {others or 'none'}"
    return [Finding(name="on devices", state="ok" if able else "note", detail=text)]


def _trtexec() -> Finding:
    """The program that builds engines without TensorRT's Python bindings."""
    program = find_trtexec()
    if program is None:
        places = " or ".join(("the PATH", *PLACES[:1]))
        detail = f"not on {places}; JetPack ships it, the pip wheel does not"
        return Finding(name="trtexec", state="note", detail=detail)
    version = version_of(program)
    said = "it does not say its version" if version is None else f"TensorRT {'.'.join(map(str, version))}"
    return Finding(name="trtexec", state="note" if version is None else "ok", detail=f"{program}; {said}")


def _converters() -> list[Finding]:
    """The tools that make engines for runtimes that read no ONNX graph."""
    findings = []
    for name in CONVERTERS:
        converter = CONVERTERS.get(name)
        found = converter.availability()
        label = f"converter {name}"
        if found.ok:
            precisions = ", ".join(converter.precisions)
            detail = f"{converter.tool} {found.version} writes {precisions}; {ON_BOARDS}"
            findings.append(Finding(name=label, state="ok", detail=detail))
        else:
            findings.append(Finding(name=label, state="note", detail=found.reason, fix=found.install))
    return findings


def _training() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    found = [
        Finding(name="cpu threads", state="ok", detail=f"{cores} usable cores, torch uses {torch.get_num_threads()}")
    ]
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [*found, Finding(name="cuda", state="ok", detail=names)]
    return [*found, Finding(name="cuda", state="note", detail="no GPU that torch can use; training runs on the CPU")]


_CLOCK_FACTS = {
    "frequency_mhz": "{} MHz now",
    "governor": "governor {}",
    "temperature_c": "{} °C",
    "busy_share": "{:.0%} of the processor time busy",
    "load_1m": "load {} over the last minute",
}


def _clocks() -> list[Finding]:
    now = state()
    shown = ", ".join(text.format(now[key]) for key, text in _CLOCK_FACTS.items() if now.get(key) is not None)
    governor = now.get("governor")
    if isinstance(governor, str) and governor != "performance":
        fix = "for steady latencies: sudo cpupower frequency-set -g performance"
        return [Finding(name="clocks", state="note", detail=shown, fix=fix)]
    return [Finding(name="clocks", state="ok", detail=shown)]


def _energy() -> list[Finding]:
    meter = meter_here()
    if meter is not None:
        return [Finding(name="energy", state="ok", detail=meter.source)]
    return [Finding(name="energy", state="note", detail=f"profiles hold no energy: {why_no_meter()}")]


def _places() -> list[Finding]:
    usage = shutil.disk_usage(".")
    free_gib = usage.free / 2**30
    fix = "" if free_gib > 5 else "free some space, or put the store elsewhere with --store"
    state_: Literal["ok", "note"] = "ok" if free_gib > 5 else "note"
    return [Finding(name="disk", state=state_, detail=f"{free_gib:.0f} GiB free here", fix=fix)]
