"""The whole chain on CIFAR-10 with a trained ResNet-56 as teacher, for this machine, within 40 minutes on 2 cores.

    python benchmarks/cifar10_chain.py --data ../shared/data --out benchmarks/results/cifar10_chain.json

Prints and stores: the teacher's FP32 engine, post-training INT8 of the teacher alone, every stage, and the chosen
engine, with latencies measured interleaved in one run. Decisions are taken on 5,000 of the 10,000 test images
(`select`), the verdict on the other 5,000 (`test`): the teacher has seen all training images, so no drop can be judged
on those.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from cifar10 import cifar10_npz, machine, resnet56, versions

from edgekd.cli.console import ConsoleReporter
from edgekd.core.plan import Action
from edgekd.core.report import Budget, CandidateLatency
from edgekd.core.stage import Execution
from edgekd.pipeline.execute import Run, Workspace
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.results import Results, results_of
from edgekd.pipeline.steps import steps_of

TEACHER_TOP1 = 0.8973
LIMIT_S = 40 * 60
OPTIONS = Options(
    students=("search", "prune"),
    evaluations=200,
    proxy="params+macs",
    epochs=12,
    recover_epochs=3,
    prune_keep=0.75,
    teacher_views=3,
    threads=(1,),
    duration_s=4.0,
)


def main() -> None:
    arguments = _arguments()
    work: Path = arguments.work
    data = cifar10_npz(arguments.data, work / "cifar10.npz")
    request = Request(
        model=resnet56(arguments.data),
        target="host",
        data=str(data),
        budget=Budget(max_latency_ms=arguments.max_latency_ms, max_drop=0.01),
        seed=arguments.seed,
    )
    began = time.monotonic()
    with ConsoleReporter() as reporter:
        workspace = Workspace(
            out=work / "out", store=work / "store", reporter=reporter, execution=Execution(device="cpu", threads=2)
        )
        run = Run(workspace, request=request, options=OPTIONS)
        outcome = run.execute()
    seconds = time.monotonic() - began
    assert outcome is not None
    results = results_of(outcome.report, run.recipe, run.store)
    summary = _summary(results, request, seconds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=2) + "\n")
    _print(summary)


def _summary(results: Results, request: Request, seconds: float) -> dict[str, Any]:
    entries = [e for e in results.profile.entries if e.latency is not None]
    teacher = _p50(entries, lambda e: e.candidate == "teacher-fp32" and e.runtime == "onnxruntime")
    ptq = _p50(entries, lambda e: e.candidate == "teacher-int8-openvino")
    chosen = _p50(entries, lambda e: (e.candidate, e.runtime) == (results.choice.candidate, results.choice.runtime))
    test = {e.candidate: e for e in results.evaluations if e.split == "test"}
    rows = [
        {
            "model": step.name,
            "node": step.detail,
            "chosen": step.chosen,
            "top1_select": None if step.accuracy is None else step.accuracy.value,
            "params_m": step.params_m,
            "macs_m": step.macs_m,
            "size_mib": step.size_mib,
            "p50_ms": step.latency_ms,
            "runtime": step.runtime,
            "speedup_over_teacher_fp32": None if not step.latency_ms else teacher / step.latency_ms,
            "stage_seconds": step.seconds,
        }
        for step in steps_of(results)
    ]
    # Reused nodes count with the time they once took, so that an interrupted run does not look fast.
    reused = [node for node in results.run.nodes if node.action is Action.REUSE]
    total = seconds + sum(node.seconds for node in reused)
    return {
        "benchmark": "cifar10_chain",
        "machine": machine() | {"device": results.profile.device},
        "versions": versions(),
        "command": "python benchmarks/cifar10_chain.py",
        "seed": request.seed,
        "seconds": total,
        "within_limit": total <= LIMIT_S,
        "stage_seconds": {node.name: round(node.seconds, 1) for node in results.run.nodes},
        "teacher": {"p50_ms": teacher, "top1_test": test["teacher-fp32"].value, "published_top1_10k": TEACHER_TOP1},
        "ptq_alone_p50_ms": ptq,
        "chosen": {
            "candidate": results.choice.candidate,
            "runtime": results.choice.runtime,
            "p50_ms": chosen,
            "top1_test": test["chosen"].value,
            "top1_test_interval": [test["chosen"].low, test["chosen"].high],
            "drop_points_test": 100 * (test["teacher-fp32"].value - test["chosen"].value),
            "speedup_over_teacher_fp32": teacher / chosen,
            "speedup_over_ptq_alone": ptq / chosen,
        },
        "goal": {"speedup_over_teacher_fp32": 8.0, "speedup_over_ptq_alone": 3.0, "max_drop_points": 1.0},
        "verdict": results.verdict.plain(),
        "decisions": {node.name: list(node.decisions) for node in results.run.nodes if node.decisions},
        "rows": rows,
        "latencies": [_latency(entry) for entry in entries],
    }


def _latency(entry: CandidateLatency) -> dict[str, Any]:
    found = entry.latency
    assert found is not None
    return {
        "candidate": entry.candidate,
        "runtime": entry.runtime,
        "threads": found.threads,
        "p50_ms": found.p50_ms,
        "p90_ms": found.p90_ms,
        "p99_ms": found.p99_ms,
        "median_95_ms": [found.median_low_ms, found.median_high_ms],
        "n": found.n,
    }


def _p50(entries: list[CandidateLatency], wanted: Any) -> float:
    """The fastest median among the wanted entries, in ms."""
    return min(e.latency.p50_ms for e in entries if wanted(e) and e.latency is not None)


def _print(summary: dict[str, Any]) -> None:
    print(f"{'':2}{'model':<48}{'top-1 select':>13}{'MiB':>8}{'p50 ms':>9}{'x':>6}  runtime")
    for row in summary["rows"]:
        mark = "→" if row["chosen"] else " "
        speed = row["speedup_over_teacher_fp32"] or float("nan")
        print(
            f"{mark} {row['model']:<48}{100 * row['top1_select']:>12.2f}%{row['size_mib']:>8.3f}"
            f"{row['p50_ms']:>9.3f}{speed:>6.2f}  {row['runtime']}"
        )
    chosen = summary["chosen"]
    print(
        f"chosen {chosen['candidate']} in {chosen['runtime']}: {chosen['speedup_over_teacher_fp32']:.2f}x over the "
        f"teacher's FP32 (goal 8), {chosen['speedup_over_ptq_alone']:.2f}x over PTQ alone (goal 3), drop "
        f"{chosen['drop_points_test']:.2f} points on the test half (limit 1.0); {summary['seconds'] / 60:.1f} min"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/cifar10_chain"), help="store and results")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_chain.json"))
    parser.add_argument("--max-latency-ms", type=float, default=0.38)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
