"""What edgekd and the runtime both say about TensorRT engines, said alike: which fit a device, how one is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgekd_runtime import tensorrt_build as building
from edgekd_runtime.fingerprint import Device, parse_fingerprint

from edgekd.runtimes.engines.command import BuildFiles, build_arguments
from edgekd.runtimes.engines.settings import BuildSettings, InputShapes, SettingsError
from edgekd.runtimes.fingerprint import Device as EdgekdDevice
from edgekd.runtimes.fingerprint import fingerprint_from_plain


@pytest.mark.parametrize("version", [(8, 5, 2), (8, 6, 2), (10, 3, 0), (11, 0, 0)])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "int8"},
        {"precision": "fp16", "tf32": False, "sparsity": True, "workspace_mib": 64},
        {"precision": "fp16", "dla_core": 0},
    ],
)
def test_trtexec_is_told_what_edgekd_tells_it(
    version: tuple[int, int, int], fixed: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    inputs = () if fixed else (InputShapes("images", (1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8)),)
    theirs = BuildSettings(inputs=inputs, **changes)
    files = BuildFiles(
        onnx=str(tmp_path / "model.onnx"),
        engine=str(tmp_path / "model.engine"),
        timing_cache=str(tmp_path / "timing.cache"),
    )
    mine = {**building.DEFAULTS, **{key: theirs.plain()[key] for key in (*building.DEFAULTS, "inputs")}}
    try:
        wanted = build_arguments(theirs, version, files)
    except SettingsError:
        assert "dla_core" in changes  # 11.0 has none
        return
    assert sorted(building.trtexec_arguments(mine, version, tmp_path)) == sorted(wanted)


def test_both_rules_about_fitting_engines_are_the_same() -> None:
    base = {"gpu": "Orin", "compute_capability": "8.7", "tensorrt": "10.3.0", "os": "linux", "arch": "aarch64"}
    more = {"onnx_sha256": "0", "engine_sha256": "0", "builder": "python"}
    devices = [base, *({**base, key: value} for key, value in CHANGES)]
    seen = set()
    for there in devices:
        for flags in ({}, {"version_compatible": True}, {"hardware_compatible": True}):
            data = {"schema_version": 1, **there, **more, **flags}
            mine, other = parse_fingerprint(data, "x"), fingerprint_from_plain(data, "x")
            for here in devices:
                wanted = other.fits(EdgekdDevice(**here))
                assert mine.misfits(Device(**here)) == wanted
                seen.add(bool(wanted))
    assert seen == {True, False}


CHANGES = (
    ("gpu", "A100"),
    ("compute_capability", "8.0"),
    ("compute_capability", "7.2"),
    ("tensorrt", "10.3.0.26"),
    ("tensorrt", "10.7.0"),
    ("tensorrt", "11.0.0"),
    ("arch", "x86_64"),
    ("multiprocessors", 8),
    ("multiprocessors", 16),
)
