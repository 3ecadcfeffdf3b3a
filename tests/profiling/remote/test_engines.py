"""Engines of every runtime that boards run, over a real ssh connection, where the libraries are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Context
from edgekd.export.convert import CONVERTERS
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.profiling.agent.cpu import feeds_of
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.profile import profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Trial, candidate_from_bundle
from edgekd.profiling.remote.ssh import Ssh
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import open_bundle
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from tests.profiling.remote.loopback import LoopbackBoard

pytestmark = [pytest.mark.needs("sshd"), pytest.mark.slow]
PLAN = BoardPlan(warmup_s=0.0, duration_s=0.05, stall_s=120)


def engine_for(runtime: str, precision: str, ctx: Context) -> ModelBundle:
    """A toy network in the format of a runtime."""
    if runtime not in CONVERTERS:
        return toy_onnx_bundle(ctx.blobs, ctx.scratch)
    found = CONVERTERS.get(runtime).availability()
    if not found.ok:
        pytest.skip(f"needs the converter for {runtime}: {found.reason} ({found.install})")
    takes = CONVERTERS.get(runtime).takes
    source = (toy_bundle if takes is BundleKind.TORCH else toy_onnx_bundle)(ctx.blobs, ctx.scratch)
    samples = bundle_from_samples(
        Samples(random_images((3, 8, 8), samples=16, seed=1), None, "noise"),
        preprocessing=source.model.preprocessing, source="noise", blobs=ctx.blobs, scratch=ctx.scratch,
    )  # fmt: skip
    config = ConvertConfig.parse({"to": runtime, "precision": precision}, "convert")
    return run_stage(ConvertStage(config), make_inputs(model=source, samples=samples), ctx).bundle


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        ("openvino", "fp32"),
        ("executorch", "fp32"),
        ("executorch", "int8"),
        ("ncnn", "fp32"),
        ("litert", "fp32"),
        ("litert", "int8"),
    ],
)
def test_an_engine_computes_on_the_board_what_it_computes_here(
    runtime: str, precision: str, board: LoopbackBoard, tmp_path: Path
) -> None:
    need_runtime(runtime)
    ctx = make_context(tmp_path)
    bundle = engine_for(runtime, precision, ctx)
    plan = PLAN.model_copy(update={"runtimes": (runtime,)})
    candidate = candidate_from_bundle("toy", bundle, ctx.blobs)
    found = profile_on_board(Ssh(Address("board")), [candidate], plan, reporter=RecordingReporter(), patience_s=60)
    (entry,) = found.report.entries
    assert entry.failure is None
    assert entry.latency is not None
    assert (entry.latency.threads, entry.latency.load_ms is not None) == (1, True)
    trial = Trial(candidate="toy", bundle=bundle, runtime=runtime, threads=1, size_mib=0.0)
    with open_bundle(bundle, ctx.blobs, runtime, threads=1, batch=1) as session:
        (here,) = session.infer(feeds_of(trial.plain())).values()
    np.testing.assert_allclose(next(iter(found.outputs.values()))[0], here.reshape(-1), rtol=1e-5, atol=1e-6)
