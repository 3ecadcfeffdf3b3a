"""The JSON Schemas of the YAML files that people write, and of `deploy.json`, which programs without edgekd read.

They are published in `docs/schemas/`, for editors; `make schemas` writes them and a test holds them up to date.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgekd.core.deployment import Deployment
from edgekd.core.schema import Schema
from edgekd.data.cards import CalibrationCard
from edgekd.pipeline.recipes import Recipe
from edgekd.profiling.remote.lab import Lab
from edgekd.targets.schema import Target

PUBLISHED: dict[str, type[Schema]] = {
    "recipe": Recipe,
    "target": Target,
    "calibration-card": CalibrationCard,
    "lab": Lab,
    "deploy": Deployment,
}


def schema_texts() -> dict[str, str]:
    """Text by file name."""
    return {
        f"{name}.schema.json": json.dumps(schema.model_json_schema(), indent=1, sort_keys=True) + "\n"
        for name, schema in PUBLISHED.items()
    }


def write_schemas(folder: Path) -> None:
    """Writes all of them to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schema_texts().items():
        (folder / name).write_text(text, encoding="utf-8")
