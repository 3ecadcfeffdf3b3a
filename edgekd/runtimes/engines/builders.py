"""The two builders behind one interface: a worker with TensorRT's Python API, and the program `trtexec`.

Standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol

from edgekd.runtimes.engines.command import BuildFiles, build_arguments, run_arguments, shown
from edgekd.runtimes.engines.process import Ended, run_to_end
from edgekd.runtimes.engines.settings import BuildSettings, Version, version_from_text
from edgekd.runtimes.engines.tensorrt_api import OUT_OF_MEMORY
from edgekd.runtimes.engines.trtexec import find_trtexec, said_by, version_of
from edgekd.runtimes.engines.work import PROGRESS

ENGINE, TIMING_CACHE, LAYERS, LOG = "model.engine", "timing.cache", "layers.json", "build.log"
_BAD_CACHE = re.compile(r"imingCache (?:creation )?failed|create ITimingCache|cache size .*incorrect", re.IGNORECASE)


_VALUES = re.compile(r'(?P<key>"values"\s*:\s*)(?P<numbers>\[[^\]"]*\])')


class NotBuilt(Exception):
    """A build that ended without an engine.

    Args:
        message: Why, in a clause.
        memory: Memory was short.
        cache: The timing cache could not be read.
        timed_out: It took too long.
        stopped: It was cancelled.
    """

    def __init__(
        self, message: str, *, memory: bool = False, cache: bool = False, timed_out: bool = False, stopped: bool = False
    ) -> None:
        super().__init__(message)
        self.memory, self.cache, self.timed_out, self.stopped = memory, cache, timed_out, stopped


@dataclass(frozen=True)
class Built:
    """What a build told.

    Attributes:
        seconds: How long it took.
        flags: What decided over the engine: flags, or options of the program.
        notes: What was ignored, in sentences.
        peak_gpu_mib: Most device memory that the builder held; None where it does not tell.
    """

    seconds: float
    flags: list[str]
    notes: list[str] = field(default_factory=list)
    peak_gpu_mib: int | None = None


@dataclass(frozen=True)
class BuildTools:
    """How processes are started; see `Supervisor`."""

    worker: Sequence[str]
    limit_s: float
    stop: Callable[[], bool]
    environment: Mapping[str, str]
    clock_s: Callable[[], float]
    tell: Callable[[str, int, int], None]

    def start(self, words: Sequence[str], *, limit_s: float, on_line: Callable[[str], None]) -> Ended:
        """Runs the worker with these words to its end."""
        verb, *rest = words
        return run_to_end(
            [*self.worker, verb, str(os.getpid()), *rest],
            limit_s=limit_s,
            on_line=on_line,
            stop=self.stop,
            environment=self.environment,
            clock_s=self.clock_s,
        )


class RunOrder(Protocol):
    """As much of an order as a run needs."""

    @property
    def settings(self) -> BuildSettings: ...
    @property
    def shapes(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def probes(self) -> Sequence[Mapping[str, Path]]: ...
    @property
    def run_s(self) -> float: ...


class Builder(Protocol):
    """Builds and runs engines of one TensorRT.

    Attributes:
        name: `python` or `trtexec`.
        program: What is started, for the reader.
        version: Of its TensorRT.
    """

    name: str
    program: str
    version: Version

    def build(self, place: Path, onnx: Path, settings: BuildSettings) -> Built:
        """Writes `model.engine` into `place`, with `layers.json`, `timing.cache` (read too) and `build.log`.

        Raises:
            NotBuilt: It ended without an engine.
        """

    def run(self, place: Path, order: RunOrder, limit_s: float) -> dict[str, Any]:
        """`outputs` of each probe by name with `times_ms`, or with `median_ms` and `p99_ms`; or the `error`."""


def builders(
    asked: str, found: Mapping[str, Any], tools: BuildTools, refuse: Callable[[Sequence[str]], Exception]
) -> tuple[Builder, str]:
    """The builder to use and the full version of its TensorRT.

    Args:
        asked: `auto` prefers the Python API, whose progress can be shown and which judges timing caches itself.
        found: What `work.py` found on the machine.
        tools: How processes are started.
        refuse: Makes the error for reasons why there is none.
    """
    if found["device"] is None:
        raise refuse(found["missing"])
    if asked in ("auto", "python") and found["library"] is not None:
        return PythonBuilder(version_from_text(found["library"]), tools), found["library"]
    reasons = [reason for reason in found["missing"] if asked != "trtexec"]
    if asked in ("auto", "trtexec"):
        program = find_trtexec()
        version = None if program is None else version_of(program)
        if program is not None and version is not None:
            return TrtexecBuilder(program, version, tools), ".".join(map(str, version))
        reasons.append(
            "trtexec is neither on the PATH nor in /usr/src/tensorrt/bin"
            if program is None
            else f"{program} does not say its version"
        )
    raise refuse(reasons)


class PythonBuilder:
    """TensorRT's Python API in a worker; see `Builder`."""

    def __init__(self, version: Version, tools: BuildTools) -> None:
        self.name, self.program, self.version, self._tools = "python", "tensorrt (Python)", version, tools

    def build(self, place: Path, onnx: Path, settings: BuildSettings) -> Built:
        spec = {
            "onnx": str(onnx),
            "settings": settings.plain(),
            "engine": str(place / ENGINE),
            "timing_cache": str(place / TIMING_CACHE),
            "layers": str(place / LAYERS),
        }
        answer, ended = self._asked("build", place, spec, self._tools.limit_s)
        if answer is None:
            _raise_ended(ended, self._tools.limit_s)
        if "error" in answer:
            raise NotBuilt(f"TensorRT {_shown(self.version)}: {answer['error']}", memory=answer["memory"])
        return Built(ended.seconds, answer["flags"], answer["notes"])

    def run(self, place: Path, order: RunOrder, limit_s: float) -> dict[str, Any]:
        spec = {
            "engine": str(place / ENGINE),
            "shapes": {name: list(shape) for name, shape in order.shapes.items()},
            "probes": [{name: str(path) for name, path in probe.items()} for probe in order.probes],
            "seconds": order.run_s,
            "host_code": order.settings.version_compatible,
        }
        answer, ended = self._asked("run", place, spec, limit_s)
        return answer if answer is not None else {"error": _end_of(ended, limit_s)}

    def _asked(self, verb: str, place: Path, spec: Mapping[str, Any], limit_s: float) -> tuple[Any, Ended]:
        """The worker's answer, None when it did not come to it, and how the worker ended."""
        request, result = place / f"{verb}.json", place / f"{verb}-result.json"
        request.write_text(json.dumps(spec), encoding="utf-8")
        ended = self._tools.start([verb, str(request), str(result)], limit_s=limit_s, on_line=self._heard)
        (place / LOG).write_text(ended.output, encoding="utf-8")
        if ended.code != 0 or not result.is_file():
            return None, ended
        return json.loads(result.read_text(encoding="utf-8")), ended

    def _heard(self, line: str) -> None:
        if line.startswith(PROGRESS):
            phase, done, total = json.loads(line[len(PROGRESS) :])
            self._tools.tell(str(phase), int(done), int(total))


