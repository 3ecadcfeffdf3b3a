"""The choice: fastest that keeps accuracy, and INT8 only where it earns its place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.packing import packed
from edgekd.core.report import Budget, Choice, Evaluation, ProfileReport
from edgekd.errors import UserError
from edgekd.gate.candidates import Candidate
from edgekd.gate.choose import choose
from tests.gate.results import accuracy, candidates, entry, prediction, profile

BUDGET = Budget(max_drop=0.01)
NAMES = ("teacher-fp32", "student-fp32", "student-int8")


def chosen(report: ProfileReport, evaluations: list[Evaluation], budget: Budget = BUDGET) -> Choice:
    names = dict.fromkeys(entry.candidate for entry in report.entries)
    runtimes = {"fp32": "tensorrt", "fp16": "tensorrt", "int8": "tensorrt"}
    return choose(candidates(*names), report, evaluations, budget, reference="teacher-fp32", runtimes=runtimes)


def test_the_fastest_engine_that_keeps_accuracy_wins() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("student-fp32", 1.0), entry("student-int8", 0.5))
    choice = chosen(report, [accuracy(name, 0.9) for name in NAMES])
    assert (choice.candidate, choice.runtime, choice.precision) == ("student-int8", "onnxruntime", "int8")
    assert choice.within_budget
    assert choice.reason.startswith("one of 3 engines that keep top-1 accuracy, the fastest of them: median 0.500 ms")
    assert choice.rejected["teacher-fp32@onnxruntime"] == "slower: 3.00 ms against 0.500 ms"


def test_an_engine_that_loses_too_much_is_rejected_with_the_loss_and_its_interval() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("student-fp32", 1.0))
    choice = chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("student-fp32", 0.88)])
    assert choice.candidate == "teacher-fp32"
    why = choice.rejected["student-fp32@onnxruntime"]
    assert why == "2.0 points lost (95 % interval -0.8 to 4.8), the limit is 1.0 points"


def test_int8_that_is_slower_than_its_twin_is_never_chosen() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("teacher-int8", 4.8))
    choice = chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("teacher-int8", 0.91)])
    assert choice.candidate == "teacher-fp32"
    assert choice.rejected["teacher-int8@onnxruntime"].startswith("INT8 is slower: 4.80 ms against 3.00 ms")


def test_int8_in_one_runtime_competes_with_its_twin_in_every_runtime() -> None:
    report = profile(
        entry("teacher-fp32", 3.0),
        entry("teacher-fp32", 1.0, runtime="openvino"),
        entry("teacher-int8", 2.0),
    )
    evaluations = [accuracy("teacher-int8", 0.9)]
    evaluations += [accuracy("teacher-fp32", 0.9, runtime=runtime) for runtime in ("onnxruntime", "openvino")]
    choice = chosen(report, evaluations)
    assert (choice.candidate, choice.runtime) == ("teacher-fp32", "openvino")
    assert "its fp32 twin teacher-fp32@openvino" in choice.rejected["teacher-int8@onnxruntime"]


def test_int8_that_is_only_faster_within_the_noise_gives_way_to_its_twin() -> None:
    report = profile(entry("teacher-fp32", 1.00, noise=0.05), entry("teacher-int8", 0.97, noise=0.05))
    choice = chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("teacher-int8", 0.9)])
    assert choice.candidate == "teacher-fp32"
    assert "not measurably faster" in choice.rejected["teacher-int8@onnxruntime"]


def test_int8_within_the_noise_may_stand_in_for_a_twin_that_is_too_large() -> None:
    report = profile(
        entry("teacher-fp32", 1.00, noise=0.05, size=8.0), entry("teacher-int8", 0.97, noise=0.05, size=2.0)
    )
    budget = Budget(max_drop=0.01, max_size_mib=4.0)
    choice = chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("teacher-int8", 0.9)], budget)
    assert choice.candidate == "teacher-int8"
    assert choice.rejected["teacher-fp32@onnxruntime"].startswith("too large")


def test_int8_that_is_worse_than_its_twin_is_rejected_even_when_it_keeps_the_drop_against_the_teacher() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("student-fp32", 1.0), entry("student-int8", 0.5))
    evaluations = [accuracy(n, v) for n, v in zip(NAMES, (0.900, 0.915, 0.895), strict=True)]
    choice = chosen(report, evaluations)
    assert choice.candidate == "student-fp32"
    assert "INT8 is worse than its fp32 twin" in choice.rejected["student-int8@onnxruntime"]


def test_without_a_limit_int8_must_still_not_be_clearly_worse_than_its_twin() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("teacher-int8", 1.0))
    near = [accuracy("teacher-fp32", 0.90), accuracy("teacher-int8", 0.88)]
    far = [accuracy("teacher-fp32", 0.90), accuracy("teacher-int8", 0.70)]
    assert chosen(report, near, Budget()).candidate == "teacher-int8"
    assert chosen(report, far, Budget()).candidate == "teacher-fp32"


def test_within_the_noise_of_the_fastest_the_more_accurate_engine_wins() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("a-fp32", 1.00, noise=0.03), entry("b-fp32", 1.02, noise=0.03))
    evaluations = [accuracy("teacher-fp32", 0.9), accuracy("a-fp32", 0.895), accuracy("b-fp32", 0.899)]
    choice = chosen(report, evaluations)
    assert choice.candidate == "b-fp32"
    assert "as fast as the fastest of them within the noise and more accurate" in choice.reason


def in_turns(medians: dict[str, float], *, disturbed: int = 0) -> ProfileReport:
    """Engines in 60 common rounds, of which some are twice as slow for all of them; so wide are their intervals."""
    entries = []
    for name, median in medians.items():
        rounds = [[round(1e6 * median * (2 if at < disturbed else 1) * (1 + 0.001 * (at % 5)))] for at in range(60)]
        made = entry(name, median, noise=0.3)
        assert made.latency is not None
        timed = made.latency.model_copy(update={"rounds_packed": packed(rounds)})
        entries.append(made.model_copy(update={"latency": timed}))
    return profile(*entries)


def test_engines_that_took_turns_are_compared_round_by_round_so_a_noisy_machine_hides_no_difference() -> None:
    evaluations = [accuracy("teacher-fp32", 0.9), accuracy("a-fp32", 0.895), accuracy("b-fp32", 0.899)]
    report = in_turns({"teacher-fp32": 3.0, "a-fp32": 1.0, "b-fp32": 1.1}, disturbed=20)
    choice = chosen(report, evaluations)
    assert choice.candidate == "a-fp32"
    assert choice.rejected["b-fp32@onnxruntime"].startswith("slower")
    same = in_turns({"teacher-fp32": 3.0, "a-fp32": 1.0, "b-fp32": 1.0}, disturbed=20)
    assert chosen(same, evaluations).candidate == "b-fp32"


def test_an_engine_that_was_not_evaluated_in_its_runtime_is_not_trusted() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("student-fp32", 1.0, runtime="openvino"))
    choice = chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("student-fp32", 0.9)])
    assert choice.candidate == "teacher-fp32"
    assert choice.rejected["student-fp32@openvino"] == "its accuracy in openvino was not evaluated"


def test_without_any_data_full_precision_is_chosen_by_speed_and_int8_is_not() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("teacher-fp16", 2.0), entry("teacher-int8", 1.0))
    choice = chosen(report, [])
    assert choice.candidate == "teacher-fp16"
    assert choice.rejected["teacher-int8@onnxruntime"] == "its accuracy in onnxruntime was not evaluated"
    assert choice.reason.endswith("accuracy was not evaluated")


def test_when_no_engine_keeps_the_limits_the_least_loss_is_taken_and_it_is_said() -> None:
    report = profile(entry("a-fp32", 1.0), entry("b-fp32", 2.0))
    teacher = accuracy("teacher-fp32", 0.95)
    choice = chosen(report, [teacher, accuracy("a-fp32", 0.80), accuracy("b-fp32", 0.85)])
    assert choice.candidate == "b-fp32"
    assert not choice.within_budget
    assert choice.reason.startswith("no engine keeps every limit; b-fp32@onnxruntime comes nearest (10.0 points lost")


def test_a_choice_that_misses_the_latency_limit_says_so() -> None:
    report = profile(entry("teacher-fp32", 3.0))
    evaluations = [accuracy("teacher-fp32", 0.9)]
    assert not chosen(report, evaluations, Budget(max_latency_ms=2.0)).within_budget
    assert chosen(report, evaluations, Budget(max_latency_ms=3.2)).within_budget
    assert not chosen(report, evaluations, Budget(max_latency_ms=3.2, percentile=95)).within_budget


def test_decisions_are_taken_at_the_first_thread_count() -> None:
    report = profile(
        entry("teacher-fp32", 3.0, threads=2),
        entry("student-fp32", 2.0, threads=2),
        entry("teacher-fp32", 0.1, threads=1),
        threads=(2, 1),
    )
    assert chosen(report, [accuracy("teacher-fp32", 0.9), accuracy("student-fp32", 0.9)]).candidate == "student-fp32"


def test_failed_and_missing_candidates_are_listed_and_stop_nothing() -> None:
    report = profile(entry("teacher-fp32", 3.0), entry("student-fp32", None))
    everyone = candidates("teacher-fp32", "student-fp32", "lost-fp32")
    choice = choose(everyone, report, [accuracy("teacher-fp32", 0.9)], BUDGET, reference="teacher-fp32", runtimes={})
    assert choice.candidate == "teacher-fp32"
    assert choice.rejected["student-fp32@onnxruntime"] == "no latency: it broke"
    assert choice.rejected["lost-fp32"] == "it was not profiled"


def test_nothing_to_deploy_is_an_error_that_lists_the_failures() -> None:
    with pytest.raises(UserError, match=r"No engine can be deployed \(a-fp32@onnxruntime: no latency: it broke\)"):
        chosen(profile(entry("a-fp32", None)), [])


def test_on_a_board_the_accuracy_is_that_of_the_same_graph_on_this_machine() -> None:
    report = profile(
        entry("teacher-fp32", 3.0, runtime="tensorrt"), entry("teacher-int8", 1.0, runtime="tensorrt")
    ).model_copy(update={"board": "ssh://jetson"})
    evaluations = [accuracy("teacher-fp32", 0.9), accuracy("teacher-int8", 0.9)]
    choice = chosen(report, evaluations)
    assert (choice.candidate, choice.runtime) == ("teacher-int8", "tensorrt")
    elsewhere = chosen(report.model_copy(update={"board": None}), evaluations)
    assert not elsewhere.within_budget or elsewhere.reason.startswith("no engine keeps every limit")


def test_a_device_elsewhere_gets_the_lowest_prediction_and_no_int8() -> None:
    entries = [
        entry(name, None).model_copy(update={"failure": None, "prediction": prediction(ms), "runtime": "tensorrt"})
        for name, ms in (("teacher-fp32", 3.0), ("teacher-fp16", 1.5), ("teacher-int8", 1.0))
    ]
    evaluations = [accuracy(name, 0.9) for name in ("teacher-fp32", "teacher-fp16", "teacher-int8")]
    choice = chosen(profile(*entries, measured=False), evaluations, Budget(max_drop=0.01, max_latency_ms=5))
    assert (choice.candidate, choice.runtime) == ("teacher-fp16", "tensorrt")
    assert "nothing was measured" in choice.reason
    assert "not known to be faster" in choice.rejected["teacher-int8@tensorrt"]
    assert not choice.within_budget, "a prediction keeps no latency limit"


def elsewhere(ms_of_the_engine: float) -> Choice:
    """The choice between a graph and a smaller engine of another runtime, both predicted."""
    found = [
        entry(name, None, size=size).model_copy(update={"failure": None, "prediction": prediction(ms)})
        for name, size, ms in (("teacher-fp32", 4.0, 2.0), ("teacher-ncnn-fp32", 3.9, ms_of_the_engine))
    ]
    graph, engine = candidates("teacher-fp32", "teacher-ncnn-fp32")
    both, report = [graph, replace(engine, runtime="ncnn")], profile(*found, measured=False)
    return choose(both, report, [], BUDGET, reference="teacher-fp32", runtimes={"fp32": "onnxruntime"})


def test_a_prediction_that_does_not_tell_runtimes_apart_does_not_choose_an_engine_for_its_bytes() -> None:
    assert (elsewhere(2.0).candidate, elsewhere(2.0).runtime) == ("teacher-fp32", "onnxruntime")


def test_an_engine_that_is_chosen_elsewhere_is_chosen_in_its_own_runtime() -> None:
    assert (elsewhere(1.0).candidate, elsewhere(1.0).runtime) == ("teacher-ncnn-fp32", "ncnn")


def test_a_device_elsewhere_without_predictions_gets_the_smallest_file() -> None:
    report = profile(entry("teacher-fp32", None, size=4.0), entry("teacher-fp16", None, size=2.0), measured=False)
    choice = chosen(report, [])
    assert choice.candidate == "teacher-fp16"
    assert "smallest file" in choice.reason


def test_a_precision_that_the_target_does_not_run_is_left_out_with_the_reason() -> None:
    report = profile(entry("teacher-fp32", None, size=4.0), entry("teacher-fp16", None, size=2.0), measured=False)
    both = candidates("teacher-fp32", "teacher-fp16")
    choice = choose(both, report, [], BUDGET, reference="teacher-fp32", runtimes={"fp32": "onnxruntime"})
    assert (choice.candidate, choice.runtime) == ("teacher-fp32", "onnxruntime")
    assert choice.rejected == {"teacher-fp16": "no runtime of the target runs fp16"}


TIMES = st.floats(0.1, 10.0)
VALUES = st.floats(0.5, 1.0)


@given(st.tuples(TIMES, TIMES, TIMES, TIMES), st.tuples(VALUES, VALUES, VALUES, VALUES), st.floats(0, 0.2))
def test_int8_is_never_chosen_when_a_twin_is_faster_or_better_than_the_limit(
    times: tuple[float, ...], values: tuple[float, ...], max_drop: float
) -> None:
    names = ("a-fp32", "a-int8", "b-fp32", "b-int8")
    report = profile(*(entry(name, time) for name, time in zip(names, times, strict=True)))
    evaluations = [accuracy(name, value) for name, value in zip(names, values, strict=True)]
    everyone = candidates(*names)
    choice = choose(everyone, report, evaluations, Budget(max_drop=max_drop), reference="a-fp32", runtimes={})
    if choice.precision == "int8":
        twin = choice.candidate.replace("int8", "fp32")
        mine, theirs = names.index(choice.candidate), names.index(twin)
        assert times[mine] < times[theirs] or values[theirs] < values[0] - max_drop
        assert times[mine] * 0.99 <= times[theirs] * 1.01
        assert values[theirs] - values[mine] <= max_drop + 1e-9


def packing(
    size_mib: float, *, packed_ms: float = 1.0, value: float = 0.9, max_latency_ms: float | None = None
) -> Choice:
    """The choice between an FP32 engine and one that holds the same weights as codes."""
    report = profile(
        entry("teacher-fp32", 3.0),
        entry("student-fp32", 0.999),
        entry("student-codes", packed_ms, size=size_mib),
    )
    listed = [*candidates("teacher-fp32", "student-fp32")]
    listed.append(Candidate(name="student-codes", family="student", precision="fp32", packed=True))
    values = {"teacher-fp32": 0.9, "student-fp32": 0.9, "student-codes": value}
    evaluations = [accuracy(name, found) for name, found in values.items()]
    budget = BUDGET.model_copy(update={"max_latency_ms": max_latency_ms})
    return choose(listed, report, evaluations, budget, reference="teacher-fp32", runtimes={})


def test_of_two_files_with_the_same_weights_the_smaller_is_deployed() -> None:
    choice = packing(0.1)
    assert choice.candidate == "student-codes"
    assert "as fast as the fastest of them within the noise and a smaller file of the same weights" in choice.reason
    why = choice.rejected["student-fp32@onnxruntime"]
    assert why.startswith("not measurably faster (0.999 ms against 1.00 ms), and a larger file of the same weights: ")


def test_packed_weights_do_not_give_up_a_latency_limit_that_their_twin_keeps() -> None:
    assert packing(0.1, packed_ms=1.01).candidate == "student-codes", "as fast within the noise"
    assert packing(0.1, packed_ms=1.01, max_latency_ms=1.005).candidate == "student-fp32"
    assert packing(0.1, packed_ms=1.01, max_latency_ms=0.5).candidate == "student-codes", "neither keeps it"


@pytest.mark.parametrize(("size_mib", "packed_ms", "value"), [(90.0, 1.0, 0.9), (0.1, 1.5, 0.9), (0.1, 1.0, 0.899)])
def test_packed_weights_are_no_gain_where_the_file_is_larger_slower_or_worse(
    size_mib: float, packed_ms: float, value: float
) -> None:
    assert packing(size_mib, packed_ms=packed_ms, value=value).candidate == "student-fp32"
