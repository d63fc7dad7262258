"""Processes that are forked from one with its imports done are what a new interpreter's would be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from until import until

from train_cloud import child_process
from train_cloud.warm_process import Child, WarmProcess, start


def environment(**more: str) -> dict[str, str]:
    return child_process.environment(**{"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **more})


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmProcess]:
    found = WarmProcess.begin(environment())
    assert found is not None and found.why_not is None
    yield found
    found.close()


def begin(
    warm: WarmProcess | None, out: Path, *arguments: str, env: dict[str, str] | None = None, **options: Any
) -> Child:
    with out.open("wb") as said:
        command = child_process.command("telling", *arguments, user_code=True)
        return start(command, env=env or environment(), stdout=said, stderr=said, warm=warm, **options)


def told(out: Path) -> dict[str, Any]:
    until(lambda: out.read_text().count("\n") > 0, "a first line", told=out.read_text)
    found: dict[str, Any] = json.loads(out.read_text().splitlines()[0])
    return found


@pytest.mark.parametrize("forked", [True, False])
def test_it_is_a_child_of_the_caller(warm: WarmProcess, tmp_path: Path, forked: bool) -> None:
    given = environment(MARKED="yes", **({} if forked else {"OMP_NUM_THREADS": "2"}))
    child = begin(warm, tmp_path / "out", "code", "5", env=given, cwd=tmp_path, new_session=True)
    assert child.wait(120) == 5 and child.poll() == child.returncode == 5
    assert isinstance(child, subprocess.Popen) is not forked
    found = told(tmp_path / "out")
    assert found == {
        "pid": child.pid,
        "parent": os.getpid(),
        "session": child.pid,
        "folder": str(tmp_path),
        "argv": ["code", "5"],
        "marked": "yes",
        "main": "__main__",
        "torch": found["torch"],
        "threads": 1,
        "handlers": [True, True],
    }
    assert found["torch"] or not forked


def test_without_a_session_of_its_own_it_is_in_the_callers(warm: WarmProcess, tmp_path: Path) -> None:
    assert begin(warm, tmp_path / "out").wait(120) == 0
    assert told(tmp_path / "out")["session"] == os.getsid(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_end_it(warm: WarmProcess, tmp_path: Path, number: signal.Signals) -> None:
    child = begin(warm, tmp_path / "out", "sleep")
    told(tmp_path / "out")
    assert child.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    child.send_signal(number)
    assert child.wait(60) == -number
    child.kill()  # of one that is gone, nothing


def test_what_it_raises_is_printed(warm: WarmProcess, tmp_path: Path) -> None:
    assert begin(warm, tmp_path / "out", "raise").wait(120) == 1
    assert (tmp_path / "out").read_text().rstrip().endswith("ValueError: told to")


def test_what_it_starts_is_forked_too(warm: WarmProcess, tmp_path: Path) -> None:
    child = begin(warm, tmp_path / "out", "start", str(tmp_path / "below"))
    assert child.wait(120) == 0, (tmp_path / "out").read_text()
    assert json.loads((tmp_path / "out").read_text().splitlines()[1]) == {"code": 7, "popen": False}
    below = told(tmp_path / "below")
    assert below["parent"] == child.pid and below["torch"]


def test_it_ends_with_its_parent(warm: WarmProcess, tmp_path: Path) -> None:
    child = begin(warm, tmp_path / "out", "die-with", str(os.getpid()))
    until(lambda: "alive" in (tmp_path / "out").read_text(), "its word")
    assert child.poll() is None
    child.kill()
    assert child.wait(60) == -signal.SIGKILL
    # Of a parent that has ended already.
    assert begin(warm, tmp_path / "out", "die-with", "1").wait(120) == -signal.SIGTERM


def test_names_that_are_taken(warm: WarmProcess) -> None:
    assert warm.has_loaded(["of_nobody", "numpy", "json"]) == "numpy"
    assert warm.has_loaded(["of_nobody"]) is None


def test_it_ends_with_the_process_that_began_it_and_others_are_started_without_it(tmp_path: Path) -> None:
    found = WarmProcess.begin(environment())
    assert found is not None
    process = psutil.Process(found._pid)
    child = begin(found, tmp_path / "first", "sleep")
    told(tmp_path / "first")
    process.kill()
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end")
    later = begin(found, tmp_path / "second", "code", "3")
    assert isinstance(later, subprocess.Popen) and later.wait(120) == 3
    assert child.poll() is None  # what was forked from it lives on
    child.kill()
    child.wait(60)
    found.close()
    began = time.monotonic()
    other = WarmProcess.begin(environment())
    assert other is not None
    second = psutil.Process(other._pid)
    other.close()
    assert not second.is_running() and time.monotonic() - began < 600
