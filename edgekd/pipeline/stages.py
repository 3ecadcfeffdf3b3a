"""The registry of stages: the names that recipes use, and where each one lives."""

from __future__ import annotations

from typing import Any

from edgekd.core.registry import Registry
from edgekd.core.stage import Stage

STAGES: Registry[type[Stage[Any]]] = Registry(
    "stage",
    {
        "calibration": "edgekd.quant.calibration_stage:CalibrationStage",
        "synthetic-samples": "edgekd.quant.calibration_stage:SyntheticSamplesStage",
        "latency-model": "edgekd.profiling.predict.stage:LatencyModelStage",
        "latency-table": "edgekd.profiling.table.stage:LatencyTableStage",
        "search": "edgekd.search.stage:SearchStage",
        "pick": "edgekd.search.pick_stage:PickStage",
        "block-library": "edgekd.search.blocks.library_stage:BlockLibraryStage",
        "assemble": "edgekd.search.blocks.assemble_stage:AssembleStage",
        "onnx-teacher": "edgekd.distill.teacher_file_stage:OnnxTeacherStage",
        "stored-logits": "edgekd.distill.teacher_file_stage:StoredLogitsStage",
        "gather": "edgekd.distill.gather_stage:GatherStage",
        "teach": "edgekd.distill.teach_stage:TeachStage",
        "distill": "edgekd.distill.stage:DistillStage",
        "quantized-distill": "edgekd.quant.qd_stage:QuantizedDistillStage",
        "differentiable-quantize": "edgekd.quant.dq_stage:DifferentiableQuantizeStage",
        "prune": "edgekd.prune.stage:PruneStage",
        "sparse-distill": "edgekd.prune.sparse_stage:SparseDistillStage",
        "export": "edgekd.export.stage:ExportStage",
        "conform": "edgekd.export.conform:ConformStage",
        "fp16": "edgekd.export.precision:Fp16Stage",
        "int8-fp16": "edgekd.export.precision_int8:Int8Fp16Stage",
        "quantize": "edgekd.quant.ptq_stage:QuantizeStage",
        "qat": "edgekd.quant.qat_stage:QatStage",
        "codebook": "edgekd.quant.codebook_stage:CodebookStage",
        "sensitivity": "edgekd.quant.sensitivity_stage:SensitivityStage",
        "convert": "edgekd.export.convert_stage:ConvertStage",
        "build": "edgekd.export.engine:BuildStage",
        "evaluate": "edgekd.evaluate.stage:EvaluateStage",
        "profile": "edgekd.profiling.stage:ProfileStage",
        "answers": "edgekd.profiling.answers_stage:AnswersStage",
        "select": "edgekd.gate.stage:SelectStage",
        "gate": "edgekd.gate.stage:GateStage",
    },
)
