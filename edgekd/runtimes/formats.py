"""The files of a model by format: which file of a bundle a runtime opens, and how large the model is.

A format is what the files are (`ModelBundle.format`); one runtime reads each engine's, several read ONNX. What else a
bundle holds, such as the reasons of a choice, is no part of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.errors import UserError

BYTES_PER_MIB = 1 << 20
MODEL_FILES: Mapping[str, tuple[str, ...]] = {
    "torch": ("weights.safetensors",),
    "onnx": ("model.onnx",),
    "tensorrt": ("model.engine",),
    "executorch": ("model.pte",),
    "ncnn": ("model.param", "model.bin"),
    "litert": ("model.tflite",),
}
"""By format, the file that a runtime is given first."""


def model_files(bundle: ModelBundle) -> tuple[str, ...]:
    """The files that are the model, first the one that a runtime opens.

    Raises:
        UserError: The bundle holds no model, or one of a format that this edgekd does not know.
    """
    try:
        return MODEL_FILES[bundle.format]
    except KeyError:
        known = ", ".join(MODEL_FILES)
        raise UserError(
            f"No model format {bundle.format!r} is known, which this bundle has.", hint=f"known: {known}"
        ) from None


def model_size_mib(bundle: ModelBundle, blobs: Blobs) -> float:
    """Size of the model's own files in MiB.

    Raises:
        UserError: As `model_files`, or a file of the model is not in the bundle.
    """
    sizes = (blobs.path(bundle.file(name)).stat().st_size for name in model_files(bundle))
    return float(sum(sizes) / BYTES_PER_MIB)
