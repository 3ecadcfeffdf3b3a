"""Runs one stage outside a graph, with files in a folder of the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Context, Execution, Inputs, Resource, Stage, StageResult


def make_context(folder: Path, *, seed: int = 0, resources: Mapping[str, Resource] | None = None) -> Context:
    """A context whose blobs and scratch lie under `folder`; its reporter records."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(
        scratch=scratch,
        seed=seed,
        reporter=RecordingReporter(),
        blobs=FolderBlobs(folder / "blobs"),
        resources=dict(resources or {}),
        execution=Execution(device="cpu", threads=1),
    )


def make_inputs(**ports: ModelBundle | Sequence[tuple[str, ModelBundle]]) -> Inputs:
    """Inputs from `port=bundle` or, for a `many` port, `port=[(name, bundle), ...]`."""
    return Inputs(
        {name: [(name, value)] if isinstance(value, ModelBundle) else list(value) for name, value in ports.items()}
    )


def run_stage(stage: Stage[Any], inputs: Inputs, ctx: Context) -> StageResult:
    """`requires`, `run`, `ensures`, as the runner calls them."""
    stage.requires(inputs, ctx)
    result = stage.run(inputs, ctx)
    stage.ensures(inputs, result, ctx)
    return result
