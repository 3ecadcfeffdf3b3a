"""Fills in the report's data from a finished run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from edgekd import __version__
from edgekd.core.plan import Action, NodeReport
from edgekd.core.report import LatencyReport
from edgekd.export.manifest import MANIFEST_FILE
from edgekd.export.tensorrt import build_command, is_read
from edgekd.pipeline.compose import FINAL
from edgekd.pipeline.curves import curves_of
from edgekd.pipeline.few_bits import CODEBOOK
from edgekd.pipeline.found import found_students
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import SYNTHETIC, Request
from edgekd.pipeline.results import CONVERT, EXPORT, Results
from edgekd.pipeline.situation import Situation
from edgekd.report.data import Asked, DeliveredFile, GraphNode, ParityRow, ReportData, Step

BUNDLE = "bundle"
RESOLVED = "resolved.yaml"
PARITY_STAGES = (EXPORT, CODEBOOK, "fp16", "quantize", "int8-fp16", CONVERT)
ORIGINS: dict[str, Literal["real", "synthetic", "random"]] = {
    "real": "real",
    "synthetic": "synthetic",
    "random": "random",
}


def page_of(
    results: Results,
    steps: tuple[Step, ...],
    recipe: Recipe,
    situation: Situation,
    versions: Mapping[str, str],
    out: Path,
) -> ReportData:
    """What `report.html` shows.

    Args:
        out: Folder of the results, with the recipe and the bundle written.
    """
    request = recipe.request
    model = Path(request.model.path).name
    return ReportData(
        title=f"{model} for {request.target}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        asked=_asked(request, situation, steps, out),
        verdict=results.verdict,
        choice=results.choice,
        steps=steps,
        search=found_students(results.search, results.graph),
        curves=curves_of(results, steps),
        profile=results.profile,
        evaluations=results.evaluations,
        reference=results.reference,
        chosen=FINAL,
        parity=tuple(_parity(node) for node in results.run.nodes if node.stage in PARITY_STAGES),
        graph=tuple(_graph_node(node, results) for node in results.run.nodes),
        decisions=recipe.decisions,
        environment={"versions": dict(versions), "device": results.profile.device},
        files=_files(out / BUNDLE),
        next_steps=tuple(_next_steps(results, situation, out)),
    )


def command_of(out: Path) -> str:
    """The command that repeats the run, with every option that shaped it: the recipe holds them all."""
    return shlex.join(["edgekd", "run", str(out.resolve() / RESOLVED), "-o", str(out.resolve())])


def _asked(request: Request, situation: Situation, steps: tuple[Step, ...], out: Path) -> Asked:
    builder = situation.teacher.model.builder
    size = f", {steps[0].params_m:.2f} M parameters" if steps and steps[0].params_m else ""
    data = request.data
    if situation.dataset is not None:
        splits = situation.dataset
        kind = f"{len(splits.classes)} classes" if splits.labelled else "no labels"
        data = (
            f"{splits.name}, {kind}: {len(splits.train):,} images to train on, {len(splits.select):,} to choose with, "
            f"{len(splits.test):,} for the verdict"
        )
    elif data == SYNTHETIC:
        data = "images generated from the teacher's BatchNorm statistics"
    return Asked(
        model=f"{Path(request.model.path).name} ({builder}{size})",
        target=f"{situation.target.name}: {situation.target.description}",
        data=data,
        budget=request.budget,
        command=command_of(out),
        seed=request.seed,
    )


def _parity(node: NodeReport) -> ParityRow:
    def number(*names: str) -> float | None:
        values = (node.metrics.get(name) for name in names)
        return next((float(value) for value in values if isinstance(value, int | float)), None)

    return ParityRow(
        node=node.name,
        against="PyTorch" if node.stage in (EXPORT, CONVERT) else "FP32 graph",
        samples=int(number("parity_samples", "loss_samples") or 0),
        origin=ORIGINS[str(node.metrics["samples_origin"])],
        max_abs=number("parity_max_abs"),
        mean_abs=number("parity_mean_abs"),
        cosine=number("parity_cosine"),
        top1_agreement=number("parity_agreement", "agreement_here", "agreement"),
        sqnr_db=number("sqnr_here_db", "sqnr_db"),
    )


def _graph_node(node: NodeReport, results: Results) -> GraphNode:
    drawn = next(n for n in results.graph.nodes if n.name == node.name)
    return GraphNode(
        name=node.name,
        stage=node.stage,
        inputs=drawn.sources,
        action="reuse" if node.action is Action.REUSE else "run",
        reasons=node.reasons,
        decisions=node.decisions,
        seconds=node.seconds,
    )


def _files(bundle: Path) -> tuple[DeliveredFile, ...]:
    listed = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    return tuple(
        DeliveredFile(path=name, size_bytes=(bundle / name).stat().st_size, sha256=digest)
        for name, digest in sorted(listed.items())
    )


def _next_steps(results: Results, situation: Situation, out: Path) -> list[str]:
    steps = []
    built_there = not results.profile.measured or results.profile.board is not None
    chosen = results.chosen_bundle
    if built_there and situation.target.support("tensorrt") is not None and is_read(chosen):
        command = build_command(situation.target, chosen)
        build = shlex.join(["edgekd", "build", str(out.resolve())])
        steps.append(
            f"Build the engine on the device: {build} --device ssh://USER@HOST; or by hand there, in a copy of "
            f"{out.resolve() / BUNDLE}: {command}"
        )
    if not results.profile.measured:
        profile = shlex.join(["edgekd", "profile", str(out.resolve())])
        steps.append(
            "Latencies here are predicted from the target's card: measure on the device before relying on them, "
            f"{profile} --device ssh://USER@HOST, or all candidates with the same flag of edgekd compress."
        )
    if situation.dataset is None:
        steps.append("Give images to calibrate, distil and judge accuracy: --data FOLDER_OR_NPZ.")
    pack = shlex.join(["edgekd", "package", str(out.resolve()), "-o", "model.edgekd"])
    steps.append(f"Hand the bundle over as one file, which edgekd-runtime loads: {pack}")
    again = shlex.join(["edgekd", "gate", str(out.resolve()), *_other_limit(results)])
    steps.append(f"Judge again under other limits, without running anything: {again}")
    return steps


def _other_limit(results: Results) -> tuple[str, str]:
    """A limit that can be judged: of latency where it was measured, else of the size, which is always known."""
    latency = results.latency(results.choice.candidate)
    if isinstance(latency, LatencyReport):
        return "--max-latency-ms", f"{2 * latency.p50_ms:.2g}"
    return "--max-size-mib", f"{2 * (results.size_mib(results.choice.candidate) or 1.0):.2g}"
