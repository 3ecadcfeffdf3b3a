"""Runs the real agent on an emulated aarch64 board and compares what it computes with this machine.

    python benchmarks/aarch64_agent.py FOLDER > benchmarks/results/aarch64_agent.json
    python benchmarks/aarch64_agent.py FOLDER --graphs WORK/graphs > benchmarks/results/aarch64_graphs.json

FOLDER becomes the sysroot, about 250 MB of Debian's arm64 packages and wheels, unless it is one already; that takes the
package registries and a minute or two. The board is an OpenSSH server on the loopback interface whose `python3` runs
under qemu's user emulation. Networks have random weights: only differences between machines are of interest, never
accuracy. The times of an emulated processor mean nothing, so none is written.

With --graphs, the graphs are those of a folder instead: NAME-fp32.onnx and NAME-int8-ort.onnx of real models, as
`runtimes_table.py` left them. Every output of every one is compared; of a long one, its first 4,096 values.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import file_digest
from edgekd.core.events import SilentReporter
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.profiling.agent.bench import KEPT_OUTPUTS
from edgekd.profiling.agent.engines import input_values
from edgekd.profiling.answers_stage import FP32_TOLERANCE
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.profile import profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Candidate
from edgekd.profiling.remote.ssh import Ssh
from edgekd.runtimes.onnx_file import onnx_interface
from tests.profiling.remote.aarch64 import emulated_python, emulator_version, make_sysroot, missing_in
from tests.profiling.remote.loopback import start_board

NETWORKS = ("resnet18", "mobilenetv3_small_050")
SIZE = 64
SHAPE = [1, 3, SIZE, SIZE]


class _Noise(CalibrationDataReader):
    """Eight images of noise."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._left = [{"images": rng.standard_normal(SHAPE, dtype=np.float32)} for _ in range(8)]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def graphs(folder: Path) -> dict[str, Path]:
    """FP32 and INT8 graphs by name."""
    found = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        fp32 = folder / f"{name}-fp32.onnx"
        with contextlib.redirect_stdout(sys.stderr):
            module = timm.create_model(name, num_classes=10).eval()
            torch.onnx.export(
                module, (torch.zeros(SHAPE),), fp32, input_names=["images"], output_names=["logits"],
                dynamo=True, external_data=False, opset_version=18,
            )  # fmt: skip
            prepared, int8 = folder / "prepared.onnx", folder / f"{name}-int8.onnx"
            quant_pre_process(str(fp32), str(prepared))
            quantize_static(
                str(prepared), str(int8), _Noise(), quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            )  # fmt: skip
        found |= {f"{name}-fp32": fp32, f"{name}-int8": int8}
    return found


def candidate(name: str, path: Path) -> Candidate:
    """A graph as a bundle."""
    inputs, outputs = onnx_interface(path)
    bundle = ModelBundle(
        kind=BundleKind.ONNX,
        inputs=inputs,
        outputs=outputs,
        files={"model.onnx": file_digest(path)},
        recipe=ModelRecipe(builder="onnx", preprocessing=Preprocessing(size=tuple(inputs[0].shape[2:]))),
        tags={"precision": "int8" if "int8" in name else "fp32", "scheme": ""},
    )
    return Candidate(name=name, bundle=bundle, files={bundle.file("model.onnx"): path})


def compared(name: str, path: Path, outputs: dict[str, list[list[float]]]) -> dict[str, Any]:
    """How far a graph's outputs on the board are from those of this machine; the worst output counts."""
    spec = onnx_interface(path)[0][0]
    shape = [1, *(int(size) for size in spec.shape[1:])]
    images = np.frombuffer(input_values(shape, 0), dtype=np.float32).reshape(shape)
    session = onnxruntime.InferenceSession(str(path))
    # The agent sends the first values of a long output.
    here = [value.astype(np.float32).ravel()[:KEPT_OUTPUTS] for value in session.run(None, {spec.name: images})]
    there = [np.asarray(value, dtype=np.float32) for value in outputs[f"{name}@onnxruntime, 1 threads"]]
    if [value.shape for value in there] != [value.shape for value in here]:
        raise SystemExit(f"{name}: the board gave outputs of other sizes")
    worst = max(range(len(here)), key=lambda at: float(np.abs(there[at] - here[at]).max() / (here[at].std() or 1.0)))
    return {
        "model": name,
        "outputs": len(here),
        "values_compared": sum(value.size for value in here),
        "max_difference": float(np.abs(there[worst] - here[worst]).max()),
        "output_std": float(here[worst].std()),
        "within_fp32_tolerance": all(FP32_TOLERANCE.holds(own, far) for own, far in zip(here, there, strict=True)),
        "same_argmax": all(bool(far.argmax() == own.argmax()) for own, far in zip(here, there, strict=True)),
        "nodes": len(onnx.load(path).graph.node),
    }


def main() -> None:
    """Prints the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the sysroot, made when it is missing")
    parser.add_argument("--graphs", type=Path, help="a folder of .onnx files instead of networks with random weights")
    args = parser.parse_args()
    sysroot = args.folder.resolve()
    if missing_in(sysroot):
        make_sysroot(sysroot, onnxruntime.__version__)
    with tempfile.TemporaryDirectory() as name:
        given = sorted(args.graphs.glob("*.onnx")) if args.graphs else []
        paths = {path.stem.lower(): path for path in given} if args.graphs else graphs(Path(name))
        board = start_board(Path(name) / "board")
        try:
            board.set_python(emulated_python(sysroot, board.bin / "python3"))
            os.environ["PATH"] = board.client_path
            plan = BoardPlan(runtimes=("onnxruntime",), warmup_s=0.0, duration_s=0.1, stall_s=600)
            found = profile_on_board(
                Ssh(Address("board")), [candidate(n, p) for n, p in paths.items()], plan, reporter=SilentReporter()
            )
        finally:
            board.stop()
        rows = [compared(entry.candidate, paths[entry.candidate], found.outputs) for entry in found.report.entries]
    latency = found.report.entries[0].latency
    assert latency is not None
    machine = latency.environment["machine"]
    assert isinstance(machine, dict)
    print(
        json.dumps(
            {
                "emulator": emulator_version(sysroot),
                "board": {key: machine[key] for key in ("architecture", "python", "system")},
                "onnxruntime": {"board": found.report.device.rpartition("; ")[2], "here": onnxruntime.__version__},
                "here": platform.machine(),
                "ssh": subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip(),
                "input": "one image of noise (seed 0)" if args.graphs else f"{SHAPE}, noise, random weights (seed 0)",
                "models": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
