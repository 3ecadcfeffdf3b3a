"""A run that never happened, with every kind of content that the report can show. Its numbers are invented."""

from __future__ import annotations

import math
import random
import statistics

from edgekd.core.report import (
    Budget,
    CandidateLatency,
    Choice,
    Evaluation,
    LatencyReport,
    Metric,
    PredictedLatency,
    ProfileReport,
)
from edgekd.core.stats import quantile
from edgekd.gate.verdict import judge
from edgekd.profiling.measure import REGION
from edgekd.report.data import Asked, DeliveredFile, GraphNode, ParityRow, ReportData, Step

ENGINES = {
    # candidate: (precision, accuracy on select, MiB, ms in ONNX Runtime, ms in OpenVINO)
    "teacher-fp32": ("fp32", 0.8973, 3.27, 3.06, 2.91),
    "teacher-int8-ort": ("int8", 0.8941, 0.92, 1.77, 1.71),
    "teacher-int8-openvino": ("int8", 0.8948, 0.93, 2.10, 1.58),
    "student-fp32": ("fp32", 0.8921, 1.06, 0.92, 0.81),
    "student-int8-ort": ("int8", 0.8902, 0.31, 0.61, 0.66),
    "student-int8-openvino": ("int8", 0.8906, 0.32, 0.83, 0.47),
    "student-pruned-fp32": ("fp32", 0.8911, 0.61, 0.58, 0.53),
    "student-pruned-int8-ort": ("int8", 0.8887, 0.19, 0.44, 0.49),
    "student-pruned-int8-openvino": ("int8", 0.8896, 0.20, 0.60, 0.36),
    "pruned-fp32": ("fp32", 0.8852, 0.98, 1.31, 1.20),
    "pruned-int8-ort": ("int8", 0.8810, 0.30, 0.88, 0.93),
    "pruned-int8-openvino": ("int8", 0.8821, 0.31, 1.07, 0.69),
}
CHOSEN, RUNTIME = "student-pruned-int8-openvino", "openvino"


def evaluation(
    candidate: str, runtime: str, value: float, split: str = "select", n: int = 2500, metric: Metric = "top1"
) -> Evaluation:
    half = 1.96 * math.sqrt(value * (1 - value) / n)
    return Evaluation.model_validate(
        {
            "candidate": candidate,
            "runtime": runtime,
            "split": split,
            "metric": metric,
            "value": value,
            "low": max(value - half, 0.0),
            "high": min(value + half, 1.0),
            "n": n,
        }
    )


def latency(runtime: str, precision: str, p50: float, *, threads: int = 1, n: int = 1800) -> LatencyReport:
    rng = random.Random(f"{runtime}{precision}{p50}{threads}")
    samples = [p50 * (0.985 + rng.lognormvariate(-4.1, 0.8) + (rng.random() < 0.03) * rng.random()) for _ in range(n)]
    middle = statistics.median(samples)
    return LatencyReport(
        runtime=runtime,
        provider="CPUExecutionProvider",
        precision=precision,
        threads=threads,
        region=REGION,
        n=n,
        warmup_n=90,
        mean_ms=statistics.fmean(samples),
        p50_ms=middle,
        p90_ms=quantile(samples, 0.9),
        p95_ms=quantile(samples, 0.95),
        p99_ms=quantile(samples, 0.99),
        min_ms=min(samples),
        max_ms=max(samples),
        std_ms=statistics.pstdev(samples),
        median_low_ms=middle * 0.996,
        median_high_ms=middle * 1.005,
        throughput_per_s=1000 / middle,
        samples_ms=tuple(samples),
    )


def sample_profile(threads: tuple[int, ...] = (1,)) -> ProfileReport:
    entries = [
        CandidateLatency(
            candidate=name,
            runtime=runtime,
            precision=precision,
            size_mib=size,
            latency=latency(runtime, precision, ms / count**0.3, threads=count),
        )
        for count in threads
        for name, (precision, _, size, ort, openvino) in ENGINES.items()
        for runtime, ms in (("onnxruntime", ort), ("openvino", openvino))
    ]
    broken = CandidateLatency(
        candidate="student-fp16",
        runtime="openvino",
        precision="fp16",
        size_mib=0.5,
        failure="no kernel for FP16 pooling",
    )
    device = "AMD EPYC (2 cores, x86_64); onnxruntime 1.31.1, openvino 2026.4.1"
    return ProfileReport(device=device, measured=True, threads=threads, entries=(*entries, broken))


