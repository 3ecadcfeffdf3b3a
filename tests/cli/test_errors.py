"""What a user reads when something is wrong: one paragraph, a hint, the right exit code, no traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.cli.app import exit_code_of
from edgekd.runtimes.session import RUNTIMES, Availability
from tests.pipeline.world import ARCH, World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("errors"))


def _refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = exit_code_of(arguments)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return code, text


def _compress(world: World, *extra: str, model: Path | None = None, arch: list[str] | None = None) -> list[str]:
    places = ["-o", str(world.folder / "out"), "--store", str(world.folder / "store")]
    return [
        "compress", str(model or world.model), *(ARCH if arch is None else arch), "--target", "host", *places, *extra
    ]  # fmt: skip


def test_an_unknown_verb_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(["compres"], capsys)
    assert code == 2
    assert "Did you mean 'compress'" in text


def test_an_addon_that_does_not_exist_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(["doctor", "--install", "onnxruntime-wep"], capsys)
    assert code == 2
    assert "Did you mean 'onnxruntime-web'" in text


def test_an_unknown_flag_is_a_usage_error(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(_compress(world, "--max-latency", "5"), capsys)
    assert code == 2
    assert "--max-latency" in text


def test_a_drop_in_percent_is_refused_with_the_range(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(_compress(world, "--max-drop", "5"), capsys)
    assert code == 2
    assert "0<=x<=1" in text


def test_a_target_whose_runtimes_are_all_missing_says_it_once_and_how_to_get_one(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Availability(ok=False, reason="not there", install="pip install it")
    for runtime in ("onnxruntime", "openvino"):
        monkeypatch.setattr(type(RUNTIMES.get(runtime)), "availability", lambda _: missing)
    code, text = _refused(_compress(world), capsys)
    assert code == 3
    assert text.count("onnxruntime is not measured: not there (pip install it)") == 1


def test_an_unknown_target_suggests_the_near_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _compress(world)
    arguments[arguments.index("host")] = "jetsn"
    code, text = _refused(arguments, capsys)
    assert code == 2
    assert "jetson" in text


def test_a_missing_model_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(_compress(world, model=world.folder / "nothing.pt"), capsys)
    assert code == 2
    assert "nothing.pt" in text


def test_weights_without_an_architecture_ask_for_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(_compress(world, arch=[]), capsys)
    assert code == 2
    assert "--arch" in text


def test_a_state_dict_that_does_not_fit_lists_the_keys(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(world.model, weights_only=True)
    first = next(iter(state))
    state["surplus.weight"] = state.pop(first)
    torch.save(state, world.folder / "unfit.pt")
    code, text = _refused(_compress(world, model=world.folder / "unfit.pt"), capsys)
    assert code == 2
    assert first in text
    assert "surplus.weight" in text


def test_weights_that_are_not_numbers_are_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(world.model, weights_only=True)
    name = next(key for key, value in state.items() if value.is_floating_point())
    state[name] = torch.full_like(state[name], float("nan"))
    torch.save(state, world.folder / "nan.pt")
    code, text = _refused(_compress(world, model=world.folder / "nan.pt"), capsys)
    assert code == 2
    assert name in text


def test_a_pickled_module_is_refused_with_the_command_that_converts_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.nn.Linear(2, 2), world.folder / "pickled.pt")
    code, text = _refused(_compress(world, model=world.folder / "pickled.pt"), capsys)
    assert code == 2
    assert "--trust-pickle" in text
    assert "python -c" in text


def _npz(folder: Path, name: str, **arrays: np.ndarray) -> str:
    np.savez(folder / name, **arrays)  # type: ignore[arg-type]  # numpy's stubs leave no room for names
    return str(folder / name)


def test_empty_data_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    data = _npz(world.folder, "empty.npz", images=np.zeros((0, 16, 16, 3), np.uint8), labels=np.zeros(0, np.int64))
    code, text = _refused(_compress(world, "--data", data), capsys)
    assert code == 2
    assert "empty.npz" in text


def test_one_class_only_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3)).astype(np.uint8)
    data = _npz(world.folder, "one.npz", images=images, labels=np.zeros(40, np.int64))
    code, text = _refused(_compress(world, "--data", data), capsys)
    assert code == 2
    assert "class" in text


def test_another_number_of_classes_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3)).astype(np.uint8)
    data = _npz(world.folder, "six.npz", images=images, labels=np.arange(60) % 6)
    code, text = _refused(_compress(world, "--data", data), capsys)
    assert code == 2
    assert "4 classes" in text
    assert "6" in text


def test_a_wrong_shape_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _compress(world, arch=[*ARCH[:8], "--input-shape", "3x16"])
    code, text = _refused(arguments, capsys)
    assert code == 2
    assert "CxHxW" in text


def test_an_unknown_objective_suggests_the_near_one(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(_compress(world, "--data", str(world.data), "--objective", "dkdd"), capsys)
    assert code == 2
    assert "'dkd'" in text


def test_a_read_only_output_is_found_before_any_work(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    code, text = _refused(_compress(world, "--data", str(world.data)), capsys)
    assert code == 2
    assert "Cannot write" in text


def test_a_gate_on_a_folder_without_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _refused(["gate", str(tmp_path)], capsys)
    assert code == 2
    assert "metrics.json" in text
