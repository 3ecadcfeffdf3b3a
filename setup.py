"""Copies the card folders into a built wheel; everything else about the package stands in pyproject.toml.

The cards stand at the top of the repository, where people look for them and add to them. In an editable install nothing
is copied: `edgekd.core.shipped` finds them there.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CARD_FOLDERS = ("targets", "calibration")
SUFFIXES = (".yaml", ".npz", ".md")


class BuildWithCards(build_py):
    """`build_py` that also puts `targets/` and `calibration/` into `edgekd/shipped/`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._cards():
                self.mkpath(str(target.parent))
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(str(target) for _, target in self._cards())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *(str(source) for source, _ in self._cards())]

    def _cards(self) -> list[tuple[Path, Path]]:
        found = [path for folder in CARD_FOLDERS for path in sorted(Path(folder).iterdir()) if path.suffix in SUFFIXES]
        return [(path, Path(self.build_lib, "edgekd", "shipped", path)) for path in found]


setup(cmdclass={"build_py": BuildWithCards})
