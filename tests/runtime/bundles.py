"""Bundles made by hand, file by file as the format says: the runtime is held to the format, not to edgekd."""

from __future__ import annotations

import copy
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.testing.toy_graphs import toy_graph

SIZE = 8
LABELS = ["tench", "shark", "hen", "owl"]
PREPROCESSING: dict[str, Any] = {
    "size": [SIZE, SIZE],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "channel_order": "RGB",
    "crop_fraction": 0.875,
}
MEASURED = {"median_ms": 0.5, "p99_ms": 0.7, "origin": "measured", "device": "a board"}


def entry(name: str = "fp32", **changes: Any) -> dict[str, Any]:
    """One engine of `deploy.json`: an ONNX graph at the top level, unless changed."""
    return {
        "name": name,
        "format": "onnx",
        "files": {"model.onnx": "model.onnx"},
        "runtimes": ["onnxruntime", "openvino"],
        "precision": "fp32",
        "scheme": "",
        "threads": 1,
        "chosen": True,
        "reason": "the fastest",
        "latency": MEASURED,
        "accuracy": 0.9,
        "size_mib": 0.01,
        "fingerprint": None,
        "source": None,
        "timing_cache": None,
        **changes,
    }


def deploy(engines: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """`deploy.json` of a classifier with four classes."""
    return {
        "schema_version": 1,
        "task": "classification",
        "input": {"name": "images", "shape": ["N", 3, SIZE, SIZE], "dtype": "float32", "layout": "NCHW"},
        "outputs": [{"name": "logits", "shape": ["N", len(LABELS)], "dtype": "float32"}],
        "preprocessing": copy.deepcopy(PREPROCESSING),
        "labels": LABELS,
        "engines": engines,
        **changes,
    }


def graph_bytes(seed: int = 0) -> bytes:
    """A tiny network as ONNX."""
    return bytes(toy_graph(classes=len(LABELS), size=SIZE, seed=seed).SerializeToString())


def write_bundle(
    folder: Path,
    engines: list[dict[str, Any]] | None = None,
    files: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """A folder with a manifest, `deploy.json`, `model.onnx`, and more files."""
    content = {
        "model.onnx": graph_bytes(),
        "bundle.json": b"{}\n",
        **(files or {}),
        "deploy.json": json.dumps(deploy([entry()] if engines is None else engines, **changes)).encode(),
    }
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path) -> None:
    """The manifest of what lies in a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    files = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    manifest = {"schema_version": 2, "files": files, "versions": {}, "facts": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """`model.edgekd` of a folder."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                info.external_attr, info.compress_type = 0o644 << 16, method
                archive.writestr(info, file.read_bytes())
    return path
