"""The sensitivity stage: the table of what INT8 costs layer by layer, as a report that quantize nodes can follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekd.core.bundle import BundleKind
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.core.text import percent
from edgekd.quant.ptq import CalibratedScheme, PtqConfig, int8_builder, options_of, require_fp32
from edgekd.quant.sensitivity import SensitivityReport, sensitivity
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.runtimes.samples import samples_from_bundle

SHOWN = 5


class SensitivityConfig(PtqConfig):
    """As for the graphs that are to follow the table.

    Attributes:
        scheme: Form of INT8.
    """

    scheme: CalibratedScheme


class SensitivityStage(Stage[SensitivityConfig]):
    """Quantizes every layer of an FP32 graph alone and reports the noise that it adds to the logits."""

    name: ClassVar[str] = "sensitivity"
    version: ClassVar[int] = 4
    Config: ClassVar[type[StageConfig]] = SensitivityConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.ONNX), "calibration": port(BundleKind.DATA)}
    produces: ClassVar[BundleKind] = BundleKind.REPORT

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        require_fp32(inputs.one("model"), self.name)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        samples = samples_from_bundle(inputs.one("calibration"), ctx.blobs, preprocessing=model.model.preprocessing)
        builder = int8_builder(
            ctx.path(model, MODEL_FILE),
            samples,
            self.config.scheme,
            self.config,
            scratch=ctx.scratch,
            seed=ctx.seed,
            reporter=ctx.reporter,
        )
        report = sensitivity(
            builder.form,
            builder.calibration.ranges,
            builder.judge,
            scheme=self.config.scheme,
            options=options_of(self.config),
            calib_method=builder.calibration.method,
            refined=builder.refined,
            part=builder.parts.compared,
            on_layer=lambda done, total: ctx.reporter.progress("layer sensitivity", done, total),
        )
        return StageResult(
            bundle=bundle_from_report(report, ctx),
            metrics={"layers": len(report.layers), "sqnr_db": report.sqnr_db, "agreement": report.agreement},
            decisions=(*builder.decisions, said(report)),
        )


def said(report: SensitivityReport) -> str:
    """The head of the table, in a sentence."""
    worst = ", ".join(f"{entry.layer} {percent(entry.noise_share, 0)}" for entry in report.layers[:SHOWN])
    return (
        f"Share of the INT8 noise by layer, of {len(report.layers)} layers each quantized alone on {report.samples} "
        f"samples: {worst}."
    )