def sample_report(
    *, max_latency_ms: float = 0.5, max_drop: float = 0.01, threads: tuple[int, ...] = (1,)
) -> ReportData:
    profile = sample_profile(threads)
    budget = Budget(max_latency_ms=max_latency_ms, max_drop=max_drop, max_size_mib=1.0)
    select = [
        evaluation(name, runtime, value - 0.0004 * (runtime == "openvino"))
        for name, (_, value, _, _, _) in ENGINES.items()
        for runtime in ("onnxruntime", "openvino")
    ]
    test = [
        evaluation("teacher-fp32", "onnxruntime", 0.8966, "test"),
        evaluation("chosen", RUNTIME, 0.8902, "test"),
    ]
    choice = sample_choice(profile)
    chosen = next(e for e in profile.entries if (e.candidate, e.runtime) == (CHOSEN, RUNTIME))
    verdict = judge(
        device=profile.device,
        latency=chosen.latency,
        accuracy=test[1],
        reference=test[0],
        size_mib=chosen.size_mib,
        budget=budget,
    )
    return ReportData(
        title="CIFAR-10 ResNet-56 for this machine",
        created="2026-03-02T14:05:00+00:00",
        version="0.1.0",
        asked=Asked(
            model="cifar10_resnet56_jpeg.pt (edgekd:residual, 0.86 M parameters)",
            target="host: AMD EPYC, 2 cores, AVX2",
            data="cifar10/: 10 classes, 45,000 train, 2,500 select, 2,500 test",
            budget=budget,
            command="edgekd compress cifar10_resnet56_jpeg.pt --target host --data cifar10/ --max-latency-ms 0.5 "
            "--max-drop 0.01 --max-size-mib 1",
        ),
        verdict=verdict,
        choice=choice,
        steps=sample_steps(),
        profile=profile,
        evaluations=(*select, *test),
        reference="teacher-fp32",
        chosen="chosen",
        parity=sample_parity(),
        graph=sample_graph(),
        decisions=(
            "Decisions are taken on the select split; the test split is used once, for the teacher and for the chosen "
            "engine, and gives the verdict.",
            "FP16 is left out: no runtime of this target runs it faster than FP32.",
        ),
        environment={
            "machine": {"cpu_model": "AMD EPYC", "cores": 2, "memory_mib": 7936, "system": "Linux 6.1"},
            "versions": {"torch": "2.14.1", "onnxruntime": "1.31.1", "openvino": "2026.4.1", "nncf": "3.4.0"},
            "before": {"load_1m": 0.08, "governor": None, "frequency_mhz": 2445},
        },
        files=(
            DeliveredFile(path="model.onnx", size_bytes=209715, sha256="5e" * 32),
            DeliveredFile(path="preprocessing.json", size_bytes=214, sha256="0c" * 32),
            DeliveredFile(path="labels.txt", size_bytes=61, sha256="a7" * 32),
        ),
    )


def sample_choice(profile: ProfileReport) -> Choice:
    rejected = {}
    for entry in profile.entries:
        name = f"{entry.candidate}@{entry.runtime}"
        if (entry.candidate, entry.runtime) == (CHOSEN, RUNTIME):
            continue
        rejected[name] = (
            f"slower: {entry.latency.p50_ms:.3f} ms against 0.361 ms"
            if (entry.latency)
            else f"no latency: {entry.failure}"
        )
    rejected["student-pruned-int8-openvino@onnxruntime"] = (
        "INT8 is slower: 0.602 ms against 0.534 ms of its fp32 twin student-pruned-fp32@openvino"
    )
    rejected["pruned-int8-ort@onnxruntime"] = "1.6 points lost (95 % interval -0.1 to 3.4), the limit is 1.0 points"
    return Choice(
        candidate=CHOSEN,
        runtime=RUNTIME,
        precision="int8",
        reason="one of 21 engines that keep top-1 accuracy and size, the fastest of them: median 0.361 ms (95 % "
        "interval 0.360 to 0.363); 88.9 % top-1 accuracy on 2500 images, 0.8 points lost (95 % interval -0.9 to 2.5)",
        rejected=rejected,
        within_budget=True,
    )


def sample_steps() -> tuple[Step, ...]:
    def step(name: str, key: str, parent: str, branch: str, macs: float, params: float, **more: object) -> Step:
        _, accuracy, size, _, openvino = ENGINES[key]
        return Step.model_validate(
            {
                "name": name,
                "detail": key,
                "parent": parent,
                "branch": branch,
                "accuracy": evaluation(key, "openvino", accuracy),
                "size_mib": size,
                "params_m": params,
                "macs_m": macs,
                "latency_ms": openvino,
                "runtime": "OpenVINO",
                **more,
            }
        )

    teacher, student, cut, pruned = "teacher-fp32", "student-fp32", "student-pruned-fp32", "pruned-fp32"
    return (
        step("Teacher", teacher, "", "", 125.5, 0.856),
        step("Teacher, quantized alone", "teacher-int8-openvino", teacher, "", 125.5, 0.856, seconds=21.0),
        step("Distilled student", student, teacher, "student", 24.1, 0.274, seconds=1260.0),
        step("Pruned and recovered", cut, student, "student", 14.9, 0.158, seconds=610.0),
        step("Quantized", CHOSEN, cut, "student", 14.9, 0.158, seconds=9.4, chosen=True),
        step("Pruned teacher", pruned, teacher, "pruned", 62.0, 0.251, seconds=840.0, reused=True),
        step("Quantized", "pruned-int8-openvino", pruned, "pruned", 62.0, 0.251, seconds=12.0, reused=True),
    )


