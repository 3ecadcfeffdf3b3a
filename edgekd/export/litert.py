"""The converter to LiteRT: litert-torch in an environment of its own, run as a subprocess.

litert-torch pins a PyTorch and brings several gigabytes; sharing this environment with it would let it choose the
versions of everything else. `edgekd doctor --install litert-converter` makes its environment; the program that runs in
it is `litert_program.py`. FP32 is converted as it is. INT8 is that file quantized by Google's ai-edge-quantizer: 8-bit
weights per channel and 8-bit activations, with ranges that hold all values of the images.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import edgekd
from edgekd.core.bundle import BundleKind
from edgekd.core.digest import Json
from edgekd.core.orphan import ending_with_this
from edgekd.errors import BuildFailed
from edgekd.export.convert import Conversion, Converted, Converter, unsupported
from edgekd.runtimes.addons import ADDONS, LITERT_CONVERTER, LITERT_TORCH_VERSION, venv_python
from edgekd.runtimes.formats import MODEL_FILES
from edgekd.runtimes.session import Availability
from edgekd.targets.schema import Precision

PROGRAM = Path(__file__).with_name("litert_program.py")
LIMIT_S = 1800.0
CALIBRATION_IMAGES = 128
"""Beyond so many the ranges of a classifier hardly move, and each costs a run in the quantizer's interpreter."""
SCHEME = "litert-s8"
_LAST_WORDS = 400


class LiteRtConverter(Converter):
    """TORCH to .tflite; see the module."""

    name: ClassVar[str] = "litert"
    tool: ClassVar[str] = "litert-torch"
    takes: ClassVar[BundleKind] = BundleKind.TORCH
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def availability(self) -> Availability:
        part = ADDONS[LITERT_CONVERTER]
        if not part.installed:
            return Availability(ok=False, reason=f"litert-torch is not in {part.folder}", install=part.hint)
        return Availability(ok=True, version=LITERT_TORCH_VERSION)

    def convert(self, job: Conversion) -> Converted:
        (name,) = MODEL_FILES["litert"]
        scratch = job.scratch.absolute()  # the program runs there
        images, request = scratch / "images.npy", scratch / "request.json"
        np.save(images, job.images[:CALIBRATION_IMAGES])
        asked: dict[str, Any] = {
            "package": str(Path(edgekd.__file__).parent),
            "bundle": job.source.to_json(),
            "files": {digest: str(job.blobs.path(digest).absolute()) for digest in job.source.files.values()},
            "precision": job.precision,
            "images": str(images),
            "scratch": str(scratch),
            "out": str(scratch / name),
            "answer": str(scratch / "answer.json"),
        }
        request.write_text(json.dumps(asked))
        python = venv_python(ADDONS[LITERT_CONVERTER].folder)
        run_program([str(python), "-I", str(PROGRAM), str(request)], scratch)
        answer = json.loads(Path(asked["answer"]).read_text())
        if "error" in answer:
            raise _refusal(answer)
        metrics: dict[str, Json] = {"calibration_images": len(job.images[:CALIBRATION_IMAGES])}
        return Converted(
            files={name: job.scratch / name},
            scheme=SCHEME if job.precision == "int8" else "",
            metrics=metrics if job.precision == "int8" else {},
            decisions=(f"litert-torch {answer['version']} converted it, with its own PyTorch {answer['torch']}.",),
        )


CONVERTER = LiteRtConverter()


def run_program(command: Sequence[str], folder: Path, *, limit_s: float = LIMIT_S) -> None:
    """Runs the converter's program to its end, with what it prints kept for the message when it fails.

    Args:
        command: The program and its arguments.
        folder: Where it runs, and where its temporary files go.
        limit_s: Time after which it is killed.

    Raises:
        BuildFailed: It does not start, crashed, failed or hung; nothing of it goes on running.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
            preexec_fn=ending_with_this(),
        )
    except OSError as err:
        hint = f"make its environment again: {ADDONS[LITERT_CONVERTER].hint}"
        raise BuildFailed(f"The converter to LiteRT does not start: {err}", hint=hint) from err
    except subprocess.TimeoutExpired as err:
        raise BuildFailed(f"The converter to LiteRT did not end within {limit_s:.0f} s and was killed.") from err
    if done.returncode != 0:
        how = f"crashed (signal {-done.returncode})" if done.returncode < 0 else f"ended with code {done.returncode}"
        words = " ".join(done.stdout.decode(errors="replace").split())[-_LAST_WORDS:]
        raise BuildFailed(f"The converter to LiteRT {how}. Its last words: {words}")


def _refusal(answer: dict[str, Any]) -> BuildFailed:
    """The error for a conversion that the tool refused."""
    message = " ".join(str(answer["error"]).split())[:_LAST_WORDS]
    if answer.get("operator"):
        opset = f"torch {answer['torch']} (ATen)"
        where = str(answer.get("place", ""))
        return unsupported("litert", operator=answer["operator"], where=where, opset=opset, message=message)
    return BuildFailed(f"litert-torch cannot convert the model: {message}")
