"""Writes `trtexec_options.json`: the options that `trtexec` of each release of TensorRT understands.

    python tests/golden/trtexec_options.py REPOSITORY

REPOSITORY is a clone of github.com/NVIDIA/TensorRT (Apache-2.0). Read is `samples/common/sampleOptions.cpp` in the
commits of the releases; only the names of options are kept.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

OPTIONS = Path(__file__).with_name("trtexec_options.json")
COMMITS = {
    "8.5.3": "b0c259a7", "8.6.1": "c89bc836", "10.0.1": "d3107c88", "10.3.0": "84dd6ed1", "10.7.0": "17003e43",
    "10.13.2": "a471b2ae", "10.16.0": "52399f55", "11.0.0": "771d8efd", "11.1.0": "82d1dca8",
}  # fmt: skip
OTHER_PROGRAMS = ("SafeBuilderOptions",)
"""Parsers in the same file that `trtexec` does not use."""


def options_in(source: str) -> list[str]:
    """Names of the options that the parsers of `trtexec` take out of a command line."""
    parsers = re.split(r"^void (\w+)::parse\(", source, flags=re.MULTILINE)
    found: set[str] = set()
    for name, body in zip(parsers[1::2], parsers[2::2], strict=True):
        if name not in OTHER_PROGRAMS:
            # Up to the end of the function; helpers between two parsers belong to none.
            found.update(re.findall(r'"--(\w+)"', body.partition("\n}\n")[0]))
    found.update(re.findall(r'"--(\w+)"', parsers[0]))
    return sorted(found)


def main() -> None:
    """Writes the table."""
    table = {}
    for version, commit in COMMITS.items():
        command = ["git", "-C", sys.argv[1], "show", f"{commit}:samples/common/sampleOptions.cpp"]
        table[version] = options_in(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = ",\n".join(f'"{version}": {json.dumps(names)}' for version, names in table.items())
    OPTIONS.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
