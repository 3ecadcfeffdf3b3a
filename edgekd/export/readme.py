"""The README.txt of a package: how to feed the model and run it on the target, for a reader without edgekd."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.errors import EdgekdError
from edgekd.export.engine import ENGINE_FILE, build_command
from edgekd.runtimes.onnxruntime import FOLD_WEIGHTS
from edgekd.targets.schema import Target

_ONNXRUNTIME = """\
With ONNX Runtime:

    import numpy as np, onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = {threads}
{batch}{settings}    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
    logits = session.run(["{output}"], {{"{input}": images}})[0]        # (N, {classes})
"""

_ONE_IMAGE = """\
    options.add_free_dimension_override_by_name("{axis}", 1)   # one image a call; leave it out for other batches
"""

_FOLD_WEIGHTS = """\
    options.add_session_config_entry("{}", "{}")   # expands the INT8 weights once, at loading
""".format(*FOLD_WEIGHTS)

_OPENVINO = """\
With OpenVINO:

    import openvino
    core = openvino.Core()
    graph = core.read_model("model.onnx")
    graph.reshape([{shape}])   # one image a call; leave it out for other batches
    model = core.compile_model(graph, "CPU",
                               {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
                                "INFERENCE_NUM_THREADS": {threads}}})
    logits = model(images)["{output}"]                            # (N, {classes})
"""

_TENSORRT = """\
With TensorRT, build the engine once, on the device, in this folder:

    {command}

TensorRT 11 and later read the precision from the graph: leave out --fp16 and --int8. An engine runs only with the
TensorRT version and the GPU it was built with.
"""

_ENGINE = """\
{engine} is a TensorRT engine. It runs only on: {bound_to}
Its precision, its input and its output are in bundle.json.
"""

_TORCH = """\
weights.safetensors holds a PyTorch state dict; bundle.json says which architecture it belongs to.

    from edgekd.export.package import read_package
    from edgekd.nn.build import module_from_bundle
    module = module_from_bundle(*read_package(FOLDER))
"""


_ENGINES = """\
deploy.json lists every engine in this package, best first, with what was measured; those besides the one at the top lie
in engines/.
"""

_PROOF = """\
NOTICE.txt tells what is known of licences, sbom.json what all this was made with. manifest.json lists the SHA-256 of
every file here (sha256sum prints the same).
"""

_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "torch": "PyTorch"}


def package_readme(bundle: ModelBundle, target: Target | None, facts: Mapping[str, str]) -> str:
    """The text, for one bundle on one target.

    Args:
        bundle: ONNX, ENGINE or TORCH.
        target: The device it is for; None for a TORCH bundle, which runs nowhere yet.
        facts: Of these it tells `runtime` (registry name of the chosen one, which comes first), `threads` (that the
            latency was judged at), `latency` (`0.361 ms`) and `measured_on` (the device; absent for a prediction).
    """
    title = f"{str(bundle.tags.get('precision', 'fp32')).upper()} image classifier"
    title += " in PyTorch" if target is None else f" for {target.name}"
    parts = [
        f"{title}\n{'=' * len(title)}\n",
        _feeding(bundle, bundle.model.preprocessing),
        *_running(bundle, target, facts),
        *([] if bundle.kind is BundleKind.TORCH else [_ENGINES]),
        _PROOF,
    ]
    return "\n".join(parts)


def _feeding(bundle: ModelBundle, p: Preprocessing) -> str:
    images, logits = bundle.inputs[0], bundle.outputs[0]
    shape = " x ".join(str(size) for size in images.shape)
    order = "grey" if p.channels == 1 else p.channel_order
    return (
        f"Input `{images.name}`: {images.dtype}, {shape} (batch, channels, height, width), made from 8-bit images:\n"
        f"  1. resize, keeping the aspect ratio, until the image just covers {p.canvas[0]} x {p.canvas[1]} pixels "
        f"(height x width, {p.interpolation}); crop the centre to {p.size[0]} x {p.size[1]}\n"
        f"  2. order the channels {order}, divide by 255\n"
        f"  3. subtract {_numbers(p.mean)} and divide by {_numbers(p.std)}, per channel\n"
        f"The same as data: preprocessing.json.\n\n"
        f"Output `{logits.name}`: {logits.dtype}, {' x '.join(str(size) for size in logits.shape)}, unnormalised; "
        f"{_classes(bundle)}\n"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _classes(bundle: ModelBundle) -> str:
    if not bundle.model.labels:
        return "the largest one is the class."
    return "the largest one is the class; labels.txt has one name per line, in the order of the logits."


def _running(bundle: ModelBundle, target: Target | None, facts: Mapping[str, str]) -> list[str]:
    if bundle.kind is BundleKind.TORCH:
        return [_TORCH]
    if target is None:
        raise EdgekdError("A deployable package needs the target that it is for.")
    chosen = facts.get("runtime")
    said = [] if chosen is None else [_chosen(chosen, facts)]
    if bundle.kind is BundleKind.ENGINE:
        return [*said, _ENGINE.format(engine=ENGINE_FILE, bound_to=bundle.bound_to)]
    axis, *image = bundle.inputs[0].shape
    values = {
        "input": bundle.inputs[0].name,
        "output": bundle.outputs[0].name,
        "classes": bundle.outputs[0].shape[-1],
        "threads": facts.get("threads", target.threads[0]),
        "shape": ", ".join(str(size) for size in (1, *image)),
        "batch": _ONE_IMAGE.format(axis=axis) if isinstance(axis, str) else "",
        "settings": _FOLD_WEIGHTS if bundle.tags.get("scheme") == "weight-only" else "",
    }
    known = {"onnxruntime": _ONNXRUNTIME, "openvino": _OPENVINO, "tensorrt": _TENSORRT}
    if target.support("tensorrt") is not None:
        values["command"] = build_command(target, bundle)
    runtimes = sorted((entry.runtime for entry in target.runtimes), key=lambda runtime: runtime != chosen)
    return [*said, *(known[runtime].format(**values) for runtime in runtimes if runtime in known)]


def _chosen(runtime: str, facts: Mapping[str, str]) -> str:
    """Where the model was chosen to run, and the latency that was chosen by."""
    name = _NAMES.get(runtime, runtime)
    latency, threads = facts.get("latency"), facts.get("threads")
    if latency is None:
        return f"Chosen to run in {name}; its latency there is not known.\n"
    count = "" if threads is None else f" and {threads} CPU thread{'' if threads == '1' else 's'}"
    if "measured_on" not in facts:
        return f"Chosen to run in {name}. Nothing was measured: the target's card predicts {latency} at batch 1.\n"
    return (
        f"Chosen to run in {name}: a median latency of {latency} at batch 1{count}, measured on\n"
        f"{facts['measured_on']}.\n"
    )
