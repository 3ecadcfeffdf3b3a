"""Command lines of `trtexec`, held to the options that each release understands."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edgekd.runtimes.engines.command import BuildFiles, build_arguments, run_arguments, shown
from edgekd.runtimes.engines.settings import (
    BuildSettings,
    InputShapes,
    SettingsError,
    Version,
    settings_from_plain,
    version_from_text,
)
from tests.golden.trtexec_options import OPTIONS

KNOWN: dict[str, list[str]] = json.loads(OPTIONS.read_text())
FILES = BuildFiles("model.onnx", "model.engine", timing_cache="timing.cache", layers="layers.json")
ONE = (1, 3, 8, 8)
PLAIN = BuildSettings(inputs=(InputShapes("images", ONE, ONE, (4, 3, 8, 8)),), precision="int8")
EVERYTHING = replace(PLAIN, workspace_mib=512, optimization_level=4, tf32=False, sparsity=True, version_compatible=True)
ACCELERATOR = replace(PLAIN, inputs=(InputShapes("images", ONE, ONE, ONE),), dla_core=0)


def version(text: str) -> Version:
    return version_from_text(text)


def unknown(words: list[str], release: str) -> list[str]:
    return [word for word in words if word.partition("=")[0].removeprefix("--") not in KNOWN[release]]


@pytest.mark.parametrize("release", KNOWN)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_release_understands_every_option_that_it_is_given(release: str, precision: str) -> None:
    settings = PLAIN if release < "8.6" and release.startswith("8") else EVERYTHING
    words = build_arguments(replace(settings, precision=precision), version(release), FILES)
    assert unknown(words, release) == []
    run = run_arguments("e", version(release), inputs={"images": "x"}, shapes={"images": ONE}, outputs="o", seconds=2)
    assert unknown(run, release) == []


def test_the_check_of_options_can_fail() -> None:
    assert unknown(["--buildOnly", "--workspace=1"], "10.3.0") == ["--buildOnly", "--workspace=1"]
    assert unknown(["--fp16", "--int8"], "11.0.0") == ["--fp16", "--int8"]


@pytest.mark.parametrize(
    ("release", "precision", "allow_fp16", "expected"),
    [
        ("8.6.1", "fp32", False, []),
        ("8.6.1", "fp16", False, ["--fp16"]),
        ("8.6.1", "int8", False, ["--int8", "--fp16"]),
        ("10.3.0", "fp32", False, ["--stronglyTyped"]),
        ("10.3.0", "int8", False, ["--stronglyTyped"]),
        ("10.3.0", "int8", True, ["--int8", "--fp16"]),
        ("10.3.0", "fp32", True, ["--fp16"]),
        ("11.0.0", "int8", False, []),
        ("11.0.0", "fp16", False, []),
    ],
)
def test_the_types_of_the_graph_are_binding_where_they_can_be_and_allowed_where_they_cannot(
    release: str, precision: str, allow_fp16: bool, expected: list[str]
) -> None:
    settings = replace(PLAIN, precision=precision, allow_fp16=allow_fp16)
    words = build_arguments(settings, version(release), FILES)
    assert [word for word in words if word in ("--fp16", "--int8", "--stronglyTyped")] == expected


def test_a_whole_command_holds_shapes_limits_and_files() -> None:
    words = build_arguments(replace(EVERYTHING, hardware_compatible=True), (10, 3, 0), FILES)
    assert shown("trtexec", words) == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=images:1x3x8x8 --optShapes=images:1x3x8x8 "
        "--maxShapes=images:4x3x8x8 --stronglyTyped --noTF32 --memPoolSize=workspace:512 --builderOptimizationLevel=4 "
        "--sparsity=enable --versionCompatible --hardwareCompatibilityLevel=ampere+ --timingCacheFile=timing.cache "
        "--profilingVerbosity=detailed --exportLayerInfo=layers.json --skipInference"
    )


def test_an_accelerator_is_given_with_the_gpu_behind_it_and_8_5_ends_in_its_own_way() -> None:
    words = build_arguments(ACCELERATOR, (8, 5, 2), BuildFiles("m", "e"))
    assert words[-3:] == ["--useDLACore=0", "--allowGPUFallback", "--buildOnly"]
    assert unknown(words, "8.5.3") == []
    assert unknown(build_arguments(ACCELERATOR, (10, 7, 0), FILES), "10.7.0") == []


@pytest.mark.parametrize(
    ("changes", "release", "message"),
    [
        ({}, (10, 8, 0), "TensorRT 10.8.0 has no deep learning accelerators: 10.7 was the last, 11.4.1 has them again"),
        ({}, (11, 4, 0), "TensorRT 11.4.0 has no deep learning accelerators"),
        ({"hardware_compatible": True}, (10, 3, 0), "cannot be compatible with other hardware"),
        ({"precision": "fp32"}, (10, 3, 0), "computes in FP16 and INT8, and the graph is in FP32"),
        ({"inputs": PLAIN.inputs}, (10, 3, 0), "takes one shape"),
    ],
)
def test_what_an_accelerator_does_not_do_is_refused(changes: dict[str, object], release: Version, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_arguments(replace(ACCELERATOR, **changes), release, FILES)  # type: ignore[arg-type]
    assert "--useDLACore=0" in build_arguments(ACCELERATOR, (11, 4, 1), FILES)


def test_a_graph_of_one_shape_is_given_none() -> None:
    words = build_arguments(replace(PLAIN, inputs=()), (10, 3, 0), FILES)
    assert not [word for word in words if "Shapes" in word]


def test_a_run_writes_its_outputs_and_in_11_copies_them_back() -> None:
    older, newer = (
        run_arguments("e", v, inputs={"images": "x.bin"}, shapes={}, outputs="o", seconds=0)
        for v in ((10, 3, 0), (11, 0, 0))
    )
    assert older == [
        "--loadEngine=e", "--loadInputs=images:x.bin", "--exportOutput=o",
        "--warmUp=0", "--duration=0", "--iterations=1",
    ]  # fmt: skip
    assert newer == [*older, "--includeDataTransfers"]


def test_an_engine_with_a_runtime_of_its_own_is_only_run_when_that_is_allowed() -> None:
    words = run_arguments("e", (10, 3, 0), inputs={"images": "x"}, shapes={}, outputs="o", seconds=1, host_code=True)
    assert words[-1] == "--versionCompatible"


def test_names_that_a_shell_would_read_are_quoted() -> None:
    assert shown("trtexec", ["--minShapes=input (1):1x3"]) == "trtexec '--minShapes=input (1):1x3'"


@pytest.mark.parametrize(
    ("changes", "release", "message"),
    [
        ({}, (8, 2, 0), "TensorRT 8.2.0 is outside of what edgekd builds for"),
        ({}, (12, 0, 0), "TensorRT 12.0.0 is outside"),
        ({"optimization_level": 3}, (8, 5, 2), "cannot give an optimisation level: it came with 8.6"),
        ({"version_compatible": True}, (8, 5, 2), "cannot give a version-compatible engine"),
        ({"hardware_compatible": True}, (8, 5, 2), "cannot give a hardware-compatible engine"),
        ({"allow_fp16": True}, (11, 0, 0), "half precision must be in the graph"),
    ],
)
def test_what_a_release_cannot_do_is_refused_and_not_left_out(
    changes: dict[str, object], release: Version, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        build_arguments(replace(PLAIN, **changes), release, FILES)  # type: ignore[arg-type]


def test_settings_survive_the_way_to_another_process() -> None:
    assert settings_from_plain(json.loads(json.dumps(EVERYTHING.plain()))) == EVERYTHING


@pytest.mark.parametrize(("text", "found"), [("10.3.0.26", (10, 3, 0)), ("8.6", (8, 6, 0)), ("11.4.0.106", (11, 4, 0))])
def test_versions_are_their_first_three_numbers(text: str, found: Version) -> None:
    assert version_from_text(text) == found
    with pytest.raises(SettingsError, match="is no version"):
        version_from_text("unknown")
