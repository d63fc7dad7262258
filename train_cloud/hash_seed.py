"""One hash seed for all processes of a run.

The order of a set of strings depends on it, and with it what ``rng.choice(list(names))`` draws. Python chooses another
one in each process unless ``PYTHONHASHSEED`` says which, and reads it only when it starts (Python documentation,
"Command line and environment").
"""

from __future__ import annotations

import os
import subprocess
import sys

VARIABLE = "PYTHONHASHSEED"
#: Any number does. With 0 nothing is added to the hash.
SEED = "0"
RANDOM = "random"


def effective() -> str:
    """This process's hash seed; ``random`` where nobody fixed it."""
    return RANDOM if sys.flags.ignore_environment else os.environ.get(VARIABLE) or RANDOM


def fix(seed: str | None = None) -> None:
    """Go on only in a process that began with a fixed hash seed: where this is none, start the same command again in
    its place, as the same process.

    Call before anything was begun that would be lost.

    :param seed: this one; by default the one that is set, else ``SEED``
    """
    found = effective()
    wanted = seed or (SEED if found == RANDOM else found)
    if found == wanted or wanted == RANDOM or sys.flags.ignore_environment or not sys.executable:
        return
    os.environ[VARIABLE] = wanted
    command = [sys.executable, *sys.orig_argv[1:]]
    if os.name == "nt":  # there exec begins another process, and the shell takes this one's end for the command's
        sys.exit(_wait_for(command))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)


def _wait_for(command: list[str]) -> int:
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the console sends it to both, and the other one decides
                continue
