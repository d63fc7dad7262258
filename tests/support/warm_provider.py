"""Terraform's AWS provider, begun once for all stacks of a test session.

Each verb of Terraform begins the provider anew, three hundred megabytes of program that are hashed and started before
anything is asked of it: most of what a plan takes. With ``TF_REATTACH_PROVIDERS`` it talks to one that runs (Terraform,
"Debugging Providers"). Which provider Terraform would have taken, and whether it is the one of the lock file, is not
looked at then: ``make check`` does that, and tests/test_wheel.py, which begins it as ever.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from train_cloud.rehearsal.terraform import PROVIDER, find_mirror

VARIABLE = "TF_REATTACH_PROVIDERS"
_START_SECONDS = 120.0


@contextlib.contextmanager
def warm_provider(log: Path) -> Iterator[str | None]:
    """
    :param log: receives what the provider says
    :return: the value of ``TF_REATTACH_PROVIDERS``; None where no unpacked provider lies on this disk
    """
    program = _program()
    if program is None:
        yield None
        return
    # None of the caller's settings: each Terraform sends it its own. It ends with this process, however that ends.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "TF_"))}
    setpriv = shutil.which("setpriv")
    ending = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*ending, str(program), "-debug"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            text=True,
        )
    alarm = threading.Timer(_START_SECONDS, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        lines = (re.search(rf"{VARIABLE}='(.*)'", line) for line in process.stdout)
        address = next((found[1] for found in lines if found), None)
        alarm.cancel()
        yield address
    finally:
        process.kill()
        process.communicate()


def _program() -> Path | None:
    mirror = find_mirror()
    found = sorted((mirror / PROVIDER).glob("*/linux_amd64/terraform-provider-aws_*")) if mirror else []
    return next((path for path in reversed(found) if os.access(path, os.X_OK) and path.is_file()), None)
