"""One export for the whole room: tracing a module takes seconds, and every test can share the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context, StageResult
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle


@dataclass(frozen=True)
class Exported:
    """The toy network as TORCH and ONNX bundles, with samples; `result` is what the export stage said."""

    ctx: Context
    torch: ModelBundle
    samples: ModelBundle
    result: StageResult


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    ctx = make_context(tmp_path_factory.mktemp("exported"))
    model = toy_bundle(ctx.blobs, ctx.scratch)
    samples = bundle_from_samples(
        Samples(random_images((3, 8, 8), samples=6, seed=1), None, "real"),
        preprocessing=model.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )
    result = run_stage(ExportStage(ExportConfig()), make_inputs(model=model, samples=samples), ctx)
    return Exported(ctx, model, samples, result)


@pytest.fixture
def reexport(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the export stage take the graph that was exported already, instead of tracing again."""
    source = exported.ctx.path(exported.result.bundle, "model.onnx")

    def copied(_module: object, _shape: object, path: Path, **_options: object) -> None:
        path.write_bytes(source.read_bytes())

    monkeypatch.setattr("edgekd.export.stage.onnx_from_module", copied)
