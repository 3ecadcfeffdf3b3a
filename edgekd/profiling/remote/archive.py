"""The agent as one file: a zipped application made of modules of this package, equal for equal sources.

What belongs to it is stated by the agent itself (`NEEDS`); a test holds that none of it imports anything else.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import io
import zipfile
from dataclasses import dataclass

from edgekd.profiling.agent import NEEDS

_EPOCH = (1980, 1, 1, 0, 0, 0)
_START = "edgekd/profiling/agent/start.py"


@dataclass(frozen=True)
class Archive:
    """The agent's bytes and their digest."""

    content: bytes
    digest: str

    @property
    def name(self) -> str:
        """Of the file on the board; another agent has another name."""
        return f"agent-{self.digest[:16]}.pyz"


@functools.cache
def agent_archive() -> Archive:
    """The agent of this version of edgekd."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        sources = agent_sources()
        for name, text in sorted({"__main__.py": sources[_START], **sources}.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on every system
            archive.writestr(entry, text)
    return Archive(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest())


def agent_sources() -> dict[str, str]:
    """Text by path of every module that goes to the board, the packages above them included."""
    root = importlib.resources.files("edgekd")
    agent = root.joinpath("profiling", "agent")
    paths = [f"edgekd/profiling/agent/{entry.name}" for entry in agent.iterdir() if entry.name.endswith(".py")]
    for module in NEEDS:
        paths.append(module.replace(".", "/") + ".py")
        parts = module.split(".")[:-1]
        paths += ["/".join(parts[: depth + 1]) + "/__init__.py" for depth in range(len(parts))]
    paths += ["edgekd/__init__.py", "edgekd/profiling/__init__.py"]
    return {path: root.joinpath(*path.split("/")[1:]).read_text("utf-8") for path in sorted(set(paths))}
