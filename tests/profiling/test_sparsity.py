"""What is said of sparse weights after a profile."""

from __future__ import annotations

from pathlib import Path

from edgekd.core.layers import LayerReport
from edgekd.core.report import CandidateLatency
from edgekd.profiling.sparsity import patterns_in_words
from edgekd.profiling.stage import ProfileConfig, ProfileStage
from edgekd.testing.harness import make_context, make_inputs, run_stage
from tests.gate.results import latency
from tests.profiling.cards import card
from tests.profiling.test_profile_stage import QUICK, onnx_bundle


def entry(runtime: str, *, named: int = 0, sparse: int = 0, layers: bool = True, name: str = "net") -> CandidateLatency:
    report = LayerReport(
        source="a test", calls=1, total_ms=1.0, share_by_arithmetic={"float": 1.0}, nodes_by_provider={"A": 9},
        named_kernels=named, sparse_kernels=sparse,
    )  # fmt: skip
    return CandidateLatency(
        candidate=name,
        runtime=runtime,
        precision="fp16",
        size_mib=1.0,
        latency=latency(1.0),
        layers=report if layers else None,
    )


def said(*entries: CandidateLatency) -> list[str]:
    return list(patterns_in_words(entries, {"net": "2:4"}))


def test_sparse_kernels_are_told_by_number_once_for_each_runtime() -> None:
    (sentence,) = said(entry("tensorrt", named=20, sparse=7), entry("tensorrt", named=20, sparse=7))
    assert sentence.startswith("net has 2:4 sparsity: in tensorrt the kernels of 7 of 20 convolutions")
    assert not said(entry("tensorrt", named=20, sparse=7, name="dense"))


def test_what_is_not_known_is_not_said() -> None:
    for told in (entry("tensorrt", layers=False), entry("tensorrt")):
        assert said(told) == [
            "net has 2:4 sparsity: in tensorrt it is not known which kernels make use of it: their names were not "
            "recorded"
        ]


def test_a_profile_says_that_cpus_compute_the_zeros_of_a_sparse_candidate(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    dense = onnx_bundle(ctx)
    sparse = dense.model_copy(update={"tags": {**dense.tags, "sparsity": "2:4"}})
    config = ProfileConfig(runtimes=("onnxruntime",), layers="none", **QUICK)
    candidates = [("sparse", sparse), ("dense", dense)]
    result = run_stage(ProfileStage(config), make_inputs(candidates=candidates), ctx)
    assert [text for text in result.decisions if "sparsity" in text] == [
        "sparse has 2:4 sparsity: in onnxruntime no CPU kernel makes use of it; zeros are computed like other values"
    ]
