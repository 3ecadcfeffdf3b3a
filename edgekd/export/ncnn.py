"""Converts a PyTorch model to an ncnn network (`.param` and `.bin`) with pnnx.

pnnx is a program of its own: it reads what `torch.jit.trace` wrote, in a process and a folder that are gone afterwards.
Operators that ncnn lacks it writes as if they were layers, and only its log says so: they are found by asking ncnn.
FP16 halves the weights in the file; whether values are computed in half precision is up to the CPU. INT8 is not here:
the packages of ncnn hold no tool that calibrates.
"""

from __future__ import annotations

import importlib.util
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from edgekd.core.bundle import BundleKind
from edgekd.core.orphan import ending_with_this
from edgekd.errors import BuildFailed
from edgekd.export.convert import Conversion, Converted, Converter, unsupported
from edgekd.nn.build import module_from_bundle
from edgekd.nn.mode import evaluating
from edgekd.nn.quiet import quiet_exporter
from edgekd.nn.reparam import reparameterised
from edgekd.runtimes.engines.ncnn_network import arithmetic
from edgekd.runtimes.ncnn import INSTALL, PARAM_FILE, RUNTIME, WEIGHTS_FILE
from edgekd.runtimes.session import Availability, FloatArray
from edgekd.targets.schema import Precision

TRACE_FILE = "model.pt"
LIMIT_S = 600.0
"""Of pnnx: the largest vision models take a minute."""
LAST_CHARACTERS = 300
MAGIC = "7767517"
EXPRESSION = "pnnx.Expression"
"""Arithmetic on the values around an operator that was not recognised."""


class NcnnConverter(Converter):
    """`torch.jit.trace`, then pnnx."""

    name: ClassVar[str] = "ncnn"
    tool: ClassVar[str] = "pnnx"
    takes: ClassVar[BundleKind] = BundleKind.TORCH
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16")

    def availability(self) -> Availability:
        try:
            found = version("pnnx")
        except PackageNotFoundError:
            return Availability(ok=False, reason="pnnx is not installed", install=INSTALL)
        if program() is None:
            return Availability(ok=False, version=found, reason="pnnx has no program for this system", install=INSTALL)
        return Availability(ok=True, version=found)

    def convert(self, job: Conversion) -> Converted:
        _trace(reparameterised(module_from_bundle(job.source, job.blobs)), job.images[:1], job.scratch / TRACE_FILE)
        _run_pnnx(job.scratch, job.images.shape[1:], half=job.precision == "fp16")
        layers = list(layers_of_param(job.scratch / "model.ncnn.param"))
        _require_layers(layers)
        files = {
            PARAM_FILE: job.scratch / "model.ncnn.param",
            WEIGHTS_FILE: job.scratch / "model.ncnn.bin",
        }
        half = job.precision == "fp16"
        said = ("ncnn computed in float32 on this CPU: one that computes in float16 rounds more.",)
        decisions = said if half and arithmetic(half=half) == "float32" else ()
        return Converted(files=files, metrics={"layers": len(layers)}, decisions=decisions)


CONVERTER = NcnnConverter()


def program() -> Path | None:
    """The program in the installed package, None where there is none; the package is not imported."""
    spec = importlib.util.find_spec("pnnx")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        for name in ("pnnx", "pnnx.exe"):
            if (found := Path(folder) / name).is_file():
                return found
    return None


@dataclass(frozen=True)
class NcnnLayer:
    """A line of a `.param`."""

    type: str
    name: str


def layers_of_param(path: Path) -> Iterator[NcnnLayer]:
    """The layers that a `.param` lists.

    Raises:
        BuildFailed: The file is missing, or is no such list.
    """
    try:
        magic, _, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise BuildFailed(f"pnnx wrote no network: {path.name} cannot be read ({err}).") from err
    if magic.strip() != MAGIC:
        raise BuildFailed(f"pnnx wrote no network: {path.name} begins with {magic[:20]!r}, not with {MAGIC}.")
    for line in lines:
        if words := line.split():
            yield NcnnLayer(words[0], words[1] if len(words) > 1 else "")


def _require_layers(layers: Sequence[NcnnLayer]) -> None:
    """Raises the error for the first layer that ncnn lacks; an operator before the arithmetic around it."""
    lacking = sorted((layer for layer in layers if not RUNTIME.knows(layer.type)), key=lambda n: n.type == EXPRESSION)
    if lacking:
        more = f" ({len(lacking)} layers in all)" if len(lacking) > 1 else ""
        raise unsupported(
            "ncnn", operator=lacking[0].type, where=lacking[0].name, opset=f"TorchScript of torch {_torch()}",
            message=f"pnnx wrote it as it is, and ncnn has no such layer{more}",
        )  # fmt: skip


def _trace(module: nn.Module, image: FloatArray, path: Path) -> None:
    """Writes the module's TorchScript.

    `torch.jit.trace` follows a branch that depends on the image's values as if it were the only one; `torch.export`
    refuses, and is asked first.
    """
    example = (torch.from_numpy(image),)
    with evaluating(module), torch.no_grad(), quiet_exporter():
        try:
            torch.export.export(module, example, strict=False)
            traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(str(path))
        except (RuntimeError, ValueError, TypeError, AttributeError) as err:
            raise BuildFailed(
                f"{type(module).__name__} could not be traced for ncnn: {str(err).strip().splitlines()[0]}",
                hint="the forward pass may not depend on the values of its input",
            ) from err


def _run_pnnx(folder: Path, image: tuple[int, ...], *, half: bool) -> None:
    """Writes `model.ncnn.param` and `model.ncnn.bin` beside the trace.

    Raises:
        BuildFailed: pnnx failed, crashed or hung; the message holds the end of its log.
    """
    path = program()
    if path is None:
        raise BuildFailed("pnnx is not installed.", hint=INSTALL)
    sizes = ",".join(str(size) for size in (1, *image))
    command = [str(path), TRACE_FILE, f"inputshape=[{sizes}]f32", f"fp16={int(half)}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=LIMIT_S, check=False, preexec_fn=ending_with_this()
        )
    except subprocess.TimeoutExpired as err:
        raise BuildFailed(f"pnnx did not finish within {LIMIT_S:.0f} s.", hint="deploy in another runtime") from err
    except OSError as err:
        executable = bool(path.stat().st_mode & stat.S_IXUSR)
        raise BuildFailed(f"{path} does not start{'' if executable else ', it is not executable'}: {err}") from err
    if done.returncode:
        log = (done.stdout + done.stderr).decode(errors="replace").strip().rsplit("\n", 1)[-1]
        how = f"crashed (signal {-done.returncode})" if done.returncode < 0 else f"failed (code {done.returncode})"
        raise BuildFailed(f"pnnx {how}: {log[-LAST_CHARACTERS:]}", hint="deploy in another runtime")


def _torch() -> str:
    return torch.__version__.split("+")[0]
