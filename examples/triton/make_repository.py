"""Makes a model repository for NVIDIA Triton from a bundle: `config.pbtxt`, the model and its labels.

    python examples/triton/make_repository.py model.edgekd -o model_repository [--max-batch 8] [--instances 1]
    docker run --rm -p 8000:8000 -v $PWD/model_repository:/models nvcr.io/nvidia/tritonserver:VERSION-py3 \
        tritonserver --model-repository=/models

Needs edgekd-runtime, which verifies the bundle, and nothing else. The server takes preprocessed images: `client.py`
makes them. A TensorRT engine fits one TensorRT: take the container whose release notes name that of its fingerprint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edgekd_runtime import RuntimeFailure
from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry, Tensor

BACKENDS = {"onnx": ("onnxruntime", "model.onnx", "model.onnx"), "tensorrt": ("tensorrt", "model.engine", "model.plan")}
"""By format: Triton's backend, the file's name in the bundle, and the name that the backend looks for."""
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}
QUEUE_DELAY_US = 200
"""How long a request may wait for others: well below what a small network takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0, and the repository is written; 2 and a line on stderr otherwise."""
    parser = argparse.ArgumentParser(description="Makes a model repository for NVIDIA Triton from a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("model_repository"))
    parser.add_argument("--name", default="classifier", help="of the model in Triton (default: classifier)")
    parser.add_argument("--engine", help="of the bundle (default: the best one that Triton runs)")
    parser.add_argument("--max-batch", type=int, default=8, help="requests that are computed together (default: 8)")
    parser.add_argument("--instances", type=int, default=1, help="copies of the model that run at once (default: 1)")
    options = parser.parse_args(arguments)
    try:
        with Bundle(options.bundle) as bundle:
            entry = chosen(bundle, options.engine)
            folder = write_model(bundle, entry, options.output, options.name, options.max_batch, options.instances)
    except RuntimeFailure as err:
        sys.stderr.write(f"error: {err}\n")
        return 2
    sys.stdout.write(f"{folder}: {entry.name} ({entry.format}, {entry.precision})\n")
    if entry.scheme == "weight-only":
        sys.stdout.write("note: Triton expands its INT8 weights on every call; an engine of another form is faster\n")
    return 0


def chosen(bundle: Bundle, name: str | None) -> EngineEntry:
    """The engine of that name, or the best one that is meant for a runtime which Triton has.

    An INT8 graph may be meant for OpenVINO alone, and be slower than FP32 in ONNX Runtime.
    """
    able = [
        entry
        for entry in bundle.deploy.engines
        if entry.format in BACKENDS
        and (entry.name == name if name is not None else BACKENDS[entry.format][0] in entry.runtimes)
    ]
    if not able:
        found = ", ".join(f"{e.name} ({e.format} for {', '.join(e.runtimes)})" for e in bundle.deploy.engines)
        wanted = "an engine for onnxruntime or tensorrt" if name is None else f"an engine {name} for them"
        raise RuntimeFailure(
            f"{bundle.path}: Triton runs ONNX graphs and TensorRT engines, expected {wanted}: {found}."
        )
    return able[0]


def write_model(
    bundle: Bundle, entry: EngineEntry, repository: Path, name: str, max_batch: int, instances: int
) -> Path:
    """The folder of the model in the repository: `config.pbtxt`, `labels.txt`, `1/model.onnx` or `1/model.plan`."""
    _, source, target = BACKENDS[entry.format]
    content = bundle.read(entry.files[source])
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / target).write_bytes(content)
    if bundle.deploy.labels is not None:
        text = "".join(f"{label}\n" for label in bundle.deploy.labels)
        (folder / "labels.txt").write_text(text, encoding="utf-8")
    batch = min(max_batch, largest_batch(bundle, entry, max_batch))
    (folder / "config.pbtxt").write_text(config(bundle, entry, name, batch, instances), encoding="utf-8")
    return folder


def largest_batch(bundle: Bundle, entry: EngineEntry, wanted: int) -> int:
    """What the engine takes: 0 for one fixed batch, which Triton must not change."""
    if isinstance(bundle.deploy.input.shape[0], int):
        return 0
    if entry.fingerprint is None:
        return wanted
    inputs = bundle.json(entry.fingerprint).get("settings", {}).get("inputs", [])
    return min((int(one["max"][0]) for one in inputs), default=1)


def config(bundle: Bundle, entry: EngineEntry, name: str, max_batch: int, instances: int) -> str:
    """The text of `config.pbtxt`.

    Args:
        bundle: Of the model.
        entry: The engine.
        name: Of the model in Triton; the folder's.
        max_batch: 0 leaves the batch in the dimensions.
        instances: Copies on each device.
    """
    deploy = bundle.deploy
    labelled = "" if deploy.labels is None else '\n    label_filename: "labels.txt"'
    kind = "KIND_GPU" if entry.format == "tensorrt" else "KIND_CPU"
    parts = [
        f'name: "{name}"\nbackend: "{BACKENDS[entry.format][0]}"\nmax_batch_size: {max_batch}',
        f"input [\n  {{{_tensor(deploy.input, max_batch)}\n  }}\n]",
        f"output [\n  {{{_tensor(deploy.outputs[0], max_batch)}{labelled}\n  }}\n]",
        f"instance_group [\n  {{\n    count: {instances}\n    kind: {kind}\n  }}\n]",
    ]
    if max_batch > 1:
        parts.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}")
    if entry.format == "onnx" and entry.threads is not None:
        value = f'value {{ string_value: "{entry.threads}" }}'
        parts.append(f'parameters {{\n  key: "intra_op_thread_count"\n  {value}\n}}')
    return "\n".join(parts) + "\n"


def _tensor(tensor: Tensor, max_batch: int) -> str:
    if tensor.dtype not in TYPES:
        raise RuntimeFailure(f"The tensor {tensor.name} has the type {tensor.dtype}, which this script does not know.")
    shape = tensor.shape[1:] if max_batch > 0 else tensor.shape
    sizes = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape)
    return f'\n    name: "{tensor.name}"\n    data_type: {TYPES[tensor.dtype]}\n    dims: [ {sizes} ]'


if __name__ == "__main__":
    sys.exit(main())
