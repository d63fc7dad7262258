"""The examples: accepted as they are, rehearsed on the embedded AWS with an interruption each, and exact when they are
cut by a notice and by a kill.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from sessions import Rehearsed

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


#: What makes each example short: it is rehearsed, not trained.
SHORT = [
    "save_frequency=60",
    "hyperparameters.learning_starts=40",
    "hyperparameters.train_freq=4",
    "hyperparameters.batch_size=32",
    "hyperparameters.policy_kwargs={net_arch: [32, 32]}",
]


def _example(path: Path) -> Any:
    if not path.stem.startswith("f1tenth"):
        return pytest.param(path, id=path.stem)
    there = importlib.util.find_spec("f1tenth_gym") is not None
    marks = [pytest.mark.f1tenth, pytest.mark.skipif(not there, reason="f1tenth_gym is not installed")]
    return pytest.param(path, id=path.stem, marks=marks)


ALL = [_example(path) for path in sorted(EXAMPLES.glob("*.yaml"))]


class Example(Rehearsed):
    """A run of an example as it stands, with some fields changed."""

    def __init__(self, context: Any, folder: Path, path: Path, root: str) -> None:
        self.context, self.folder, self.run_file, self.root = context, folder, path, root
        self.store = open_store(layout.run_url(root, load_run_file(path).run_id))


@pytest.fixture(scope="module")
def on_aws(aws_endpoint: str) -> str:
    """One bucket of the embedded AWS for all examples."""
    boto3.client("s3", endpoint_url=aws_endpoint).create_bucket(Bucket="examples")
    return "s3://examples/runs"


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL)
def test_rehearsed_with_an_interruption(warm: Any, on_aws: str, path: Path, tmp_path: Path) -> None:
    run = Example(warm, tmp_path, path, on_aws)
    script = (
        load_run_file(path).entry_point is not None
    )  # which has callbacks of its own: the signal comes from outside
    total, at = (2400, 500) if script else (160, 70)
    short = ["save_frequency=300"] if script else [*SHORT, 'callbacks=["interrupting:InterruptAt"]']
    options = tuple(part for change in (f"total_timesteps={total}", *short) for part in ("--set", change))
    assert run.session(f"SIGTERM@{at}", outside=script, options=options) == 75, run.log()
    stopped = run.head()
    assert stopped.outcome is None and at <= stopped.timesteps < total
    assert run.session(options=options) == 0, run.log()
    assert run.head().outcome == "completed" and run.head().timesteps == total, run.log()
    assert f"goes on at {stopped.timesteps} timesteps" in run.log()
    assert any(info.key.endswith("model.zip") for info in run.store.list("artifacts/final/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_agent", "several_agents"])
def test_the_package_as_a_library(name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import {name}; {name}.main(500)"
    env = {**os.environ, "TRAIN_CLOUD_THREADS": "1"}
    for _ in range(2):  # the second time the run is over, and its model is played once more
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=250
        )
        assert done.returncode == 0, done.stderr
        assert "return of one episode" in done.stdout


@pytest.mark.parametrize("path", ALL)
def test_accepted(path: Path) -> None:
    if path.stem.startswith("f1tenth"):  # one track in each process
        command = [sys.executable, "-m", "train_cloud", "validate", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return
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
