"""The README.txt of a package: how to feed the model and run it on the target, for a reader without edgekd."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.errors import EdgekdError
from edgekd.export.tensorrt import ENGINE_FILE, commands_for, is_read
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
    options.add_session_config_entry("{}", "{}")   # expands the packed weights once, at loading
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
With TensorRT, build the engine once, on the device. With edgekd, which also checks what the engine computes:

    edgekd build FOLDER --device ssh://USER@HOST      (on the device itself: without --device)

Without edgekd, in this folder:

{commands}

An engine runs only with the TensorRT version and the GPU it was built with.
"""

_ENGINE = """\
{engine} is a TensorRT engine. It runs only on: {bound_to}
Its precision, its input and its output are in bundle.json; model.engine.json is its fingerprint. An engine is native
code: load it only while sha256sum prints the engine_sha256 that stands there.
"""

_EXECUTORCH = """\
model.pte is an ExecuTorch program: {precision}, computed by XNNPACK, one image a run. On the device, in Python
(pip install executorch, for x86-64 and 64-bit Arm):

    import torch
    from executorch.runtime import Runtime
    from executorch.extension.pybindings import portable_lib
    portable_lib._unsafe_reset_threadpool({threads})   # before anything is loaded: XNNPACK keeps the pool it finds
    forward = Runtime.get().load_program("model.pte").load_method("forward")
    logits = forward.execute([torch.from_numpy(images[:1])])[0]      # (1, {classes})

In an Android, iOS or C++ application: Module("model.pte").forward(...), with the XNNPACK backend linked in. It was made
by {converter}; a runtime of that version or a later one reads it.
"""

_NCNN = """\
model.param and model.bin are an ncnn network: {precision}, one image a run, no batch axis. On the device, in Python
(pip install ncnn, for x86-64 and 64-bit Arm); in C++ the calls have the same names:

    import numpy as np, ncnn
    network = ncnn.Net()
    network.opt.num_threads = {threads}
    half = {half}   # ncnn computes any network in half precision where the CPU can, unless told not to
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = half
    network.load_param("model.param")
    network.load_model("model.bin")
    extractor = network.create_extractor()
    pixels = np.ascontiguousarray(images[0])                           # (channels, height, width), keep it alive
    extractor.input(network.input_names()[0], ncnn.Mat(pixels))
    logits = np.array(extractor.extract(network.output_names()[0])[1])     # ({classes},)

It was made by {converter}.
"""

_LITERT = """\
model.tflite is a LiteRT model: {precision}, one image a run. On the device, in Python (pip install ai-edge-litert, for
x86-64 and 64-bit Arm); Android, iOS and C++ have the same calls:

    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    interpreter = Interpreter("model.tflite", num_threads={threads})
    interpreter.allocate_tensors()
    given, found = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    image = images[:1]
    if given["dtype"] is np.int8:                                          # an INT8 model takes and gives 8 bits
        scale, zero = given["quantization"]
        image = np.clip(np.rint(image / scale) + zero, -128, 127).astype(np.int8)
    interpreter.set_tensor(given["index"], image)
    interpreter.invoke()
    logits = interpreter.get_tensor(found["index"])                        # (1, {classes})
    if found["dtype"] is np.int8:
        scale, zero = found["quantization"]
        logits = (logits.astype(np.float32) - zero) * scale

It was made by {converter}.
"""

_WEB = """With ONNX Runtime Web (npm install onnxruntime-web), in a page or in Node.js:

    import * as ort from "onnxruntime-web";
    ort.env.wasm.numThreads = {threads};   // more take effect only in a page with COOP and COEP headers
    const session = await ort.InferenceSession.create("model.onnx", {{executionProviders: ["wasm"]{web}}});
    const images = new ort.Tensor("float32", pixels, [{shape}]);           // pixels: a Float32Array
    const logits = (await session.run({{"{input}": images}}))["{output}"].data;
"""

_TORCH = """\
weights.safetensors holds a PyTorch state dict; bundle.json says which architecture it belongs to.

    from edgekd.export.package import read_package
    from edgekd.nn.build import module_from_bundle
    module = module_from_bundle(*read_package(FOLDER))
"""


_LISTED = """\
deploy.json lists every engine in this package, best first, with what was measured; those besides the one at the top lie
in engines/.
"""

_PROOF = """\
NOTICE.txt tells what is known of licences, sbom.json what all this was made with. manifest.json lists the SHA-256 of
every file here (sha256sum prints the same).
"""

_NAMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "torch": "PyTorch",
    "executorch": "ExecuTorch",
    "ncnn": "ncnn",
    "litert": "LiteRT",
    "ort-web-browser": "ONNX Runtime Web in a browser",
    "ort-web-node": "ONNX Runtime Web in Node.js",
}
_ENGINES = {"tensorrt": _ENGINE, "executorch": _EXECUTORCH, "ncnn": _NCNN, "litert": _LITERT}
"""How to run an engine, by format."""


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
        *([] if bundle.kind is BundleKind.TORCH else [_LISTED]),
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
        return [*said, _engine(bundle, str(facts.get("threads", target.threads[0])))]
    axis, *image = bundle.inputs[0].shape
    values = {
        "input": bundle.inputs[0].name,
        "output": bundle.outputs[0].name,
        "classes": bundle.outputs[0].shape[-1],
        "threads": facts.get("threads", target.threads[0]),
        "shape": ", ".join(str(size) for size in (1, *image)),
        "batch": _ONE_IMAGE.format(axis=axis) if isinstance(axis, str) else "",
        "settings": _FOLD_WEIGHTS if bundle.tags.get("scheme") == "weight-only" else "",
        "web": _web_options(axis, folds=bundle.tags.get("scheme") == "weight-only"),
    }
    known = {
        "onnxruntime": _ONNXRUNTIME,
        "openvino": _OPENVINO,
        "tensorrt": _TENSORRT,
        "ort-web-browser": _WEB,
        "ort-web-node": _WEB,
    }
    if not is_read(bundle):
        del known["tensorrt"]
    elif target.support("tensorrt") is not None:
        lines = commands_for(target, bundle).items()
        values["commands"] = "\n\n".join(f"    # TensorRT {family}\n    {command}" for family, command in lines)
    runtimes = sorted((entry.runtime for entry in target.runtimes), key=lambda runtime: runtime != chosen)
    texts = (known[runtime].format(**values) for runtime in runtimes if runtime in known)
    return [*said, *dict.fromkeys(texts)]


def _web_options(axis: int | str, *, folds: bool) -> str:
    """What else a session in JavaScript is opened with: one image a call, weights expanded at loading."""
    key, value = FOLD_WEIGHTS
    batch = f", freeDimensionOverrides: {{{axis}: 1}}" if isinstance(axis, str) else ""
    return batch + (f', extra: {{session: {{"{key.removeprefix("session.")}": "{value}"}}}}' if folds else "")


def _engine(bundle: ModelBundle, threads: str) -> str:
    """How to run an engine; of a format that has no text here, what its files are."""
    precision = str(bundle.tags.get("precision", "fp32"))
    text = _ENGINES.get(bundle.format, "{files}: an engine for {format}, made by {converter}.\n")
    return text.format(
        engine=ENGINE_FILE,
        bound_to=bundle.bound_to,
        format=_NAMES.get(bundle.format, bundle.format),
        files=", ".join(sorted(bundle.files)),
        precision=precision.upper(),
        half=precision == "fp16",
        threads=threads,
        classes=bundle.outputs[0].shape[-1] if bundle.outputs else "K",
        converter=bundle.tags.get("converter", "an unknown tool"),
    )


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
