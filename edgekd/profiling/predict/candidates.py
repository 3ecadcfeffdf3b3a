"""What a target's card says about a candidate that cannot be measured here."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.report import LatencyReport
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from edgekd.nn.build import PROGRAM_FILE, module_from_recipe
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.schema import Precision, Target


def predicted_latency(
    bundle: ModelBundle, target: Target, blobs: Blobs, precision: str, runtime: str, threads: int
) -> LatencyReport | EdgekdError:
    """The latency that the target's card implies for a bundle, or why there is none.

    The prediction is one number: every percentile of the report holds it, and the interval is the model's own error
    where that is known. A bare ONNX graph has no module whose operations could be counted.

    Args:
        blobs: Finds the program of a model that came as one: in the bundle, or by the tag `program` of an engine.
    """
    recipe = bundle.model
    model = latency_model_from_target(target)
    away = f"not measured, since this machine is not {target.name}"
    if recipe.builder == "onnx":
        return DeviceUnavailable(f"{away}; not predicted, since the layers of an ONNX graph are not counted")
    try:
        module = reparameterised(module_from_recipe(recipe, program=_program(bundle, blobs)))
        costs = layer_costs(module, recipe.preprocessing.input_shape)
        value = model.predict_ms(costs, cast(Precision, precision))
    except (UserError, BuildFailed) as err:
        return DeviceUnavailable(f"{away}; not predicted: {err.message}")
    return _report(value, model, precision, runtime, threads)


def _program(bundle: ModelBundle, blobs: Blobs) -> Path | None:
    """The `torch.export` program that the model came as; None where another builder makes it, or the file is not known.

    Raises:
        UserError: It is not in the store: the bundle was made elsewhere.
    """
    found = bundle.files.get(PROGRAM_FILE) or bundle.tags.get("program")
    if bundle.model.builder != "program" or found is None:
        return None
    return blobs.path(Digest(str(found)))


def _report(value: float, model: LatencyModel, precision: str, runtime: str, threads: int) -> LatencyReport:
    error = model.relative_error
    spread = 0.0 if error is None else error * value
    sure = "of unknown error" if error is None else f"with a median error of {error:.0%}"
    return LatencyReport(
        origin="predicted",
        runtime=runtime,
        provider=model.target,
        precision=precision,
        threads=threads,
        region=f"predicted from operation counts by the {model.origin} roofline of {model.target}, {sure}",
        n=0,
        warmup_n=0,
        mean_ms=value,
        p50_ms=value,
        p90_ms=value,
        p95_ms=value,
        p99_ms=value,
        min_ms=value,
        max_ms=value,
        std_ms=0.0,
        median_low_ms=max(value - spread, 0.0),
        median_high_ms=value + spread,
        throughput_per_s=1000 / value,
    )
