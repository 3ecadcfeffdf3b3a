"""A module `tensorrt` of a chosen version, made from the recorded names: what that version lacks is not there.

It keeps what it was asked for in a file, fails as it is told to, and its engines compute what ONNX Runtime computes, so
that parity is a real question. What a real TensorRT does with these calls is not shown here.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.golden.tensorrt_names import NAMES

CONTROL = "FAKE_TENSORRT"
"""Names the JSON file with `version`, and how builds go: `builds` (one entry each, the last one repeats) with `fail`,
`error` (added to the outputs) and `ms`."""
ENUMS = ("BuilderFlag", "DeviceType", "HardwareCompatibilityLevel", "LayerInformationFormat", "MemoryPoolType",
         "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "TensorIOMode")  # fmt: skip
MAGIC = b"FAKE-ENGINE\n"
CACHE = b"FAKE-CACHE Orin"


def offered(version: str) -> set[str]:
    """Names that a version has."""
    table = json.loads(NAMES.read_text())
    place = table["versions"].index(version)
    first = {name: row if isinstance(row, str) else row[0] for name, row in table["names"].items()}
    return {name for name, there in first.items() if there[place] == "Y"}


class Control:
    """The file that says how builds go and takes down what was asked for."""

    def __init__(self) -> None:
        self.path = Path(os.environ[CONTROL])

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def note(self, **facts: Any) -> None:
        held = self.read()
        held.setdefault("calls", []).append(facts)
        self.path.write_text(json.dumps(held))

    def turn(self) -> dict[str, Any]:
        """How the next build goes."""
        held = self.read()
        done = sum("flags" in call for call in held.get("calls", []))
        turns = held.get("builds") or [{}]
        found: dict[str, Any] = turns[min(done, len(turns) - 1)]
        return found


def make_module(version: str) -> ModuleType:
    """The module; attributes and members that the version lacks raise AttributeError, as in the real one."""
    names, control = offered(version), Control()
    module = ModuleType("tensorrt")
    made: dict[str, Any] = {"__version__": version}
    for owner in ENUMS:
        members = sorted(name.partition(".")[2] for name in names if name.startswith(f"{owner}."))
        values = {name: place for place, name in enumerate(members) if name.isupper() and name.isidentifier()}
        made[owner] = IntEnum(owner, values)
    severity = IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
    made |= _classes(version, names, control, made, severity)
    for name, value in made.items():
        if name in names or name == "__version__":
            setattr(module, name, value)
    return module


class Limited:
    """An object that only has the members of its class in the version."""

    def __init__(self, owner: str, names: set[str], **members: Any) -> None:
        allowed = {name.partition(".")[2] for name in names if name.startswith(f"{owner}.")}
        object.__setattr__(self, "_allowed", allowed)
        object.__setattr__(self, "_owner", owner)
        for name, value in members.items():
            if name in allowed:
                object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._allowed:
            raise AttributeError(f"{self._owner} has no attribute {name!r}")
        object.__setattr__(self, name, value)


class Memory(bytes):
    """Memory of the library."""


def _classes(version: str, names: set[str], control: Control, enums: dict[str, Any], severity: Any) -> dict[str, Any]:
    explicit = version.startswith("8.")

    class ILogger:
        Severity = severity

        def __init__(self) -> None:
            self.initialised = True

    class Logger(ILogger):
        ERROR, WARNING = severity.ERROR, severity.WARNING

        def __init__(self, level: int = 2) -> None:
            ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None: ...

    class Base:
        def __init__(self) -> None:
            self.initialised = True

    def config_for() -> Limited:
        state: dict[str, Any] = {"flags": [], "cleared": [], "pools": {}, "cache": None, "shapes": []}

        def set_cache(cache: Any, ignore_mismatch: bool) -> bool:
            assert ignore_mismatch is False
            fits = cache.content in (b"", CACHE)
            state["cache"] = cache.content if fits else state["cache"]
            return fits

        def create_cache(content: bytes) -> Any:
            if content and not content.startswith(b"FAKE-CACHE"):
                return None
            return SimpleNamespace(content=bytes(content))

        config = Limited(
            "IBuilderConfig", names,
            set_flag=lambda flag: state["flags"].append(flag.name),
            clear_flag=lambda flag: state["cleared"].append(flag.name),
            set_memory_pool_limit=lambda pool, size: state["pools"].update({pool.name: size}),
            add_optimization_profile=lambda profile: state["shapes"].extend(profile.spans) or 0,
            create_timing_cache=create_cache,
            set_timing_cache=set_cache,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: Memory(CACHE)),
            progress_monitor=None, profiling_verbosity=None, builder_optimization_level=3, DLA_core=-1,
            default_device_type=None, hardware_compatibility_level=None,
        )  # fmt: skip
        object.__setattr__(config, "state", state)
        return config

    def profile_for() -> Limited:
        spans: list[Any] = []
        profile = Limited("IOptimizationProfile", names, set_shape=lambda name, *shapes: spans.append([name, *shapes]))
        object.__setattr__(profile, "spans", spans)
        return profile

    class Builder:
        def __init__(self, logger: Any) -> None:
            assert logger.initialised
            self.logger = logger
            self.create_builder_config = config_for
            self.create_optimization_profile = profile_for

        def create_network(self, flags: int) -> Any:
            if explicit:
                assert flags & 1 << int(enums["NetworkDefinitionCreationFlag"].EXPLICIT_BATCH)
            return SimpleNamespace(flags=flags, content=b"")

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            turn, state = control.turn(), config.state
            strong = getattr(enums["NetworkDefinitionCreationFlag"], "STRONGLY_TYPED", None)
            control.note(
                flags=state["flags"], cleared=state["cleared"], pools=state["pools"], shapes=state["shapes"],
                cache=(state["cache"] or b"").decode(), strong=strong is not None and bool(network.flags >> strong & 1),
                level=getattr(config, "builder_optimization_level", None), verbosity=config.profiling_verbosity.name,
                dla=config.DLA_core, device=getattr(config.default_device_type, "name", None),
                hardware=getattr(getattr(config, "hardware_compatibility_level", None), "name", None),
            )  # fmt: skip
            monitor = getattr(config, "progress_monitor", None)
            if monitor is not None:
                assert monitor.initialised
                monitor.phase_start("Building Engine", None, 2)
                for step in range(2):
                    assert monitor.step_complete("Building Engine", step)
                monitor.phase_finish("Building Engine")
            return self._built(turn, network, state)

        def _built(self, turn: dict[str, Any], network: Any, state: dict[str, Any]) -> Any:
            how = turn.get("fail")
            if how == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hang":
                time.sleep(600)
            limit = state["pools"].get("WORKSPACE", 1 << 40)
            if how == "memory" and limit > turn["until_mib"] << 20:
                self.logger.log(severity.ERROR, "[resizingAllocator.cpp::allocate::78] Error Code 1: Cuda Runtime (out "
                                                "of memory)")  # fmt: skip
                return None
            if how == "no kernel":
                self.logger.log(severity.ERROR, "Error Code 10: Internal Error (Could not find any implementation for "
                                                "node conv.)")  # fmt: skip
                return None
            facts = {"error": turn.get("error", 0.0), "ms": turn.get("ms", 0.0)}
            header = json.dumps({**facts, "host_code": "VERSION_COMPATIBLE" in state["flags"]}).encode()
            return Memory(MAGIC + header + b"\n" + network.content)

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self.network, self.num_errors = network, 0

        def parse(self, model: bytes, path: str | None = None) -> bool:
            self.network.content = model
            self.num_errors = int(control.read().get("parses", True) is False)
            return not self.num_errors

        def get_error(self, index: int) -> Any:
            return Limited("ParserError", names, desc=lambda: "No importer registered for op: Frobnicate",
                           node=lambda: 3, node_operator=lambda: "Frobnicate", node_name=lambda: "odd")  # fmt: skip

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert logger.initialised
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if not bytes(content).startswith(MAGIC):
                return None
            header = json.loads(bytes(content)[len(MAGIC) :].partition(b"\n")[0])
            if header["host_code"] and not self.engine_host_code_allowed:
                return None
            return engine_from(bytes(content), names, enums)

    return {"ILogger": ILogger, "Logger": Logger, "Builder": Builder, "OnnxParser": OnnxParser, "Runtime": Runtime,
            "IProfiler": Base, "IProgressMonitor": Base}  # fmt: skip


def engine_from(content: bytes, names: set[str], enums: dict[str, Any]) -> Limited:
    """An engine with one float32 input and one float32 output; see the module."""
    import onnxruntime

    header, _, graph = content[len(MAGIC) :].partition(b"\n")
    facts = json.loads(header)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    source, target = session.get_inputs()[0], session.get_outputs()[0]
    places: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(name: str, shape: tuple[int, ...]) -> bool:
        fits = len(shape) == len(source.shape) and list(shape[1:]) == list(source.shape[1:])
        if fits:
            shapes[source.name] = shape
            shapes[target.name] = (shape[0], *target.shape[1:])
        return fits

    def execute(stream: int) -> bool:
        import numpy as np

        time.sleep(facts["ms"] / 1e3)
        count = int(np.prod(shapes[source.name]))
        values = np.ctypeslib.as_array((ctypes.c_float * count).from_address(places[source.name]))
        found = session.run(None, {source.name: values.reshape(shapes[source.name]).copy()})[0] + facts["error"]
        content = np.ascontiguousarray(found, dtype=np.float32).tobytes()
        ctypes.memmove(places[target.name], content, len(content))
        return True

    modes = {source.name: enums["TensorIOMode"].INPUT, target.name: enums["TensorIOMode"].OUTPUT}
    context = Limited("IExecutionContext", names, set_input_shape=set_shape, get_tensor_shape=lambda name: shapes[name],
                      set_tensor_address=places.__setitem__, execute_async_v3=execute)  # fmt: skip
    layers = json.dumps({"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}], "Bindings": []})
    inspector = Limited("EngineInspector", names, get_engine_information=lambda form: layers, execution_context=None)
    return Limited(
        "ICudaEngine", names, num_io_tensors=2, get_tensor_name=lambda index: (source.name, target.name)[index],
        get_tensor_mode=modes.__getitem__, get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
        create_execution_context=lambda: context, create_engine_inspector=lambda: inspector,
    )  # fmt: skip
