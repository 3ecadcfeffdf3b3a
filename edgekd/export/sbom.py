"""`sbom.json`: what a package consists of, what runs it and what made it, as a CycloneDX 1.6 bill of materials.

CycloneDX (OWASP; ECMA-424, 1st edition) has a kind of component for models. The optional time stamp is left out, and
the serial number is derived from the content, so that equal packages have equal bills. Libraries are named with the
versions that the engines were made and measured with; they are not part of the package.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from edgekd.core.deployment import Deployment
from edgekd.core.digest import Digest
from edgekd.export.licences import licence_of

SBOM_FILE = "sbom.json"
MODEL_LICENSE = "model_license"
"""Fact of a package: the licence of the model, as its owner stated it."""
MODEL_NAME = "model"
"""Fact of a package: the file that the model came from."""
LIBRARIES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "tensorrt", "executorch": "executorch",
             "ncnn": "ncnn", "litert": "ai-edge-litert"}  # fmt: skip
"""Distribution by runtime."""
_MAKERS = {"executorch": ("executorch",), "ncnn": ("ncnn", "pnnx"), "litert": ("ai-edge-litert",)}
"""Distributions that make and run one format of engine, and nothing else, by format."""
_PYTHON = "python"
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")


def bill_of_materials(
    files: Mapping[str, Digest],
    versions: Mapping[str, str],
    facts: Mapping[str, str],
    deployment: Deployment | None,
) -> dict[str, Any]:
    """The bill as plain data.

    Args:
        files: SHA-256 by path of every file but the bill itself and the manifest.
        versions: Of the tools, by distribution; `python` is the interpreter.
        facts: Of the package; each becomes a property of the model.
        deployment: None for a package of weights.
    """
    engines = {path: engine for engine in deployment.engines for path in engine.files.values()} if deployment else {}
    named = {runtime for engine in deployment.engines for runtime in engine.runtimes} if deployment else set()
    runtimes = {runtime.partition(":")[0] for runtime in named}  # onnxruntime:cuda is a provider of onnxruntime
    libraries = sorted({LIBRARIES[name] for name in runtimes if name in LIBRARIES} & set(versions))
    parts = [_file(path, digest, engines[path].name if path in engines else None) for path, digest in files.items()]
    needed = [_library(name, versions[name]) for name in libraries]
    bill: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_tool(name, versions[name]) for name in sorted(set(versions) - set(libraries))]},
            "component": _model(facts, deployment),
        },
        "components": sorted(parts, key=lambda part: str(part["name"])) + needed,
        "dependencies": [
            {"ref": "model", "dependsOn": sorted(str(part["bom-ref"]) for part in (*parts, *needed))},
        ],
    }
    bill["serialNumber"] = uuid.uuid5(_SPACE, json.dumps(bill, sort_keys=True)).urn
    return bill


def involved(versions: Mapping[str, str], deployment: Deployment | None) -> dict[str, str]:
    """The tools that had a part in a package: what is installed only for a format that it does not hold had none.

    Args:
        versions: Of all tools at hand, by distribution.
        deployment: None for a package of weights.
    """
    formats = {engine.format for engine in deployment.engines} if deployment else set()
    others = {name for form, names in _MAKERS.items() if form not in formats for name in names}
    return {name: version for name, version in versions.items() if name not in others}


def problems_of(bill: Mapping[str, Any]) -> list[str]:
    """What of the required fields of CycloneDX 1.6 a bill lacks, as sentences; empty for a sound one.

    It holds the rules that a package relies on, not the whole schema.
    """
    found = []
    if (bill.get("bomFormat"), bill.get("specVersion")) != ("CycloneDX", "1.6"):
        found.append("bomFormat and specVersion must be CycloneDX and 1.6.")
    meta = bill.get("metadata", {})
    listed = [meta.get("component", {}), *meta.get("tools", {}).get("components", []), *bill.get("components", [])]
    for part in listed:
        if not part.get("type") or not part.get("name"):
            found.append(f"The component {part.get('bom-ref', part)!r} needs a type and a name.")
        for entry in part.get("hashes", []):
            if entry.get("alg") != "SHA-256" or len(str(entry.get("content"))) != 64:
                found.append(f"The component {part.get('name')!r} has a digest that is no SHA-256.")
    refs = [part["bom-ref"] for part in listed if "bom-ref" in part]
    if len(set(refs)) < len(refs):
        found.append("Every bom-ref must be unique.")
    for entry in bill.get("dependencies", []):
        if loose := {entry["ref"], *entry.get("dependsOn", [])} - set(refs):
            found.append(f"The dependencies name {min(loose)!r}, which is no component.")
    return found


def _model(facts: Mapping[str, str], deployment: Deployment | None) -> dict[str, Any]:
    component: dict[str, Any] = {
        "bom-ref": "model",
        "type": "machine-learning-model",
        "name": facts.get(MODEL_NAME, "model"),
        "properties": [{"name": f"edgekd:{name}", "value": value} for name, value in sorted(facts.items())],
    }
    if MODEL_LICENSE in facts:
        component["licenses"] = [{"license": {"name": facts[MODEL_LICENSE]}}]
    if deployment is not None:
        component["description"] = f"{deployment.task}, {len(deployment.engines)} engines"
    return component


def _file(path: str, digest: Digest, engine: str | None) -> dict[str, Any]:
    part: dict[str, Any] = {
        "bom-ref": f"file:{path}",
        "type": "file" if engine is None else "machine-learning-model",
        "name": path,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    if engine is not None:
        part["properties"] = [{"name": "edgekd:engine", "value": engine}]
    return part


def _library(name: str, version: str) -> dict[str, Any]:
    return {"bom-ref": f"library:{name}", "scope": "required", **_distribution(name, version)}


def _tool(name: str, version: str) -> dict[str, Any]:
    if name == _PYTHON:
        return {"type": "platform", "name": name, "version": version}
    return _distribution(name, version)


def _distribution(name: str, version: str) -> dict[str, Any]:
    part = {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
    licence = licence_of(name, version)
    return part if licence is None else {**part, "licenses": [{"expression": licence}]}
