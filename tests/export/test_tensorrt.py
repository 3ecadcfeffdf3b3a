"""Settings and commands from bundles and cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import ModelBundle, TensorSpec
from edgekd.core.stage import Context
from edgekd.errors import UserError
from edgekd.export.tensorrt import (
    BuildConfig,
    batches_from_shapes,
    build_command,
    commands_for,
    newest_command,
    outside_of_card,
    require_read,
    settings_for,
    types_strongly,
    versions_of,
)
from edgekd.runtimes.engines.settings import InputShapes
from edgekd.targets.load import load_target
from edgekd.targets.schema import Target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle

JETSON = load_target("jetson")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


@pytest.fixture
def model(ctx: Context) -> ModelBundle:
    return toy_onnx_bundle(ctx.blobs, ctx.scratch)


def tagged(model: ModelBundle, **tags: str) -> ModelBundle:
    return model.model_copy(update={"tags": tags})


def with_versions(text: str) -> Target:
    supports = [entry.model_copy(update={"versions": text}) for entry in JETSON.runtimes]
    return JETSON.model_copy(update={"runtimes": tuple(supports)})


def test_settings_take_shapes_from_the_graph_precision_from_its_tags_and_memory_from_the_card(
    model: ModelBundle,
) -> None:
    settings = settings_for(
        tagged(model, precision="fp16", sparsity="2:4"), BuildConfig(opt_batch=2, max_batch=4), JETSON
    )
    assert settings.inputs == (InputShapes("images", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)),)
    assert (settings.precision, settings.sparsity) == ("fp16", True)
    assert settings.workspace_mib == JETSON.memory_mib // 4
    assert settings_for(model, BuildConfig(workspace_mib=7), JETSON).workspace_mib == 7
    assert settings_for(model, BuildConfig(), None).workspace_mib is None


def test_a_graph_of_one_batch_has_no_profile_and_takes_no_other_batch(model: ModelBundle) -> None:
    fixed = model.model_copy(update={"inputs": (TensorSpec(name="images", shape=(1, 3, 8, 8), dtype="float32"),)})
    assert settings_for(fixed, BuildConfig(), JETSON).inputs == ()
    with pytest.raises(UserError, match="The batch of images is fixed to 1 in the graph, and 4 was asked for"):
        settings_for(fixed, BuildConfig(max_batch=4), JETSON)


def test_free_axes_beside_the_batch_are_refused(model: ModelBundle) -> None:
    free = model.model_copy(update={"inputs": (TensorSpec(name="images", shape=("N", 3, "H", "W"), dtype="float32"),)})
    with pytest.raises(UserError, match=r"images has free axes beside the batch \(Nx3xHxW\)"):
        settings_for(free, BuildConfig(), JETSON)


def test_batches_that_do_not_rise_are_refused() -> None:
    with pytest.raises(UserError, match="batches must rise: min_batch 1, opt_batch 8, max_batch 4"):
        BuildConfig.parse({"opt_batch": 8, "max_batch": 4}, "the flags")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.5 (JetPack 5), 8.6 (JetPack 6.0), 10.3 (JetPack 6.1 and 6.2)", ((8, 5, 0), (8, 6, 0), (10, 3, 0))),
        ("8.2 (JetPack 4.6), 8.5 (JetPack 5)", ((8, 5, 0),)),
        (">=8.6", ((8, 6, 1), (10, 3, 0), (11, 0, 0))),
        ("", ((8, 5, 3), (8, 6, 1), (10, 3, 0), (11, 0, 0))),
    ],
)
def test_a_card_names_releases_and_its_jetpacks_are_none(text: str, expected: tuple[tuple[int, int, int], ...]) -> None:
    assert versions_of(with_versions(text)) == expected


def test_a_release_outside_of_the_card_is_said() -> None:
    assert outside_of_card(JETSON, (10, 7, 0)) == ""
    said = outside_of_card(JETSON, (11, 0, 0))
    assert "TensorRT 11.0.0 is outside of what the card jetson-orin-nano names: 8.5 (JetPack 5)" in said


def test_every_release_of_a_card_has_its_own_command(model: ModelBundle) -> None:
    found = commands_for(JETSON, tagged(model, precision="int8"))
    assert list(found) == ["8.5", "8.6", "10"]
    assert found["8.5"].endswith("--int8 --fp16 --memPoolSize=workspace:1905 --buildOnly")
    assert found["8.6"].endswith("--int8 --fp16 --memPoolSize=workspace:1905 --skipInference")
    assert found["10"].endswith("--stronglyTyped --memPoolSize=workspace:1905 --skipInference")
    asked = commands_for(JETSON, model, BuildConfig(optimization_level=5))
    assert asked["8.5"] == "not possible: TensorRT 8.5.0 cannot give an optimisation level: it came with 8.6"


def test_float16_scales_are_for_10_and_newer(model: ModelBundle) -> None:
    found = commands_for(JETSON, tagged(model, precision="int8", scheme="tensorrt-s8-fp16"))
    assert found["8.6"].startswith("not possible: TensorRT 8.6.0 does not read scales in float16, which came with 10")
    assert found["10"].endswith("--stronglyTyped --memPoolSize=workspace:1905 --skipInference")
    require_read(tagged(model, precision="int8", scheme="tensorrt-s8-fp16"))
    assert [types_strongly(with_versions(text)) for text in (">=8.6", "8.2, 8.5", "8.6, 10.3")] == [True, False, True]


def test_the_command_that_is_told_is_one(model: ModelBundle) -> None:
    found = commands_for(load_target("nvidia-gpu"), model, BuildConfig(allow_fp16=True))
    assert found["11"].startswith("not possible: ")
    assert newest_command(found) == found["10"]
    assert newest_command({"11": found["11"]}) == found["11"]


def test_the_command_of_the_newest_release_holds_the_shapes(model: ModelBundle) -> None:
    assert build_command(JETSON, tagged(model, precision="fp16", sparsity="2:4"), max_batch=4) == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=images:1x3x8x8 --optShapes=images:1x3x8x8 "
        "--maxShapes=images:4x3x8x8 --stronglyTyped --memPoolSize=workspace:1905 --sparsity=enable --skipInference"
    )


def test_a_target_without_tensorrt_and_a_scheme_of_another_runtime_are_refused(model: ModelBundle) -> None:
    with pytest.raises(UserError, match="does not run TensorRT; it runs onnxruntime"):
        build_command(load_target("x86-cpu"), model)
    with pytest.raises(UserError, match="does not take the quantization scheme 'ort-u8s8'"):
        require_read(tagged(model, precision="int8", scheme="ort-u8s8"))
    require_read(tagged(model, precision="int8", scheme="tensorrt-s8"))


def test_shapes_of_the_command_line_are_batches(model: ModelBundle) -> None:
    given = {"min": "images:1x3x8x8", "opt": "2x3x8x8", "max": None}
    assert batches_from_shapes(given, model) == {"min_batch": 1, "opt_batch": 2}


@pytest.mark.parametrize("text", ["images:4x3x9x8", "pixels:4x3x8x8", "images:4x3x8", "images:0x3x8x8", "four"])
def test_shapes_that_the_graph_does_not_take_are_refused(text: str, model: ModelBundle) -> None:
    with pytest.raises(UserError, match=r"--max-shapes .*: the graph's input is images:Nx3x8x8"):
        batches_from_shapes({"max": text}, model)
