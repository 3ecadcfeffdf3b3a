"""The program that runs in the converter's own environment: `python -I litert_program.py REQUEST.json`.

It borrows edgekd's code from the environment that asks, to rebuild the network from its recipe, and nothing else from
there: that environment's PyTorch is not the one that litert-torch was built for. Its answer is a JSON file.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIGNATURE = "serving_default"
_OPERATOR = re.compile(r"Lowering not found: (\S+)")
_PLACE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')


def borrow(package: Path) -> None:
    """Makes the package in this folder importable by its name, without its neighbours."""
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no package in {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


class Files:
    """Blobs whose places were told; read-only, like those of a package."""

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths

    def add(self, path: Path) -> Any:
        raise PermissionError(f"the files of a conversion are read-only; {path} cannot be added to them")

    def path(self, digest: Any) -> Path:
        return Path(self._paths[digest])


def convert(asked: dict[str, Any]) -> None:
    """Writes the .tflite file that was asked for."""
    import litert_torch
    import numpy as np
    import torch

    from edgekd.core.bundle import ModelBundle
    from edgekd.nn.build import module_from_bundle
    from edgekd.nn.reparam import reparameterised

    bundle = ModelBundle.from_json(asked["bundle"])
    module = reparameterised(module_from_bundle(bundle, Files(asked["files"]))).eval()
    images = np.load(asked["images"])
    out = Path(asked["out"])
    whole = out if asked["precision"] == "fp32" else Path(asked["scratch"]) / "float.tflite"
    with torch.no_grad():
        model = litert_torch.convert(module, (torch.from_numpy(images[:1]),))
    model.export(str(whole))
    if asked["precision"] == "int8":
        quantize(whole, images, out)


def quantize(whole: Path, images: Any, out: Path) -> None:
    """Writes the file with 8-bit weights and activations, ranges from the images (N, C, H, W).

    A range holds every value of every image. The tool's own way averages the extremes of single images, and half of
    the images then exceed it: on a ResNet-56 for CIFAR-10 the logits saturated, 11.3 dB instead of 31.1 dB.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    (name,) = Interpreter(str(whole)).get_signature_list()[SIGNATURE]["inputs"]
    what = recipe.static_wi8_ai8()
    operators = recipe_manager.RecipeManager()
    operators.load_quantization_recipe(what)
    ranges = calibrator.Calibrator(str(whole), qsv_update_func=qsv_utils.min_max_update)
    ranges.calibrate({SIGNATURE: [{name: images[i : i + 1]} for i in range(len(images))]}, operators)
    tool = quantizer.Quantizer(str(whole))
    tool.load_quantization_recipe(what)
    tool.quantize(ranges.get_model_qsvs()).export_model(str(out), overwrite=True)


def operator_of(message: str) -> str:
    """The operator that an error of litert-torch names as missing; empty when it names none."""
    found = _OPERATOR.search(message)
    return found[1].rstrip(".,;") if found else ""


def place_of(message: str) -> str:
    """The innermost line of the model's code that an error names; empty when it names none."""
    found = _PLACE.findall(message)
    return "line {1} of {0}, in {2}".format(*found[-1]) if found else ""


def main(request: str) -> None:
    """Answers a request; an exception of the tool is an answer, a crash is none."""
    asked = json.loads(Path(request).read_text())
    borrow(Path(asked["package"]))
    answer: dict[str, Any] = {"version": version("litert-torch"), "torch": version("torch")}
    try:
        convert(asked)
    except Exception as err:  # noqa: BLE001 - the tool's exceptions have no common base
        text = f"{type(err).__name__}: {err}"
        answer |= {"error": text, "operator": operator_of(text), "place": place_of(text)}
    Path(asked["answer"]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
