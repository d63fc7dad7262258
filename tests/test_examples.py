"""The examples: accepted as they are, and exact when they are cut by a notice and by a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.config import load_run_file
from train_cloud.learn.check import check
from train_cloud.learn.compare import differences
from train_cloud.run import layout
from train_cloud.run.head import Head, read_head
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

EXAMPLES = Path(__file__).parent.parent / "examples"
TOTAL = 2000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_accepted(path: Path) -> None:
    report = check(load_run_file(path))
    if path.stem != "own_script":
        assert report.choice is not None and report.choice.exact


def start(name: str, folder: Path, store: str) -> subprocess.Popen[bytes]:
    command = ["train", str(EXAMPLES / f"{name}.yaml"), "--store", store, "--set", f"total_timesteps={TOTAL}"]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "train_cloud", *command, "--state-dir", str(folder / f"state-{Path(store).name}")],
            env={**os.environ, "TRAIN_CLOUD_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def head_of(name: str, store: str) -> Head | None:
    read = read_head(open_store(layout.run_url(store, name.replace("_", "-"))))
    return read[0] if read else None


def final(name: str, store: str) -> Snapshot:
    head = head_of(name, store)
    assert head is not None and head.outcome == "completed" and head.manifest is not None
    opened = open_store(layout.run_url(store, name.replace("_", "-")))
    return restore(opened, read_manifest(opened, head.manifest))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_environment", "own_script"])
def test_cut_twice_and_equal_bit_for_bit(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    stores = {}
    for kind in ("twin", "cut"):
        (tmp_path / kind).mkdir()
        stores[kind] = str(tmp_path / kind)
    assert start(name, tmp_path, stores["twin"]).wait(100) == 0, log.read_text()
    for number, at, expected in ((signal.SIGTERM, 500, 75), (signal.SIGKILL, 1200, -signal.SIGKILL)):
        session = start(name, tmp_path, stores["cut"])
        try:
            deadline = time.monotonic() + 100
            while True:
                head = head_of(name, stores["cut"])
                if head is not None and head.timesteps >= at:
                    break
                assert session.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            session.send_signal(number)
            assert session.wait(60) == expected, log.read_text()
        finally:
            session.kill()
            session.wait()
    assert start(name, tmp_path, stores["cut"]).wait(100) == 0, log.read_text()
    assert differences(final(name, stores["cut"]), final(name, stores["twin"])) == []
