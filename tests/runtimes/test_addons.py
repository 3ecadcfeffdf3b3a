"""Addons: installed only by their commands, whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekd.errors import BuildFailed, UserError
from edgekd.runtimes.addons import ADDONS, LITERT_CONVERTER, ONNXRUNTIME_WEB, Addon, _run, addon, addons_folder, install


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path / "addons"))
    return tmp_path / "addons"


def making(part: Addon, told: list[str]) -> object:
    """A runner that writes what the last command would leave."""

    def run(command: Sequence[str]) -> None:
        told.append(command[0])
        proof = part.folder / part.proof
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()

    return run


@pytest.mark.parametrize("name", ADDONS)
def test_every_addon_is_installed_by_pinned_commands_into_its_own_folder(name: str, folder: Path) -> None:
    part, told, shown = addon(name), [], []
    assert not part.installed
    assert install(part, run=making(part, told), on_command=shown.append) == folder / name  # type: ignore[arg-type]
    assert part.installed
    assert len(shown) == len(told) == len(part.commands(part.folder))
    assert all(str(folder) in command for command in shown)
    assert any("==" in command or "@" in command for command in shown)


def test_scripts_of_npm_packages_do_not_run() -> None:
    (command,) = ADDONS[ONNXRUNTIME_WEB].commands(Path("x"))
    assert "--ignore-scripts" in command
    assert command[-1].startswith("onnxruntime-web@")


def test_the_converter_has_an_environment_of_its_own() -> None:
    make, fill = ADDONS[LITERT_CONVERTER].commands(Path("x"))
    assert make[:3] == (sys.executable, "-m", "venv")
    assert fill[0].startswith("x")
    assert any(part.startswith("litert-torch==") for part in fill)


def test_a_failure_leaves_nothing_behind(folder: Path) -> None:
    def fails(command: Sequence[str]) -> None:
        (folder / ONNXRUNTIME_WEB / "half").touch()
        raise BuildFailed("no network")

    with pytest.raises(BuildFailed, match="no network"):
        install(addon(ONNXRUNTIME_WEB), run=fails)
    assert not (folder / ONNXRUNTIME_WEB).exists()


def test_commands_that_leave_no_part_are_a_failure(folder: Path) -> None:
    with pytest.raises(BuildFailed, match=r"onnxruntime-web was installed, but .* is not there"):
        install(addon(ONNXRUNTIME_WEB), run=lambda command: None)


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(BuildFailed, match="ended with code 2: no such package"):
        _run([sys.executable, "-c", "import sys; sys.stderr.write('no such package'); sys.exit(2)"])


def test_a_missing_program_is_named() -> None:
    with pytest.raises(BuildFailed, match=r"no-such-npm is not installed\.\n.*install it, then run again"):
        _run(["no-such-npm", "install"])


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written.*\n.*EDGEKD_ADDONS"):
        install(addon(ONNXRUNTIME_WEB), run=lambda command: None)


def test_without_a_variable_addons_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEKD_ADDONS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert addons_folder() == tmp_path / "edgekd" / "addons"


def test_an_unknown_addon_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'onnxruntime-web'"):
        addon("onnxruntime-wep")
