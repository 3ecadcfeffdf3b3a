"""Which licence an installed library has, as an SPDX expression where it says so in a form that can be read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

UNKNOWN = "not stated"
_SPDX = {
    "mit": "MIT",
    "mit license": "MIT",
    "apache-2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "license :: osi approved :: mit license": "MIT",
    "license :: osi approved :: apache software license": "Apache-2.0",
    "license :: other/proprietary license": "LicenseRef-proprietary",
}
"""What packages write before PEP 639, where it means one licence only; "BSD License" does not."""


def licence_of(name: str, version: str) -> str | None:
    """The SPDX expression of an installed distribution; None where another version is installed, or none, or unclear.

    Args:
        name: On the package index.
        version: The one that is asked about.
    """
    try:
        found: Any = metadata.metadata(name)  # a Message, of which the stubs know only a part
    except metadata.PackageNotFoundError:
        return None
    if found["Version"] != version:
        return None
    if expression := found.get("License-Expression"):
        return str(expression)
    said = [found.get("License") or "", *(found.get_all("Classifier") or [])]
    known = {_SPDX[text.strip().lower()] for text in said if text.strip().lower() in _SPDX}
    return known.pop() if len(known) == 1 else None


def licences_of(versions: Mapping[str, str]) -> dict[str, str | None]:
    """The licence of each library, in the order of their names."""
    return {name: licence_of(name, version) for name, version in sorted(versions.items())}
