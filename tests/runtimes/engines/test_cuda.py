"""Where CUDA's runtime library is looked for, by edgekd and by the runtime alike."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from edgekd_runtime import cuda as of_runtime

from edgekd.runtimes.engines import cuda as of_edgekd


@pytest.mark.parametrize("module", [of_edgekd, of_runtime], ids=["edgekd", "runtime"])
@pytest.mark.parametrize("place", ["nvidia/cuda_runtime/lib/libcudart.so.12", "nvidia/cu13/lib/libcudart.so.13"])
def test_the_library_in_nvidias_wheels_is_found(
    module: Any, place: str, cuda_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install tensorrt` brings it along; a machine with a driver and no CUDA toolkit has no other."""
    monkeypatch.setattr(module, "_PLACES", ("/nowhere/",))
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    library = tmp_path / place
    library.parent.mkdir(parents=True)
    shutil.copy(cuda_libraries / "libcudart.so", library)
    assert module._loaded()._name == str(library)
