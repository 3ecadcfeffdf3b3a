"""What a target's card or calibration says about a candidate that cannot be measured here."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.cost import OpCost
from edgekd.core.digest import Digest
from edgekd.core.report import PredictedLatency
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from edgekd.nn.build import PROGRAM_FILE, module_from_recipe
from edgekd.nn.count import layer_costs
from edgekd.nn.onnx_count import onnx_costs_from_file
from edgekd.nn.reparam import reparameterised
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.schema import Precision, Target


def predicted_latency(
    bundle: ModelBundle, target: Target, blobs: Blobs, precision: str, runtime: str, threads: int
) -> PredictedLatency | EdgekdError:
    """The latency that the target's model implies for a bundle, or why there is none.

    A module's operations are counted where the bundle has one, else those of its ONNX graph.

    Args:
        blobs: Finds the program of a model that came as one: in the bundle, or by the tag `program` of an engine.
    """
    try:
        model = latency_model_from_target(target)
        value = model.predict_ms(_costs(bundle, blobs), cast(Precision, precision))
    except (UserError, BuildFailed) as err:
        return DeviceUnavailable(f"not measured, since this machine is not {target.name}; not predicted: {err.message}")
    return _prediction(value, model, precision, runtime, threads)


def _costs(bundle: ModelBundle, blobs: Blobs) -> tuple[OpCost, ...]:
    recipe = bundle.model
    if recipe.builder == "onnx":
        found = bundle.files.get(MODEL_FILE)
        if found is None:
            raise UserError("the bundle holds no ONNX graph whose operations could be counted.")
        images = (1, *recipe.preprocessing.input_shape)
        named = {spec.name: images for spec in bundle.inputs[:1] if len(spec.shape) == len(images)}
        return onnx_costs_from_file(blobs.path(found), named)
    module = reparameterised(module_from_recipe(recipe, program=_program(bundle, blobs)))
    return layer_costs(module, recipe.preprocessing.input_shape)


def _program(bundle: ModelBundle, blobs: Blobs) -> Path | None:
    """The `torch.export` program that the model came as; None where another builder makes it, or the file is not known.

    Raises:
        UserError: It is not in the store: the bundle was made elsewhere.
    """
    found = bundle.files.get(PROGRAM_FILE) or bundle.tags.get("program")
    if bundle.model.builder != "program" or found is None:
        return None
    return blobs.path(Digest(str(found)))


def _prediction(value: float, model: LatencyModel, precision: str, runtime: str, threads: int) -> PredictedLatency:
    """The model's answer; half of all networks lie within its median error, which is all that is known of it."""
    error = model.relative_error
    return PredictedLatency(
        runtime=runtime,
        precision=precision,
        threads=threads,
        device=model.target,
        model=f"the {model.origin} roofline of {model.target}, from operation counts",
        median_ms=value,
        low_ms=None if error is None else max(value * (1 - error), 0.0),
        high_ms=None if error is None else value * (1 + error),
        level=None if error is None else 0.5,
        relative_error=error,
    )
