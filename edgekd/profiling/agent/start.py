"""The first lines of the agent's archive: a Python that is too old for the agent is told apart from a broken one.

Every Python 3 must understand this file, so it is the archive's `__main__.py` and imports the agent only afterwards.
"""

import json
import sys

OLDEST = (3, 10)


def refusal(found: "tuple[int, ...]") -> str:
    """What the agent says on a Python that is too old for it; empty when it is not."""
    if found >= OLDEST:
        return ""
    wanted, there = ".".join(map(str, OLDEST)), ".".join(map(str, found[:3]))
    answer = {
        "error": "old-python",
        "message": "the board's python3 is " + there + ", and the agent needs " + wanted + " or newer",
        "hint": "install a newer one beside it and name it: --device-python /usr/bin/python" + wanted,
    }
    return "edgekd-agent: " + json.dumps(answer) + "\n"


if __name__ == "__main__":
    refused = refusal(tuple(sys.version_info[:3]))
    if refused:
        sys.stdout.write(refused)
        sys.exit(9)
    from edgekd.profiling.agent.__main__ import main

    sys.exit(main(sys.argv[1:]))
