"""One hash seed for all processes of a run, and nothing else about a process that is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train_cloud import hash_seed
from train_cloud.runtime.reproducibility import differences

#: What the command does first; then what this process is like.
SHOWN = """
import os, sys
from train_cloud import hash_seed
{before}
hash_seed.fix({seed})
print(os.getpid(), os.environ.get("PYTHONHASHSEED"), hash("eggs"), *sys.argv[1:])
{after}
"""


def start(
    script: Path, *arguments: str, seed: str = "", before: str = "", after: str = "", **env: str
) -> subprocess.Popen[str]:
    script.write_text(SHOWN.format(seed=seed, before=before, after=after))
    clean = {name: value for name, value in os.environ.items() if name != hash_seed.VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-X", "utf8", str(script), *arguments],
        env={**clean, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("env", "asked", "expected"),
    [({}, "", "0"), ({"PYTHONHASHSEED": "random"}, "", "0"), ({"PYTHONHASHSEED": "7"}, "", "7"), ({}, "'5'", "5")],
)
def test_each_process_orders_alike(tmp_path: Path, env: dict[str, str], asked: str, expected: str) -> None:
    seen = []
    for number in range(2):
        process = start(tmp_path / "script.py", "--a", "b c", seed=asked, **env)
        out, _ = process.communicate(timeout=60)
        pid, seed, order, *arguments = out.split(maxsplit=3)
        assert (process.returncode, int(pid), seed, arguments) == (0, process.pid, expected, ["--a b c\n"]), number
        seen.append(order)
    assert seen[0] == seen[1]


def test_signals_reach_the_process_that_was_started(tmp_path: Path) -> None:
    wait = "sys.stdout.flush(); sys.exit(3 if sys.stdin.read() == 'word' else 4)"
    process = start(tmp_path / "script.py", after=wait)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process = start(tmp_path / "script.py", after=wait)
    assert process.communicate("word", timeout=30)[0] and process.returncode == 3


def test_where_a_process_cannot_be_replaced_it_waits_for_the_other(tmp_path: Path) -> None:
    """As on Windows: exit codes come through, and Ctrl-C is the other one's to answer."""
    process = start(tmp_path / "script.py", before="os.name = 'nt'", after="sys.stdout.flush(); sys.exit(75)")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and out.split()[1] == "0" and int(out.split()[0]) != process.pid
    answer = (
        "import time, signal\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(75))\nprint(flush=True); time.sleep(60)"
    )
    process = start(tmp_path / "script.py", before="os.name = 'nt'", after=answer)
    assert process.stdout is not None
    inner = int(process.stdout.readline().split()[0])
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert process.poll() is None
    os.kill(inner, signal.SIGINT)
    assert process.wait(30) == 75


def test_another_seed_is_named_and_so_is_none() -> None:
    assert differences({hash_seed.VARIABLE: "0"}, {hash_seed.VARIABLE: "0"}) == []
    assert differences({hash_seed.VARIABLE: "0"}, {hash_seed.VARIABLE: "7"}) == ["PYTHONHASHSEED was 0, is 7"]
    assert differences({}, {hash_seed.VARIABLE: "0"}) == ["PYTHONHASHSEED was None, is 0"]
    (told,) = differences({hash_seed.VARIABLE: "random"}, {hash_seed.VARIABLE: "random"})
    assert "not fixed" in told


@pytest.mark.parametrize(("command", "seed"), [("train", "0"), ("evaluate", "0"), ("status", None)])
def test_the_command_line_sees_to_it(tmp_path: Path, command: str, seed: str | None) -> None:
    """Shown by what a process of it finds when it leaves, whatever the command says to its arguments."""
    code = (
        "import atexit, os, sys; atexit.register(lambda: print('seed:', os.environ.get('PYTHONHASHSEED')));"
        "from train_cloud.cli import main; sys.exit(main())"
    )
    env = {name: value for name, value in os.environ.items() if name != hash_seed.VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--nonsense"], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 64, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("seed:")] == [f"seed: {seed}"]
