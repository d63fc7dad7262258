"""A program that tells what process it is, and does as it is told: ends with a code, sleeps, raises, starts one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from train_cloud import child_process, warm_process


def told() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "folder": str(Path.cwd()),
        "argv": sys.argv[1:],
        "marked": os.environ.get("MARKED"),
        "main": sys.modules["__main__"].__name__,
        "torch": "torch" in sys.modules,
        "threads": threading.active_count(),
        "handlers": [signal.getsignal(number) is not signal.SIG_IGN for number in (signal.SIGTERM, signal.SIGINT)],
    }


if __name__ == "__main__":
    print(json.dumps(told()), flush=True)
    doing, *more = sys.argv[1:] or ["end"]
    if doing == "code":
        sys.exit(int(more[0]))
    if doing == "raise":
        raise ValueError("told to")
    if doing == "sleep":
        time.sleep(600)
    if doing == "die-with":
        warm_process.die_with_parent(int(more[0]))
        print("alive", flush=True)
        time.sleep(600)
    if doing == "start":  # one of its own, with what is at its side
        with Path(more[0]).open("wb") as said:
            child = warm_process.start(
                child_process.command("telling", "code", "7", user_code=True),
                env=child_process.environment(),
                stdout=said,
            )
            print(json.dumps({"code": child.wait(60), "popen": isinstance(child, subprocess.Popen)}), flush=True)
