from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.core.events import RecordingReporter
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.remote import boards as boards_module
from edgekd.profiling.remote.boards import profile_on_boards
from edgekd.profiling.remote.lab import Lab, LabBoard, load_lab
from edgekd.profiling.remote.profile import BoardProfile
from edgekd.profiling.remote.request import BoardPlan, job_for, trials_for, usable_runtimes
from tests.profiling.remote.conftest import candidate

LAB = """
boards:
  orin-1: {address: ssh://edge@orin-1, tags: [orin, jetson], target: jetson-orin-nano, python: /opt/venv/bin/python}
  orin-2: {address: "ssh://edge@10.0.0.7:2222", tags: [orin, jetson, loud]}
  pi: {address: ssh://pi@pi5, tags: [cpu]}
concurrency: 2
"""
OFFERS = {
    "onnxruntime": {"ok": True, "version": "1.20", "install": ""},
    "tensorrt": {"ok": False, "version": None, "install": "sudo apt-get install python3-libnvinfer"},
}


def written(folder: Path, text: str) -> Path:
    path = folder / "lab.yaml"
    path.write_text(text)
    return path


def test_the_lab_of_the_manual_is_one(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "boards.md").read_text()
    text = manual.partition("```yaml\n")[2].partition("```")[0]
    assert list(load_lab(written(tmp_path, text)).chosen(("orin",), "--tag")) == ["orin-1", "orin-2"]


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ((), ["orin-1", "orin-2", "pi"]),
        (("orin",), ["orin-1", "orin-2"]),
        (("orin", "loud"), ["orin-2"]),
        (("pi",), ["pi"]),
    ],
)
def test_boards_are_chosen_by_tags_and_names(tmp_path: Path, tags: tuple[str, ...], names: list[str]) -> None:
    lab = load_lab(written(tmp_path, LAB))
    assert list(lab.chosen(tags, "--tag")) == names
    assert lab.concurrency == 2


def test_a_tag_that_no_board_has_suggests_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no board has 'orni'\. Did you mean 'orin'\?"):
        load_lab(written(tmp_path, LAB)).chosen(("orni",), "--tag")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("tags: [cpu]", "tag: [cpu]", r"unknown key 'boards\.pi\.tag'\. Did you mean 'tags'\?"),
        ("concurrency", "concurency", r"unknown key 'concurency'\. Did you mean 'concurrency'\?"),
        ("ssh://pi@pi5", "pi@pi5", r"boards\.pi\.address.*expected ssh://user@host"),
        ("ssh://pi@pi5", "ssh://pi:raspberry@pi5", "a password in the address would be visible"),
        ("jetson-orin-nano", "jetson-orin-nono", r"boards\.orin-1\.target: Unknown target.*Did you mean"),
        ("concurrency: 2", "concurrency: 0", "'concurrency'"),
        ("boards:", "boards: [", "not a readable YAML file"),
    ],
)
def test_a_lab_file_with_a_mistake_is_refused_with_its_place(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in LAB
    with pytest.raises(UserError, match=message):
        load_lab(written(tmp_path, LAB.replace(before, after)))


def test_a_lab_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Lab file .*nowhere"):
        load_lab(tmp_path / "nowhere.yaml")


def test_a_board_that_fails_is_an_outcome_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(ssh: object, *_: object, name: str, python: str, **__: object) -> BoardProfile:
        if name == "off":
            raise DeviceUnavailable("it is off")
        return BoardProfile(report=None, decisions=(name, python), outputs={})  # type: ignore[arg-type]

    monkeypatch.setattr(boards_module, "profile_on_board", fake)
    lab = Lab(boards={"on": LabBoard(address="ssh://a", python="py"), "off": LabBoard(address="ssh://b")})
    found = profile_on_boards(
        lab.boards, [candidate(tmp_path, "x")], BoardPlan(), concurrency=2, reporter=RecordingReporter()
    )
    on, off = found["on"], found["off"]
    assert isinstance(on, BoardProfile)
    assert on.decisions == ("on", "py")
    assert isinstance(off, EdgekdError)
    assert off.message == "it is off"


def test_a_job_is_the_same_for_the_same_question_and_another_for_another(tmp_path: Path) -> None:
    bundles = [candidate(tmp_path, "x")]

    def job_id(plan: BoardPlan) -> str:
        return job_for(trials_for(bundles, ["onnxruntime"], plan), plan)[0]

    assert job_id(BoardPlan()) == job_id(BoardPlan())
    assert job_id(BoardPlan()) != job_id(BoardPlan(duration_s=6.0))
    assert job_id(BoardPlan()) != job_id(BoardPlan(threads=(2,)))
    assert job_id(BoardPlan()).isalnum()


def test_a_gpu_engine_is_measured_once_whatever_the_thread_counts(tmp_path: Path) -> None:
    found = trials_for([candidate(tmp_path, "x")], ["onnxruntime", "tensorrt"], BoardPlan(threads=(1, 2)))
    assert [(trial.runtime, trial.threads) for trial in found] == [
        ("onnxruntime", 1),
        ("tensorrt", 1),
        ("onnxruntime", 2),
    ]


def test_a_quantized_graph_that_tensorrt_does_not_read_is_not_sent_to_it(tmp_path: Path) -> None:
    made = candidate(tmp_path, "x")
    tags = {"precision": "int8", "scheme": "ort-u8s8"}
    quantized = replace(made, name="q", bundle=made.bundle.model_copy(update={"tags": tags}))
    assert [trial.runtime for trial in trials_for([quantized], ["onnxruntime", "tensorrt"], BoardPlan())] == [
        "onnxruntime"
    ]
    with pytest.raises(UserError, match="Nothing can be measured: tensorrt on the board"):
        trials_for([quantized], ["tensorrt"], BoardPlan())


def test_all_runtimes_that_the_board_has_are_used_unless_some_are_asked_for() -> None:
    assert usable_runtimes("b", "python3", "ssh b", BoardPlan(), OFFERS) == ["onnxruntime"]
    with pytest.raises(DeviceUnavailable, match="tensorrt cannot be used there") as caught:
        usable_runtimes("b", "python3", "ssh b", BoardPlan(runtimes=("onnxruntime", "tensorrt")), OFFERS)
    assert caught.value.hint == "ssh b sudo apt-get install python3-libnvinfer"
    with pytest.raises(UserError, match=r"On a board the runtimes are onnxruntime, .*litert, and not torch"):
        usable_runtimes("b", "python3", "ssh b", BoardPlan(runtimes=("torch",)), OFFERS)