class TrtexecBuilder:
    """The program that JetPack ships; see `Builder`."""

    def __init__(self, program: Path, version: Version, tools: BuildTools) -> None:
        self.name, self.program, self.version, self._tools = "trtexec", str(program), version, tools

    def build(self, place: Path, onnx: Path, settings: BuildSettings) -> Built:
        files = BuildFiles(
            onnx=str(onnx),
            engine=str(place / ENGINE),
            timing_cache=str(place / TIMING_CACHE),
            layers=str(place / LAYERS),
        )
        words = build_arguments(settings, self.version, files)
        ended = self._started(words, self._tools.limit_s)
        (place / LOG).write_text(shown(self.program, words) + "\n" + ended.output, encoding="utf-8")
        said = said_by(ended.output)
        if ended.timed_out or ended.stopped or ended.code < 0:
            _raise_ended(ended, self._tools.limit_s)
        if ended.code != 0 or not said.passed or not (place / ENGINE).is_file():
            cause = said.error or f"trtexec {ended.death} and named no error"
            raise NotBuilt(
                f"TensorRT {_shown(self.version)}: {cause}",
                memory=_memory_short(ended.output),
                cache=bool(_BAD_CACHE.search(ended.output)),
            )
        notes = ["the timing cache does not fit this device or version: it is ignored"]
        flags = [word for word in words if not word.startswith(("--onnx=", "--saveEngine=", "--timing", "--export"))]
        ignored = "timing cache will not be used" in ended.output
        return Built(said.build_s or ended.seconds, flags, notes if ignored else [], said.peak_gpu_mib)

    def run(self, place: Path, order: RunOrder, limit_s: float) -> dict[str, Any]:
        found: dict[str, Any] = {"outputs": []}
        free = {entry.name for entry in order.settings.inputs}
        for number, probe in enumerate(order.probes):
            outputs = place / f"outputs-{number}.json"
            words = run_arguments(
                str(place / ENGINE),
                self.version,
                inputs={name: str(path) for name, path in probe.items()},
                shapes={name: shape for name, shape in order.shapes.items() if name in free},
                host_code=order.settings.version_compatible,
                outputs=str(outputs),
                seconds=max(1, round(order.run_s)) if number == 0 else 0,
            )
            ended = self._started(words, limit_s)
            said = said_by(ended.output)
            if ended.code != 0 or not said.passed:
                return {"error": said.error or _end_of(ended, limit_s)}
            try:
                found["outputs"].append(outputs_in(outputs.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as err:
                return {"error": f"trtexec wrote no readable outputs: {err}"}
            if number == 0:
                found |= {"median_ms": said.median_ms, "p99_ms": said.p99_ms}
        return found

    def _started(self, words: Sequence[str], limit_s: float) -> Ended:
        return self._tools.start(["exec", self.program, *words], limit_s=limit_s, on_line=lambda line: None)


def outputs_in(text: str) -> dict[str, list[float]]:
    """Values by output name of what `--exportOutput` writes, which prints `nan` and `inf` as C++ does."""
    plain = _VALUES.sub(lambda found: found["key"] + _json_numbers(found["numbers"]), text)
    return {str(entry["name"]): [float(value) for value in entry["values"]] for entry in json.loads(plain)}


def _json_numbers(text: str) -> str:
    """A list of numbers in the words of Python's JSON."""
    return re.sub(r"-?\bnan\b", "NaN", re.sub(r"\binf(?:inity)?\b", "Infinity", text))


def _raise_ended(ended: Ended, limit_s: float) -> NoReturn:
    """Raises for a process that ended without its own reason."""
    killed = ended.code == -9 and not (ended.timed_out or ended.stopped)
    raise NotBuilt(
        _end_of(ended, limit_s),
        memory=killed or _memory_short(ended.output),
        timed_out=ended.timed_out,
        stopped=ended.stopped,
    )


def _end_of(ended: Ended, limit_s: float) -> str:
    if ended.timed_out:
        return f"the builder was ended: {limit_s:.0f} s were not enough"
    said = " | ".join(line.strip() for line in ended.output.splitlines() if line.strip())[-300:]
    return f"the builder {ended.death}" + (f"; its last words: {said}" if said else "")


def _memory_short(output: str) -> bool:
    return any(word in output for word in OUT_OF_MEMORY)


def _shown(version: Version) -> str:
    return ".".join(map(str, version))
