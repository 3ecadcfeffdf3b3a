"""The shape of graphs: what is drafted, what is left out, and that both are said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.graph import validate_graph
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report import Budget
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.compose import Composition, compose
from edgekd.pipeline.request import SYNTHETIC, ModelSource, Options, Request
from edgekd.pipeline.situation import Situation, runtimes_of
from edgekd.pipeline.stages import STAGES
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.targets.load import load_target
from edgekd.testing.toy_data import toy_dataset

LARGE = ModelRecipe(
    builder="edgekd:residual",
    kwargs={"depths": [3, 3, 3], "widths": [16, 16, 32, 64], "classes": 4, "in_channels": 3},
    preprocessing=Preprocessing(size=(32, 32)),
)


def composed(
    folder: Path,
    *,
    dataset: Dataset | None = None,
    data: str | None = "data.npz",
    target: str = "host",
    trainable: bool = True,
    budget: Budget | None = None,
    teacher_logits: str | None = None,
    on_board: bool = False,
    **options: object,
) -> Composition:
    card = load_target(target)
    module = module_from_recipe(LARGE)
    situation = Situation(
        teacher=bundle_from_module(module, recipe=LARGE, blobs=FolderBlobs(folder / "blobs"), scratch=folder),
        teacher_macs=count_macs(module, (3, 32, 32)),
        trainable=trainable,
        dataset=dataset,
        target=card,
        runtimes=runtimes_of(card)[0],
        on_board=on_board,
    )
    request = Request(
        model=ModelSource(path="m.pt"),
        target=target,
        data=data,
        teacher_logits=teacher_logits,
        budget=budget or Budget(),
    )
    found = compose(request, Options.parse(options, "test"), situation)
    validate_graph(found.graph, STAGES)
    return found


def names(found: Composition) -> set[str]:
    return {node.name for node in found.graph.nodes}


def labelled(n: int = 640) -> Dataset:
    return toy_dataset(n=n, size=32)


def test_the_whole_chain_stands_for_labelled_data(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled())
    chain = {
        "search",
        "pick",
        "student-distill",
        "student-prune",
        "student-recover",
        "teacher-prune",
        "teacher-recover",
    }
    assert chain | {"teacher-fp32", "student-pruned-int8-ort", "profile", "chosen", "test-chosen", "gate"} <= names(
        found
    )


def test_each_pick_has_a_branch_of_its_own(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), picks=2, students=["search"])
    assert {"student-1-recover", "student-2-recover", "pick-1", "pick-2"} <= names(found)
    assert "teacher-prune" not in names(found)


def test_no_data_leaves_what_needs_none_and_says_what_data_would_add(tmp_path: Path) -> None:
    found = composed(tmp_path, data=None, target="jetson")
    assert names(found) == {"teacher-fp32", "teacher-fp16", "profile", "chosen", "gate"}
    assert any("--data" in sentence for sentence in found.decisions)


def test_no_data_on_a_cpu_gives_weight_only_int8(tmp_path: Path) -> None:
    assert "teacher-int8-weights" in names(composed(tmp_path, data=None))


def test_synthetic_images_calibrate_and_judge_no_accuracy(tmp_path: Path) -> None:
    found = composed(tmp_path, data=SYNTHETIC)
    assert {"calibration", "teacher-int8-ort"} <= names(found)
    assert not any(name.startswith(("accuracy-", "test-")) for name in names(found))
    assert any("labelled synthetic" in sentence for sentence in found.decisions)


def test_unlabelled_images_are_judged_by_agreement_with_the_teacher(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=toy_dataset(n=640, size=32, labelled=False))
    accuracy = next(node for node in found.graph.nodes if node.name == "accuracy-student-fp32")
    assert accuracy.inputs["teacher"] == ("@teacher",)


def test_an_objective_that_needs_labels_is_refused_without_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs labels") as refused:
        composed(tmp_path, dataset=toy_dataset(n=640, size=32, labelled=False), objective="dkd")
    assert "--objective kd" in str(refused.value)


def test_a_frozen_teacher_is_not_pruned_and_that_is_said(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), trainable=False)
    assert "teacher-prune" not in names(found)
    assert any("not pruned" in sentence for sentence in found.decisions)


def test_too_few_images_leave_the_search_out(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(n=80))
    assert "search" not in names(found)
    assert any("too few" in sentence for sentence in found.decisions)


def test_the_teacher_is_asked_once_by_its_graph_or_where_an_objective_looks_inside_by_itself(tmp_path: Path) -> None:
    asked = {
        objective: next(
            node
            for node in composed(tmp_path, dataset=labelled(), objective=objective).graph.nodes
            if node.name == "teacher-answers"
        )
        for objective in ("kd", "kdpp")
    }
    assert asked["kd"].inputs == {"teacher": ("teacher-fp32",)}
    assert "signals" not in asked["kd"].config
    assert asked["kdpp"].inputs == {"teacher": ("@teacher",)}
    assert asked["kdpp"].config["signals"] == ["embedding"]
    assert asked["kdpp"].config["capacity_mib"] == 1024


def test_an_objective_that_reads_logits_alone_shares_answers_and_one_without_a_teacher_asks_for_none(
    tmp_path: Path,
) -> None:
    assert "teacher-answers" in names(composed(tmp_path, dataset=labelled(), objective="ofa"))
    assert "teacher-answers" not in names(composed(tmp_path, dataset=labelled(), objective="pskd"))


def test_a_latency_budget_reaches_search_and_pruning(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), budget=Budget(max_latency_ms=2.0))
    configs = {node.name: node.config for node in found.graph.nodes}
    assert configs["search"]["budget_ms"] == 2.0
    assert configs["teacher-prune"]["budget_ms"] == 2.0


def test_a_distant_target_takes_its_latency_model_from_the_card(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), target="jetson", budget=Budget(max_latency_ms=2.0))
    search = next(node for node in found.graph.nodes if node.name == "search")
    assert isinstance(search.config["latency_model"], dict)
    assert "latency-model" not in names(found)


def test_int8_for_tensorrt_has_a_twin_with_float16_between_where_types_are_binding(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), target="jetson", quantize="qat")
    nodes = {node.name: node for node in found.graph.nodes}
    for plain in ("teacher-int8-trt", "teacher-int8-trt-qat"):
        half = nodes[f"{plain}-fp16"]
        assert half.stage == "int8-fp16"
        assert half.inputs == {"model": (plain,), "samples": ("calibration",)}
        assert {plain, half.name} <= set(nodes["chosen"].inputs["candidates"])
    older = composed(tmp_path, dataset=labelled(), target="jetson-xavier-nx")
    assert "teacher-int8-trt" in names(older)
    assert "teacher-int8-trt-fp16" not in names(older)
    assert not any(node.stage == "int8-fp16" for node in composed(tmp_path, dataset=labelled()).graph.nodes)


def test_quantized_distillation_ends_a_branch(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), weight_bits=4)
    assert {"student-qd4", "teacher-qd4", "student-w4-fp32"} <= names(found)


def test_every_calibrated_engine_has_a_trained_twin_when_asked_for(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), quantize="qat", weight_bits=4, epochs=40)
    nodes = {node.name: node for node in found.graph.nodes}
    twin = nodes["student-int8-ort-qat"]
    assert twin.stage == "qat"
    assert twin.inputs == {"model": ("student-int8-ort",), "teacher": ("@teacher",), "answers": ("teacher-answers",)}
    assert (twin.config["epochs"], twin.config["lr"]) == (4, 0.001)
    assert {"student-int8-ort", "student-int8-ort-qat"} <= set(nodes["chosen"].inputs["candidates"])
    assert "teacher-int8-ort-qat" in nodes
    assert "student-w4-int8-ort" in nodes
    assert "student-w4-int8-ort-qat" not in nodes  # It would leave the grid of its weights.
    assert not any("qat" in name for name in names(composed(tmp_path, dataset=labelled())))


def test_training_quantizers_needs_images_and_an_objective_on_logits(tmp_path: Path) -> None:
    said = composed(tmp_path, data=None, quantize="qat").decisions
    assert any("--quantize qat was ignored" in line for line in said)
    found = composed(tmp_path, dataset=labelled(), quantize="qat", objective="rkd")
    assert sum("so it uses kd" in line for line in found.decisions) == 1
    assert {n.config["objective"] for n in found.graph.nodes if n.stage == "qat"} == {"kd"}


def test_a_pool_is_gathered_from_once_for_every_training_and_for_the_answers(tmp_path: Path) -> None:
    data = labelled()
    pooled = data.with_pool(data.select, data.digest, "a pool")
    found = composed(tmp_path, dataset=pooled, quantize="qat", weight_bits=4)
    assert "gathered" in names(found)
    trained = [node for node in found.graph.nodes if node.stage in ("distill", "quantized-distill", "qat", "teach")]
    assert len(trained) > 5
    assert all(node.inputs["pool"] == ("gathered",) for node in trained)
    assert "gathered" not in names(composed(tmp_path, dataset=data))


def test_a_pool_serves_the_training_of_quantizers_alone_and_is_said_to_serve_nothing_else(tmp_path: Path) -> None:
    data = labelled()
    pooled = data.with_pool(data.select, data.digest, "a pool")
    found = composed(tmp_path, dataset=pooled, students=(), quantize="qat")
    trained = [node for node in found.graph.nodes if node.stage == "qat"]
    assert trained
    assert all(node.inputs["pool"] == ("gathered",) for node in trained)
    idle = composed(tmp_path, dataset=pooled, students=())
    assert "gathered" not in names(idle)
    assert "Nothing is trained, so the images of --unlabelled are not looked at." in idle.decisions


def test_hard_augmentation_without_a_teacher_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the objective 'pskd' asks no teacher"):
        composed(tmp_path, dataset=labelled(), hard_augment=0.4, objective="pskd")


def test_a_sum_of_objectives_reaches_every_training_and_qat_keeps_those_that_read_logits(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), objective="kd:0.5+at:1000", quantize="qat")
    nodes = {node.name: node for node in found.graph.nodes}
    terms = [{"name": "kd", "weight": 0.5}, {"name": "at", "weight": 1000.0}]
    assert nodes["student-distill"].config["objectives"] == nodes["teacher-recover"].config["objectives"] == terms
    assert "objective" not in nodes["student-distill"].config
    assert nodes["student-int8-ort-qat"].config["objectives"] == terms[:1]
    assert nodes["teacher-answers"].config["signals"] == ["feature_map"], "one of the two looks inside"
    assert any("so it uses kd." in line for line in found.decisions)
    with pytest.raises(UserError, match="needs labels"):
        composed(tmp_path, dataset=toy_dataset(n=640, size=32, labelled=False), objective="kd+dkd")
    with pytest.raises(UserError, match="Did you mean 'dist'"):
        composed(tmp_path, dataset=labelled(), objective="kd+dsit")


def test_logits_of_another_teacher_take_the_place_of_the_model_as_the_teacher(tmp_path: Path) -> None:
    data, logits = labelled(), np.zeros((2, 512, 4), dtype=np.float32)
    np.save(tmp_path / "views.npy", logits)
    np.save(tmp_path / "plain.npy", logits[0])
    found = composed(tmp_path, dataset=data, quantize="qat", teacher_logits=str(tmp_path / "views.npy"))
    trained = [node for node in found.graph.nodes if node.stage in ("distill", "qat")]
    assert all(node.inputs["answers"] == ("teacher-logits",) and "teacher" not in node.inputs for node in trained)
    assert {node.config["teacher_views"] for node in trained} == {2}
    stored = next(node for node in found.graph.nodes if node.stage == "stored-logits")
    assert stored.config["augment"] == trained[0].config["augment"] != {}
    assert "teacher-answers" not in names(found)

    plain = composed(tmp_path, dataset=data, teacher_logits=str(tmp_path / "plain.npy"))
    assert all(node.config["augment"] == {} for node in plain.graph.nodes if node.stage == "distill")
    assert any("as they are, so no training varies them" in line for line in plain.decisions)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "at"}, "reads the inside of a teacher"),
        ({"objective": "kd:1+dml:1"}, "'dml' trains the teacher along, and there are only its logits"),
        ({"hard_augment": 0.4}, "varies images anew"),
        ({"teacher_logits": "nowhere.npy"}, "No such file"),
    ],
)
def test_what_stored_logits_cannot_serve_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, object], said: str
) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((512, 4), dtype=np.float32))
    with pytest.raises(UserError, match=said):
        composed(tmp_path, dataset=labelled(), **{"teacher_logits": str(tmp_path / "plain.npy"), **options})


def test_hard_augmentation_asks_the_teacher_live_in_every_training(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), hard_augment=0.4, quantize="qat", weight_bits=4)
    assert "teacher-answers" not in names(found)
    trained = [node for node in found.graph.nodes if node.stage in ("distill", "quantized-distill", "qat")]
    assert len(trained) > 5
    assert all((node.config["hard"], node.config["teacher_views"]) == (0.4, 0) for node in trained)
    assert all("answers" not in node.inputs for node in trained)
    assert any("--hard-augment" in line for line in found.decisions)


def test_another_number_of_picks_leaves_the_search_as_it_is(tmp_path: Path) -> None:
    searches = [
        next(node for node in composed(tmp_path, dataset=labelled(), picks=picks).graph.nodes if node.name == "search")
        for picks in (1, 3)
    ]
    assert searches[0] == searches[1]


def test_a_pick_sees_the_teacher_whose_weights_it_may_start_from(tmp_path: Path) -> None:
    pick = next(node for node in composed(tmp_path, dataset=labelled()).graph.nodes if node.name == "pick")
    assert pick.inputs["teacher"] == ("@teacher",)


def test_the_searcher_that_is_asked_for_reaches_the_search(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), searcher="nsga2", proxy="naswot")
    search = next(node for node in found.graph.nodes if node.name == "search")
    assert (search.config["searcher"], search.config["proxy"]) == ("nsga2", "naswot")


def test_a_limit_of_the_drop_reaches_every_int8_engine(tmp_path: Path) -> None:
    budget = Budget(max_drop=0.02, drop_type="relative")
    limited, free = composed(tmp_path, dataset=labelled(), budget=budget), composed(tmp_path, dataset=labelled())
    for found, limit in ((limited, 0.02), (free, None)):
        configs = [node.config for node in found.graph.nodes if node.stage == "quantize"]
        assert len(configs) > 4
        assert {config.get("max_drop") for config in configs} == {limit}
    assert configs[0].get("drop_type") is None


def test_mixed_precision_is_a_ladder_of_candidates_that_follow_one_table(tmp_path: Path) -> None:
    found = composed(tmp_path, dataset=labelled(), mixed=2)
    nodes = {node.name: node for node in found.graph.nodes}
    assert nodes["teacher-int8-ort-sensitivity"].stage == "sensitivity"
    for rung in (1, 2):
        node = nodes[f"teacher-int8-ort-mixed{rung}"]
        assert node.config["revert"] == rung
        assert node.inputs["sensitivity"] == ("teacher-int8-ort-sensitivity",)
    for judge in ("profile", "chosen"):
        assert {"teacher-int8-ort", "teacher-int8-ort-mixed1"} <= set(nodes[judge].inputs["candidates"])
    assert "accuracy-teacher-int8-ort-mixed2" in nodes


def installed(monkeypatch: pytest.MonkeyPatch, answer: Availability) -> None:
    """What the converters and their runtimes say of this machine."""
    for name in CONVERTERS:
        for half in (CONVERTERS.get(name), RUNTIMES.get(name)):
            monkeypatch.setattr(type(half), "availability", lambda self: answer)


def test_runtimes_of_the_card_that_read_no_graph_get_engines_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, Availability(ok=True, version="1"))
    found = composed(tmp_path, dataset=labelled(), target="raspberry-pi-5", students=[])
    made = {node.name: node for node in found.graph.nodes if node.stage == "convert"}
    wanted = {"teacher-fp32-executorch", "teacher-int8-executorch", "teacher-fp32-ncnn", "teacher-fp16-ncnn"}
    wanted |= {"teacher-fp32-litert", "teacher-int8-litert"}
    assert set(made) == wanted
    assert made["teacher-int8-executorch"].inputs == {"model": ("@teacher",), "samples": ("calibration",)}
    chosen = next(node for node in found.graph.nodes if node.name == "chosen")
    assert wanted < set(chosen.inputs["candidates"])
    accuracy = next(node for node in found.graph.nodes if node.name == "accuracy-teacher-fp16-ncnn")
    assert accuracy.config["runtimes"] == ["ncnn"]
    assert "teacher-fp16" not in names(found), "no runtime of the card reads FP16 graphs"


def test_without_data_no_engine_that_needs_calibration_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, Availability(ok=True, version="1"))
    found = names(composed(tmp_path, data=None, target="raspberry-pi-4", students=[]))
    assert "teacher-fp32-executorch" in found
    assert not {"teacher-int8-executorch", "teacher-fp16-ncnn"} & found


def test_a_missing_converter_is_said_once_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, Availability(ok=False, reason="it is not there", install="pip install it"))
    found = composed(tmp_path, dataset=labelled(), target="raspberry-pi-5")
    said = [sentence for sentence in found.decisions if "it is not there" in sentence]
    absent = ("executorch", "ncnn", "litert")
    assert said == [f"No {name} engines are made: it is not there (pip install it)." for name in absent]
    assert not any(node.stage == "convert" for node in found.graph.nodes)