def sample_parity() -> tuple[ParityRow, ...]:
    return (
        ParityRow(
            node="student-pruned-fp32",
            against="the PyTorch student",
            samples=64,
            max_abs=3.1e-6,
            mean_abs=4.2e-7,
            cosine=0.9999999,
            top1_agreement=1.0,
        ),
        ParityRow(
            node=CHOSEN,
            against="student-pruned-fp32",
            samples=300,
            max_abs=0.41,
            mean_abs=0.06,
            cosine=0.9991,
            top1_agreement=0.993,
            sqnr_db=27.4,
        ),
    )


def sample_graph() -> tuple[GraphNode, ...]:
    def node(name: str, stage: str, *inputs: str, seconds: float = 1.0, **more: object) -> GraphNode:
        return GraphNode.model_validate(
            {"name": name, "stage": stage, "inputs": inputs, "seconds": seconds, "reasons": ["first time"], **more}
        )

    nodes = [
        node("calibration", "calibration", "@teacher"),
        node(
            "latency-model", "latency-model", seconds=6.2, decisions=("Latencies are predicted by a fitted roofline.",)
        ),
        node("search", "search", "@teacher", "latency-model", seconds=48),
        node("pick", "pick", "search", seconds=0.2),
        node("student", "distill", "pick", "@teacher", seconds=1260, decisions=("Trained with KD, T = 4.",)),
        node("student-cut", "prune", "student", seconds=3),
        node("student-pruned", "distill", "student-cut", "@teacher", seconds=607),
        node("pruned-cut", "prune", "@teacher", seconds=4, action="reuse"),
        node("pruned", "distill", "pruned-cut", "@teacher", seconds=836, action="reuse"),
    ]
    engines = []
    for model, source in (
        ("teacher", "@teacher"),
        ("student", "student"),
        ("student-pruned", "student-pruned"),
        ("pruned", "pruned"),
    ):
        reused = {"action": "reuse"} if model == "pruned" else {}
        nodes.append(node(f"{model}-fp32", "export", source, "calibration", seconds=8, **reused))
        engines.append(f"{model}-fp32")
        for form in ("ort", "openvino"):
            engines.append(f"{model}-int8-{form}")
            nodes.append(node(engines[-1], "quantize", f"{model}-fp32", "calibration", seconds=10, **reused))
    evaluations = [f"accuracy-{name}" for name in engines]
    nodes += [node(f"accuracy-{name}", "evaluate", name, seconds=2) for name in engines]
    nodes.append(node("profile", "profile", *engines, seconds=71))
    nodes.append(node("chosen", "select", *engines, "profile", *evaluations, seconds=0.1))
    nodes.append(node("test-teacher", "evaluate", "teacher-fp32", seconds=2))
    nodes.append(node("test-chosen", "evaluate", "chosen", seconds=1))
    nodes.append(node("gate", "gate", "chosen", "profile", "test-teacher", "test-chosen", seconds=0.1))
    return tuple(nodes)


def without_measurement() -> ReportData:
    """The same question for a device that is not at hand, without data."""
    entries = tuple(
        CandidateLatency(
            candidate=name,
            runtime="tensorrt",
            precision=precision,
            size_mib=size,
            prediction=PredictedLatency(
                runtime="tensorrt",
                precision=precision,
                threads=1,
                device="jetson-orin-nano",
                model="the card roofline of jetson-orin-nano, from operation counts",
                median_ms=ms,
                low_ms=0.9 * ms,
                high_ms=1.1 * ms,
                level=0.5,
                relative_error=0.1,
            ),
        )
        for name, precision, size, ms in (("teacher-fp32", "fp32", 3.27, 0.71), ("teacher-fp16", "fp16", 1.64, 0.42))
    )
    profile = ProfileReport(device="jetson-orin-nano", measured=False, threads=(1,), entries=entries)
    verdict = judge(
        device="jetson-orin-nano",
        latency=entries[1].latency,
        accuracy=None,
        reference=None,
        size_mib=1.64,
        budget=Budget(max_latency_ms=5.0),
    )
    choice = Choice(
        candidate="teacher-fp16",
        runtime="tensorrt",
        precision="fp16",
        reason="one of 2 engines that keep accuracy; nothing was measured on the target",
        rejected={"teacher-fp32@tensorrt": "predicted to be slower: 0.71 ms against 0.42 ms"},
        within_budget=False,
    )
    return ReportData(
        title="ResNet-56 for jetson-orin-nano",
        created="2026-03-02T14:05:00+00:00",
        version="0.1.0",
        asked=Asked(model="resnet56.pt", target="jetson-orin-nano", budget=Budget(max_latency_ms=5.0)),
        verdict=verdict,
        choice=choice,
        profile=profile,
        reference="teacher-fp32",
        next_steps=("Build the engine on the device: trtexec --onnx=model.onnx --saveEngine=model.engine --fp16",),
    )
