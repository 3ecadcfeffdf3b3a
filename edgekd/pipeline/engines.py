"""The engines of one model: its FP32 graph, FP16 and INT8 twins, each in the form the target's runtimes run fast."""

from __future__ import annotations

from pydantic import JsonValue

from edgekd.core.report import Budget
from edgekd.data.dataset import Dataset
from edgekd.export.tensorrt import types_strongly
from edgekd.pipeline.converted import Candidate, draft_converted
from edgekd.pipeline.draft import Draft
from edgekd.pipeline.few_bits import draft_codebook
from edgekd.pipeline.qat import draft_qat
from edgekd.pipeline.request import SYNTHETIC, Options, Request
from edgekd.pipeline.situation import Situation, saturates
from edgekd.pipeline.teaching import TEACHER_ENGINE
from edgekd.runtimes.engines.settings import INT8
from edgekd.targets.schema import QuantScheme, Target

SAMPLES = "calibration"
SHORT = {"ort-u8s8": "ort", "openvino": "openvino", "tensorrt-s8": "trt", "weight-only": "weights"}


def draft_samples(draft: Draft, request: Request, options: Options, situation: Situation) -> str | None:
    """The node with calibration and parity samples, or None when there is no data of any kind."""
    if request.data == SYNTHETIC:
        draft.say(
            "Calibration images are generated from the teacher's BatchNorm statistics (--data synthetic): every figure "
            "obtained on them is labelled synthetic. Nothing is searched, distilled or pruned, and accuracy is not "
            "judged: that takes real images, --data FOLDER_OR_NPZ."
        )
        config: dict[str, JsonValue] = {} if options.calib_samples is None else {"samples": options.calib_samples}
        return draft.add(SAMPLES, "synthetic-samples", config, {"model": "@teacher"})
    if situation.dataset is None:
        draft.say(
            "No data was given, so only what needs none is done: export, FP16 where the target runs it, weight-only "
            "INT8 on CPU and web targets. Images would add calibrated INT8, distillation, pruning and an accuracy "
            "verdict: pass --data FOLDER_OR_NPZ, or --data synthetic for calibration images made from the model itself."
        )
        return None
    config = sampling(situation.dataset, options.calib_samples, options.calib_select)
    return draft.add(SAMPLES, "calibration", config, {"model": "@teacher"})


def sampling(dataset: Dataset, samples: int | None, select: str | None = None) -> dict[str, JsonValue]:
    """Config of the calibration node: a calibration card says how its author wants it sampled; flags come first."""
    card = dataset.calibration
    config: dict[str, JsonValue] = {"method": "stratified" if dataset.labelled else "random"}
    if card is not None:
        config |= {"samples": card.samples} | ({"method": card.method} if dataset.labelled else {})
    given: dict[str, JsonValue] = {"samples": samples, "method": select}
    return config | {name: value for name, value in given.items() if value is not None}


def draft_engines(
    draft: Draft,
    options: Options,
    budget: Budget,
    situation: Situation,
    label: str,
    model: str,
    samples: str | None,
) -> list[Candidate]:
    """Nodes that turn a TORCH bundle into engines; the FP32 graph always comes first."""
    runtimes = tuple(support.runtime for support in situation.graph_runtimes)
    exported = draft.add(
        f"{label}-fp32",
        "export",
        {"opset": options.opset or best_opset(situation.target), "atol": options.atol, "rtol": options.rtol},
        {"model": model, "samples": samples},
    )
    found = [Candidate(node=exported, runtimes=runtimes)]
    if "fp16" in options.precisions and situation.reads("fp16"):
        half = draft.add(f"{label}-fp16", "fp16", {}, {"model": exported, "samples": samples})
        found.append(Candidate(node=half, runtimes=_runtimes_with(situation, "fp16")))
    if "int8" in options.precisions and situation.reads("int8"):
        found += _draft_int8(draft, options, budget, situation, label, exported, samples)
    return [
        *_built(draft, situation, found),
        *draft_codebook(draft, situation, label, model, exported),
        *draft_converted(draft, options, situation, label, model, exported, samples),
    ]


