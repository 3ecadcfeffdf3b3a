"""`NOTICE.txt`: what is known of the licences that a package's receiver has to look at, and what is not known."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from edgekd.export.licences import UNKNOWN, licences_of
from edgekd.export.sbom import MODEL_LICENSE, MODEL_NAME

NOTICE_FILE = "NOTICE.txt"
_WIDTH = 110


def notice_text(versions: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The text.

    Args:
        versions: Of the libraries that made the package, by distribution.
        facts: Of the package; of these it tells `model` and `model_license`.
    """
    name = facts.get(MODEL_NAME, "the model")
    licence = facts.get(MODEL_LICENSE)
    if licence is None:
        model = (
            f"The licence of {name} is not known: it was not given (--license), and weights do not carry one. What was "
            "made from it here, a student that it taught or a quantized graph, may be bound by it, and by the licence "
            "of the images that it was trained on. Find out before you hand this on."
        )
    else:
        model = (
            f"The licence of {name}, as it was given: {licence}. What was made from it here, a student that it taught "
            "or a quantized graph, may be bound by it, and by the licence of the images that it was trained on."
        )
    libraries = {other: version for other, version in versions.items() if other != "python"}
    found = licences_of(libraries)
    lines = [f"  {other} {libraries[other]}: {found[other] or UNKNOWN}" for other in found]
    parts = [
        "Licences\n========\n",
        textwrap.fill(model, _WIDTH) + "\n",
        "This package holds a model and text, no library. It was made, and where figures are given measured, with\n"
        "these, whose licences are those that the installed packages state:\n",
        "\n".join(lines) + "\n" if lines else "  (not recorded)\n",
    ]
    return "\n".join(parts)
