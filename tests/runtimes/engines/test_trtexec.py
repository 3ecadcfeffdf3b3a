"""What recorded outputs of `trtexec` say; where they are from stands in `tests/golden/trtexec/README.md`."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.runtimes.engines.trtexec import find_trtexec, said_by, version_from_number, version_of
from tests.golden.tensorrt_names import NAMES

RECORDED = NAMES.parent / "trtexec"


def recorded(name: str) -> str:
    return (RECORDED / f"{name}.txt").read_text()


def test_a_success_on_a_board_tells_its_version_and_the_times_on_the_gpu() -> None:
    said = said_by(recorded("8.5.2-orin-nano-fp16"))
    assert (said.version, said.passed, said.error) == ((8, 5, 2), True, "")
    assert (said.median_ms, said.p99_ms) == (10.1851, 10.356)


def test_a_build_tells_its_time_its_size_its_memory_and_its_device() -> None:
    said = said_by(recorded("10.9.0-rtx3070"))
    assert (said.version, said.passed) == ((10, 9, 0), True)
    assert (said.build_s, said.size_mib, said.peak_gpu_mib) == (10.7204, 101.811, 105)
    assert (said.gpu, said.compute_capability, said.multiprocessors) == ("NVIDIA GeForce RTX 3070", "8.6", 46)
    assert said.median_ms == 1.39775


@pytest.mark.parametrize(
    ("name", "version", "error"),
    [
        ("8.6.1-parser-failure", (8, 6, 1), "it cannot take the operator QuantizeLinear: [6] Assertion failed: "
         'scaleAllPositive && "Scale coefficients must all be positive"'),
        ("10.16.1-parser-failure", (10, 16, 1), "it cannot take the operator Where (node 103, output "
         "'/sam_prompt_encoder/Where_6_output_0'): ITensor::getDimensions: Error Code 4: Shape Error (broadcast "
         "dimensions must be conformable In op at /_src/optimizer/common/shape/shapeContext.cpp:2700)"),
        ("10.3.0-no-kernel", (10, 3, 0), "Error Code 2: Internal Error (Assertion isOpConsistent(convolution.get()) "
         "failed. Cask convolution isConsistent check failed.)"),
        ("10.3.0-unknown-options", (10, 3, 0), "Unknown option: --workspace 2048"),
    ],
)  # fmt: skip
def test_a_failure_names_its_cause_and_not_its_consequences(
    name: str, version: tuple[int, int, int], error: str
) -> None:
    said = said_by(recorded(name))
    assert (said.version, said.passed, said.error) == (version, False, error)


@pytest.mark.parametrize(
    ("number", "version"),
    [("8502", (8, 5, 2)), ("8601", (8, 6, 1)), ("100300", (10, 3, 0)), ("101601", (10, 16, 1)), ("110100", (11, 1, 0))],
)
def test_numbers_of_banners_are_versions(number: str, version: tuple[int, int, int]) -> None:
    assert version_from_number(number) == version


def test_an_output_that_was_cut_off_is_no_success() -> None:
    assert not said_by(recorded("10.9.0-rtx3070").replace("&&&& PASSED", "&&&& RUNNING")).passed
    assert said_by("").version is None


def test_the_program_is_asked_for_its_help_which_exits_with_any_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "trtexec"
    program.write_text(
        "#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v110000] [b114] # trtexec' $1\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_trtexec()
    assert found == program
    assert version_of(program) == (11, 0, 0)


def test_without_a_program_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("edgekd.runtimes.engines.trtexec.PLACES", (str(tmp_path),))
    assert find_trtexec() is None
    assert version_of(tmp_path / "trtexec") is None