def _built(draft: Draft, situation: Situation, found: list[Candidate]) -> list[Candidate]:
    """On a GPU with TensorRT at hand, the engines that TensorRT builds stand in the place of their graphs."""
    if not situation.measured or situation.target.kind != "gpu":
        return found
    return [
        Candidate(node=draft.add(f"{c.node}-engine", "build", {}, {"model": c.node}), runtimes=("tensorrt",))
        for c in found
    ]


def _draft_int8(
    draft: Draft,
    options: Options,
    budget: Budget,
    situation: Situation,
    label: str,
    exported: str,
    samples: str | None,
) -> list[Candidate]:
    runtimes = _runtimes_with(situation, "int8")
    if samples is None:
        if situation.target.kind == "gpu":
            return []
        name = draft.add(f"{label}-int8-weights", "quantize", {"scheme": "weight-only"}, {"model": exported})
        return [Candidate(node=name, runtimes=runtimes)]
    schemes: dict[QuantScheme, None] = {}
    for support in situation.graph_runtimes:
        if support.scheme is not None:
            schemes.setdefault(support.scheme)
    made = [
        node
        for scheme in schemes
        for plain in _draft_scheme(draft, options, budget, situation, label, scheme, exported, samples)
        for node in (plain, *_draft_half(draft, situation.target, scheme, plain, samples))
    ]
    return [Candidate(node=node, runtimes=runtimes) for node in made]


def _draft_half(draft: Draft, target: Target, scheme: str, quantized: str, samples: str) -> list[str]:
    """The twin of an INT8 graph with float16 between its 8-bit layers, where TensorRT types strongly: from 10 on."""
    if scheme != INT8 or not types_strongly(target):
        return []
    return [draft.add(f"{quantized}-fp16", "int8-fp16", {}, {"model": quantized, "samples": samples})]


def _draft_scheme(
    draft: Draft,
    options: Options,
    budget: Budget,
    situation: Situation,
    label: str,
    scheme: QuantScheme,
    exported: str,
    samples: str,
) -> list[str]:
    """The INT8 engine of one form, and those of mixed precision: profiling and selection treat them like any other."""
    name = f"{label}-int8-{SHORT[scheme]}"
    inputs = {"model": exported, "calibration": samples}
    config: dict[str, JsonValue] = {
        "scheme": scheme,
        "calib_method": options.calib_method,
        "reduce_range": saturates(situation.target),
        "rounding": options.rounding,
        "equalize": options.equalize,
    }
    if not options.mixed:
        # Without a ladder of its own, one engine climbs down by itself until the limit holds.
        if budget.max_drop is not None:
            config |= {"max_drop": budget.max_drop, "drop_type": budget.drop_type}
            if situation.dataset is not None:
                # As the engine will be chosen: on the same split, against the teacher.
                config["judged_on"] = "select"
                inputs |= {} if exported == TEACHER_ENGINE else {"teacher": TEACHER_ENGINE}
        calibrated = draft.add(name, "quantize", config, inputs)
        return [calibrated, *draft_qat(draft, options, situation, label, calibrated)]
    table = draft.add(f"{name}-sensitivity", "sensitivity", config, inputs)
    calibrated = draft.add(name, "quantize", config, inputs)
    ladder = [
        draft.add(f"{name}-mixed{2**rung}", "quantize", config | {"revert": 2**rung}, inputs | {"sensitivity": table})
        for rung in range(options.mixed)
    ]
    return [calibrated, *ladder, *draft_qat(draft, options, situation, label, calibrated)]


def _runtimes_with(situation: Situation, precision: str) -> tuple[str, ...]:
    return tuple(support.runtime for support in situation.graph_runtimes if precision in support.precisions)


def best_opset(target: Target) -> int:
    """The newest opset that all runtimes of the target read; TensorRT 8.6 (JetPack 5 and 6.0) stops at 17."""
    return 17 if target.support("tensorrt") is not None else 20
