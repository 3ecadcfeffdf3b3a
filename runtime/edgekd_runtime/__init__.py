"""Runs a bundle that edgekd wrote, on the device, without edgekd and without PyTorch.

from edgekd_runtime import Engine
engine = Engine.load("model.edgekd")
labels, scores = engine("image.jpg")
"""

from edgekd_runtime.engine import Engine
from edgekd_runtime.errors import BundleError, EngineError, FallbackWarning, ImageError, RuntimeFailure
from edgekd_runtime.preprocess import Preprocessing
from edgekd_runtime.result import Result

__version__ = "0.1.0"
__all__ = [
    "BundleError",
    "Engine",
    "EngineError",
    "FallbackWarning",
    "ImageError",
    "Preprocessing",
    "Result",
    "RuntimeFailure",
]
