"""What each engine is compared with, what it is called, and where its latency holds."""

from __future__ import annotations

from pathlib import Path

from edgekd.core.graph import Graph
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.steps import _title, parents_of, steps_of, table_of
from tests.pipeline.finished import results
from tests.pipeline.test_compose import composed, labelled


def test_an_engine_is_compared_with_what_it_was_made_from(tmp_path: Path) -> None:
    parents = parents_of(composed(tmp_path, dataset=labelled(), weight_bits=4).graph)
    assert next(iter(parents)) == "teacher-fp32"
    assert {name: parent for name, parent in parents.items() if name.endswith("-fp32")} == {
        "teacher-fp32": "",
        "student-fp32": "teacher-fp32",
        "student-pruned-fp32": "student-fp32",
        "student-w4-fp32": "student-pruned-fp32",
        "teacher-pruned-fp32": "teacher-fp32",
        "teacher-w4-fp32": "teacher-pruned-fp32",
    }
    assert parents["teacher-int8-ort"] == "teacher-fp32"
    assert parents["student-pruned-int8-ort"] == "student-pruned-fp32"
    assert parents["student-w4-int8-ort"] == "student-w4-fp32"


def test_every_picked_student_is_compared_with_the_teacher_and_not_with_its_neighbour(tmp_path: Path) -> None:
    parents = parents_of(composed(tmp_path, dataset=labelled(), picks=2, students=["search"]).graph)
    assert parents["student-1-fp32"] == parents["student-2-fp32"] == "teacher-fp32"
    assert parents["student-2-pruned-fp32"] == "student-2-fp32"


def built() -> Graph:
    draft = Draft()
    for label, model in (("teacher", TEACHER), ("student", "student-distill")):
        if model != TEACHER:
            draft.add(model, "distill", {}, {"student": TEACHER})
        draft.add(f"{label}-fp32", "export", {}, {"model": model})
        draft.add(f"{label}-fp16", "fp16", {}, {"model": f"{label}-fp32"})
        draft.add(f"{label}-fp32-engine", "build", {}, {"model": f"{label}-fp32"})
        draft.add(f"{label}-fp16-engine", "build", {}, {"model": f"{label}-fp16"})
    names = [node.name for node in draft.nodes if node.stage == "build"]
    draft.add("chosen", "select", {}, {"candidates": names})
    return draft.graph()


def test_engines_that_tensorrt_built_are_compared_with_each_other() -> None:
    assert parents_of(built()) == {
        "teacher-fp32-engine": "",
        "teacher-fp16-engine": "teacher-fp32-engine",
        "student-fp32-engine": "teacher-fp32-engine",
        "student-fp16-engine": "student-fp32-engine",
    }


def test_the_chosen_engine_shows_its_latency_where_it_is_deployed_and_others_their_best() -> None:
    teacher, student, chosen = steps_of(results())
    assert (teacher.latency_ms, teacher.runtime) == (2.0, "openvino")
    assert (student.latency_ms, student.runtime) == (1.0, "onnxruntime")
    assert (chosen.latency_ms, chosen.runtime, chosen.chosen) == (0.5, "onnxruntime", True)
    assert (teacher.parent, student.parent, chosen.parent) == ("", "teacher-fp32", "student-fp32")


def test_names_are_for_people() -> None:
    assert [step.name for step in steps_of(results())] == [
        "Teacher, FP32",
        "Student, distilled, FP32",
        "Student, distilled, INT8 (ort-u8s8)",
    ]


def test_bits_of_quantized_distillation_are_spelled_out() -> None:
    assert _title("student-2-qd4") == "Student 2, 4-bit weights"
    assert _title("teacher-recover") == "Teacher, pruned"
    assert _title("student-2-recover-1") == "Student 2, pruned, cut 1"


def test_the_table_says_which_metric_it_shows() -> None:
    steps = steps_of(results("agreement"))
    title, columns, rows = table_of(steps, "agreement")
    assert columns[1] == "agreement with the teacher"
    assert title == "What each model buys (agreement with the teacher on the select split, median latency)"
    assert columns[2] == "vs FP32"
    assert rows[2][:5] == ["→ Student, distilled, INT8 (ort-u8s8)", "90.0 %", "0.0 points", "1.00 MiB", "0.500 ms"]
    assert [row[2] for row in rows[:2]] == ["", ""]  # the student's FP32 engine is no twin of the teacher's
    assert table_of(steps, "top1")[1][1] == "top-1 accuracy"
    assert table_of(steps, None)[0] == "What each model buys (median latency)"


def test_what_int8_costs_is_seen_for_every_model_and_not_mixed_with_what_distilling_cost() -> None:
    teacher, student, chosen = steps_of(results())
    assert chosen.accuracy is not None
    worse = chosen.accuracy.model_copy(update={"value": 0.857})
    mixed = chosen.model_copy(update={"name": f"{chosen.name}, 4 layers in float", "accuracy": worse})
    trained = mixed.model_copy(update={"name": "Student, distilled, INT8 (ort-u8s8, trained)"})
    rows = table_of((teacher, student, chosen, mixed, trained), "top1")[2]
    assert [row[2] for row in rows] == ["", "", "0.0 points", "-4.3 points", "-4.3 points"]
