"""Parts that pip cannot add to this environment: what they are, where they lie, and the commands that install them.

They live in a folder of the user's cache (`$EDGEKD_ADDONS`, or `edgekd/addons` of the cache folder), never in the
package or the working folder. Nothing is installed by itself: `edgekd doctor --install NAME` runs the commands, and
every message about a missing part names it. Versions are pinned, so that a measurement can be repeated.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.schema import suggest
from edgekd.errors import BuildFailed, UserError

FOLDER_VARIABLE = "EDGEKD_ADDONS"
ONNXRUNTIME_WEB = "onnxruntime-web"
ONNXRUNTIME_WEB_VERSION = "1.30.0"
LITERT_CONVERTER = "litert-converter"
LITERT_TORCH_VERSION = "0.10.0"
_LAST_WORDS = 400

Run = Callable[[Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class Addon:
    """One part.

    Attributes:
        name: What `--install` takes.
        what: A clause for messages and the help.
        size: What it takes on the disk, in words.
        commands: The commands that install it into a folder.
        proof: The file below the folder that is there once it is installed.
    """

    name: str
    what: str
    size: str
    commands: Callable[[Path], tuple[tuple[str, ...], ...]]
    proof: Path

    @property
    def folder(self) -> Path:
        return addons_folder() / self.name

    @property
    def installed(self) -> bool:
        return (self.folder / self.proof).exists()

    @property
    def hint(self) -> str:
        """What a message about its absence says."""
        return f"edgekd doctor --install {self.name}"


def addons_folder() -> Path:
    """Where the user's addons lie."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).absolute() if cache else Path.home() / ".cache") / "edgekd" / "addons"


def addon(name: str) -> Addon:
    """The part with this name.

    Raises:
        UserError: No such part.
    """
    if name not in ADDONS:
        raise UserError(f"Unknown addon {name!r}.{suggest(name, ADDONS)}", hint=f"known: {', '.join(ADDONS)}")
    return ADDONS[name]


def install(part: Addon, *, run: Run | None = None, on_command: Callable[[str], None] = lambda command: None) -> Path:
    """The folder of a part after its commands have run in a new folder, which takes the place of an earlier one.

    Args:
        part: What to install.
        run: Runs a command and raises when it fails; a subprocess by default.
        on_command: Told of each command before it runs.

    Raises:
        BuildFailed: A command failed; nothing is left of it.
    """
    run = run or _run
    folder = part.folder
    # In place, not in a folder that is moved afterwards: virtual environments hold their own path.
    _emptied(folder)
    try:
        for command in part.commands(folder):
            on_command(" ".join(command))
            run(command)
        if not part.installed:
            raise BuildFailed(f"{part.name} was installed, but {folder / part.proof} is not there.")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _emptied(folder: Path) -> None:
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as err:
        raise UserError(
            f"The folder {folder} cannot be written: {err}", hint=f"name another one with {FOLDER_VARIABLE}"
        ) from err


def _run(command: Sequence[str]) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise BuildFailed(f"{command[0]} is not installed.", hint=f"install it, then run again: {' '.join(command)}")
    done = subprocess.run(
        [program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())[-_LAST_WORDS:]
        raise BuildFailed(f"`{' '.join(command)}` ended with code {done.returncode}: {words}")


def _web_commands(folder: Path) -> tuple[tuple[str, ...], ...]:
    package = f"{ONNXRUNTIME_WEB}@{ONNXRUNTIME_WEB_VERSION}"
    # Scripts of packages do not run: they could do anything, and none is needed.
    return (("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), package),)


def venv_python(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _litert_commands(folder: Path) -> tuple[tuple[str, ...], ...]:
    python = str(venv_python(folder))
    return (
        (sys.executable, "-m", "venv", str(folder)),
        (python, "-m", "pip", "install", "--quiet", f"litert-torch=={LITERT_TORCH_VERSION}", *_EDGEKD_NEEDS),
    )


_EDGEKD_NEEDS = ("pydantic", "safetensors", "torchvision", "timm", "onnx")
"""What reading a bundle's network takes: the converter rebuilds it in its own process."""

ADDONS = {
    ONNXRUNTIME_WEB: Addon(
        name=ONNXRUNTIME_WEB,
        what=f"ONNX Runtime Web {ONNXRUNTIME_WEB_VERSION} for the runtimes ort-web-node and ort-web-browser",
        size="150 MB",
        commands=_web_commands,
        proof=Path("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"),
    ),
    LITERT_CONVERTER: Addon(
        name=LITERT_CONVERTER,
        what=f"litert-torch {LITERT_TORCH_VERSION}, the converter to LiteRT, in an environment of its own",
        size="7 GB",
        commands=_litert_commands,
        proof=venv_python(Path()).parent / "litert-torch",
    ),
}
