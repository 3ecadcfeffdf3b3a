"""The few lines that put the agent on a board: sent to its `python3 -` with one call of `install` added at the end.

They run before the agent is there and must be understood by a Python that is too old for it (3.6 is enough), so that
the agent itself can say so. Nothing is imported but the standard library.
"""

import base64
import hashlib
import json
import os
import sys


def install(folder: str, name: str, digest: str, text: str) -> None:
    """Writes the agent to `folder`/`name`, whole or not at all, and says so."""
    answer = {"installed": name}
    made = os.path.join(folder, "." + name + "." + str(os.getpid()))
    try:
        content = base64.b64decode(text)
        if hashlib.sha256(content).hexdigest() != digest:
            answer = {"error": "damaged", "message": "the agent arrived damaged", "hint": ""}
        else:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with open(made, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            os.replace(made, os.path.join(folder, name))
    except OSError as err:
        full = err.errno in (28, 122)  # ENOSPC, EDQUOT
        answer = {
            "error": "disk-full" if full else "not-writable",
            "message": "cannot write " + folder + " on the board: " + (err.strerror or str(err)),
            "hint": "free some space there" if full else "the folder must belong to the user who logs in",
        }
        if os.path.exists(made):
            os.unlink(made)
    sys.stdout.write("edgekd-agent: " + json.dumps(answer) + "\n")
