"""Every road ends at capacity 0 or in an exact resume, and nothing is lost: the table of docs/failures.md, row by row.

The trainer is the real one in each of these tests, and so are its store, its metadata service and its signals. Where
what systemd does matters, a machine plays the real unit files; elsewhere the process alone tells as much.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from fault_proxy import FaultProxy, refuse, stall
from groups import machines, make_group
from sessions import Rehearsed

from train_cloud.cli import main
from train_cloud.errors import InputError
from train_cloud.instance.group import Group
from train_cloud.learn.compare import differences
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.rehearsal.systemd import Machine
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.head import Head
from train_cloud.run.session import read_sessions
from train_cloud.worker.units import FINISH, TRAIN, UnitState

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
WATCH = "train-cloud-watch.service"
SAC: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 400,
    "save_frequency": 100,
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["accidents:Accidents"],
}
SLOW = {**SAC, "environment": {"id": "Pendulum-v1", "wrappers": ["accidents:Slow"]}}
LONG_UPDATE: dict[str, Any] = {
    "algorithm": "accidents:LongUpdate",
    "seed": 3,
    "total_timesteps": 128,
    "save_frequency": 64,
    "environment": {"id": "Pendulum-v1"},
    "hyperparameters": {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["accidents:Accidents"],
}


class Run(Rehearsed):
    """A run whose sessions are those of a worker, with accidents to come."""

    def __init__(self, context: Any, folder: Path, run: dict[str, Any], root: str | None = None) -> None:
        super().__init__(context, folder, run, root)
        self.accidents = folder / "accidents"
        self.accidents.mkdir()
        self.metadata = MetadataService("i-0123456789abcdef0")
        self.worker = {
            "ACCIDENTS": str(self.accidents),
            "TRAIN_CLOUD_AUTOSCALING_GROUP": "a-group",
            "TRAIN_CLOUD_RUN_ID": "a-run",
            "TRAIN_CLOUD_MAX_ATTEMPTS": "3",
            "TRAIN_CLOUD_PRICE_SECONDS": "0",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.endpoint,
        }

    def befall(self, *names: str, text: str = "") -> None:
        for name in names:
            (self.accidents / name).write_text(text)

    def go(self, *options: str, **env: str) -> int:
        """A trainer's life on this machine; its exit code."""
        return self.session(options=options, env={**self.worker, **env})

    def another_machine(self) -> None:
        """What comes is another boot's."""
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def commits(self) -> list[int]:
        """Timesteps of the checkpoints that are there."""
        found = {info.key.split("/")[1] for info in self.store.list(layout.CHECKPOINTS)}
        return sorted(int(name.split("-")[0]) for name in found)

    def said(self) -> str:
        return self.log()[-6000:]


@pytest.fixture(scope="module")
def sac(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """The same run, which nothing befell."""
    twin = Rehearsed(warm, tmp_path_factory.mktemp("sac"), SAC)
    assert twin.session() == 0, twin.log()
    return twin


def exact(run: Rehearsed, twin: Rehearsed) -> bool:
    assert differences(run.final(), twin.final()) == []
    return True


@pytest.fixture
def run(warm: Any, tmp_path: Path) -> Iterator[Run]:
    run = Run(warm, tmp_path, SAC)
    yield run
    run.metadata.close()


@pytest.fixture
def proxy(aws_endpoint: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws_endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def far_run(warm: Any, tmp_path: Path, s3_root: str, proxy: FaultProxy) -> Iterator[Run]:
    """A run in S3, which its workers reach through a proxy that may fail."""
    run = Run(warm, tmp_path, SAC, root=s3_root)
    run.worker["AWS_ENDPOINT_URL_S3"] = proxy.url
    yield run
    run.metadata.close()


# ------------------------------------------------------------------------------------------ 1. training code that fails


def test_code_that_raises_every_time_is_given_up(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.befall("150-raise-always")
    assert [run.go() for _ in range(4)] == [1, 1, 1, 1], run.said()
    head = run.head()
    assert (head.outcome, head.timesteps, head.attempts) == ("failed", 100, 3)
    assert run.go() == 0
    assert "nothing to do: the run has the outcome failed" in run.log()
    assert main(["status", run.store.url]) == 0
    told = capsys.readouterr().out
    assert "3 attempts without a new commit" in told
    assert "Traceback" in told and "accidents.py" in told and "ArithmeticError: on purpose" in told


def test_code_that_raises_once_is_started_again_and_ends_exactly(run: Run, sac: Rehearsed) -> None:
    run.befall("250-raise")
    assert [run.go(), run.go()] == [1, 0], run.said()
    assert run.head().attempts == 0 and run.head().reason is None
    assert exact(run, sac)
    assert len(read_sessions(run.store)) == 1, "one boot is one session"


def test_crashes_with_a_commit_between_them_are_no_loop(run: Run, sac: Rehearsed) -> None:
    """Each attempt commits once and dies: more attempts than are allowed in a row, and none in a row."""
    run.worker["TRAIN_CLOUD_MAX_ATTEMPTS"] = "2"
    run.befall("+130-raise-always")
    codes = []
    while 0 not in codes and len(codes) < 9:
        codes.append(run.go())
    assert codes == [1, 1, 1, 0], run.said()
    assert exact(run, sac)


def test_dying_without_a_word_is_counted_and_named(run: Run) -> None:
    """A trainer that is killed leaves nothing in the head: what systemd told finish about it is the reason."""
    from train_cloud.worker.endings import note_kill
    from train_cloud.worker.units import boot_id

    run.befall("150-SIGKILL-always")
    for _ in range(3):
        assert run.go() == -9
        note_kill(run.folder / "state", boot_id(), UnitState("activating", "auto-restart", "oom-kill", 9, 0))
    assert run.go() == 1
    head = run.head()
    assert head.outcome == "failed" and head.reason is not None
    assert "3 attempts" in head.reason and "was killed because the machine ran out of memory" in head.reason


def test_what_a_worker_refuses_ends_its_run_also_when_it_has_a_head(run: Run) -> None:
    """No other machine would do better: the outcome is failed, and not fenced by the session before."""
    assert run.session("SIGTERM@150", env={**run.worker, "INTERRUPT": ""}, outside=True) == 75, run.said()
    before = run.head()
    run.another_machine()
    assert run.go("--set", "seed=4") == 64, run.said()
    head = run.head()
    assert head.outcome == "failed" and (head.reason or "").startswith("seed: 4: run a-run was begun with 3")
    assert head.manifest == before.manifest


def test_a_run_file_that_cannot_be_read_ends_the_run(run: Run) -> None:
    assert run.session("SIGTERM@150", env=run.worker, outside=True) == 75, run.said()
    run.another_machine()
    assert run.go("--set", "limits.hours=soon") == 64
    assert run.head().outcome == "failed" and "limits.hours: 'soon'" in (run.head().reason or "")


# --------------------------------------------------------------------------------------------- 2. hangs, and what is none


class Watchdog:
    """The half of systemd's watchdog that listens: whoever was silent for too long has its process aborted.

    ``WatchdogSec=`` in systemd.service(5); the trainer's own patience is what is really asked about.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.bitten = seconds, False
        self.name = f"@watchdog-{uuid.uuid4().hex}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.name.replace("@", "\0"))

    def guard(self, process: Any) -> int:
        """Until the process has ended: its exit code."""
        self.socket.settimeout(0.1)
        fed = None
        deadline = time.monotonic() + 120
        while process.exitcode is None and time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if self.socket.recv(100) in (b"READY=1", b"WATCHDOG=1"):
                    fed = time.monotonic()
            if fed is not None and time.monotonic() - fed > self.seconds:
                self.bitten = True
                os.kill(process.pid, signal.SIGABRT)
                fed = None
            process.join(0)
        assert process.exitcode is not None
        return int(process.exitcode)


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(5)
    yield watchdog
    watchdog.socket.close()


PATIENCE = {"NOTIFY_SOCKET": "", "TRAIN_CLOUD_PATIENCE": "start=60 restore=4 steps=4 update=30 store=30"}
"""Shorter than what takes long in these tests, where it must not take that long."""


def guarded(run: Run, watchdog: Watchdog, **env: str) -> int:
    return watchdog.guard(run.start(env={**run.worker, **PATIENCE, "NOTIFY_SOCKET": watchdog.name, **env}))


def test_a_long_update_is_no_hang(warm: Any, tmp_path: Path, watchdog: Watchdog) -> None:
    run = Run(warm, tmp_path, LONG_UPDATE)
    try:
        assert guarded(run, watchdog) == 0, run.said()
    finally:
        run.metadata.close()
    assert not watchdog.bitten and run.head().outcome == "completed"


def test_a_long_restore_is_no_hang(far_run: Run, sac: Rehearsed, proxy: FaultProxy, watchdog: Watchdog) -> None:
    """Each object takes a second and a half, and all of them longer than a restore may be silent."""
    far_run.befall("350-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    far_run.another_machine()
    proxy.arm("get .*", stall(1.5), 6)
    began = time.monotonic()
    assert guarded(far_run, watchdog) == 0, far_run.said()
    assert time.monotonic() - began > 6 and not proxy.armed
    assert not watchdog.bitten
    assert exact(far_run, sac)


def test_a_hang_is_seen_told_and_gone_on_from(run: Run, sac: Rehearsed, watchdog: Watchdog) -> None:
    run.befall("250-hang")
    assert guarded(run, watchdog, TRAIN_CLOUD_PATIENCE="start=60 restore=60 steps=4 update=4 store=30") == -6, run.said()
    assert watchdog.bitten
    assert re.search(r"no sign of life for \d+ s while training, at:", run.log())
    assert "time.sleep(60)" in run.log(), "where it stands is in the journal"
    assert run.go() == 0, run.said()
    assert exact(run, sac)


def test_a_run_that_always_hangs_is_given_up_and_says_where(run: Run, watchdog: Watchdog) -> None:
    run.worker["TRAIN_CLOUD_MAX_ATTEMPTS"] = "1"
    run.befall("150-hang-always")
    assert guarded(run, watchdog, TRAIN_CLOUD_PATIENCE="start=60 restore=60 steps=4 update=4 store=30") == -6, run.said()
    assert run.go() == 1
    head = run.head()
    assert head.outcome == "failed"
    assert "no sign of life" in (head.reason or "") and "in _happen" in (head.reason or "")


# ------------------------------------------------------------------------------------ 4. notices, at any time (process)


def notice(run: Run, seconds: float) -> None:
    """On the disk, as watch leaves it before it stops the trainer."""
    from train_cloud.instance.notices import NOTICE_FILE, Notice, local_form
    from train_cloud.run.session import write_local
    from train_cloud.worker.units import boot_id

    now = datetime.now(timezone.utc)
    content = Notice(kind="spot", action="terminate", time=now + timedelta(seconds=seconds), seen=now)
    write_local(run.folder / "state" / NOTICE_FILE, local_form(content, boot_id()))


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for: {what}"
        time.sleep(0.02)


def ends(process: Any, run: Run, seconds: float = 90) -> int:
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        pytest.fail(f"it did not end: {run.said()}")
    return int(process.exitcode)


def test_a_notice_during_the_import_commits_nothing_and_loses_nothing(run: Run, sac: Rehearsed) -> None:
    run.befall("150-SIGTERM")
    assert run.go() == 75, run.said()
    before = run.head()
    run.another_machine()
    process = run.start(env={**run.worker, "STOP_AT_IMPORT": "1"}, state="state")
    until(lambda: (run.folder / "state" / "session.json").exists(), "the session has begun")
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, run) == 75, run.said()
    assert (run.head().timesteps, run.head().outcome) == (before.timesteps, None)
    run.another_machine()
    assert run.go() == 0, run.said()
    assert exact(run, sac)


@pytest.mark.parametrize("object", ["get manifest", "get model", "get segment"])
def test_a_notice_during_the_restore(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    far_run.befall("250-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    before = far_run.head()
    far_run.another_machine()
    proxy.arm(object, stall(3), 1)
    process = far_run.start(env=far_run.worker)
    until(lambda: not proxy.armed, "the restore has begun")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run) == 75, far_run.said()
    assert (far_run.head().timesteps, far_run.head().manifest) == (before.timesteps, before.manifest)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


@pytest.mark.parametrize("object", ["put model", "put segment", "put manifest", "swap head"])
def test_a_notice_during_a_save_repeats_nothing(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    """The commit under way ends, and the steps since are committed after it."""
    proxy.arm(object, stall(2), 1) if object != "swap head" else None
    far_run.befall("101-sleep", text="0.5")  # the commit of step 100 is under way
    process = far_run.start(env=far_run.worker)
    if object == "swap head":  # the first one takes the run
        until(lambda: "put model" in proxy.seen, "the first save")
        proxy.arm(object, stall(2), 1)
    until(lambda: not proxy.armed, "the save is under way")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run) == 75, far_run.said()
    (session,) = read_sessions(far_run.store)
    assert session.end is not None and session.end["ended_by"] == "notice"
    assert far_run.head().timesteps == session.end["last_timestep"] > 100
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


@pytest.mark.parametrize("object", ["put model.zip", "put manifest", "swap head"])
def test_a_notice_while_completing_completes(far_run: Run, sac: Rehearsed, proxy: FaultProxy, object: str) -> None:
    far_run.befall("300-SIGTERM")
    assert far_run.go() == 75, far_run.said()
    far_run.another_machine()
    far_run.befall("399-sleep", text="1")
    process = far_run.start("--set", "save_frequency=400", env=far_run.worker)
    until(lambda: not any(far_run.accidents.iterdir()), "the last step is near")
    proxy.arm(object, stall(2), 1)
    until(lambda: not proxy.armed, "it is completing")
    notice(far_run, 60)
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run) == 0, far_run.said()
    assert exact(far_run, sac)


# --------------------------------------------------------------------------- 5. and 6. too late, and without a store


def test_a_save_that_overruns_the_deadline_leaves_the_commit_before(
    far_run: Run, sac: Rehearsed, proxy: FaultProxy
) -> None:
    far_run.befall("150-sleep", text="0.3")
    far_run.befall("250-SIGTERM")
    proxy.arm("put segment", lambda exchange: exchange.answer(exchange.forward()), 1)  # of step 100
    process = far_run.start(env={**far_run.worker, "TRAIN_CLOUD_STOP_SECONDS": "2"})
    until(lambda: not proxy.armed, "the save of step 100")
    until(lambda: far_run.head().timesteps == 100, "the commit of step 100")
    proxy.arm("put .*", stall(600), float("inf"))
    time.sleep(8)
    # What systemd does after TimeoutStopSec, and EC2 at the announced time, whatever is under way.
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    assert ends(process, far_run) in (-9, 75), far_run.said()
    proxy.disarm()
    assert far_run.head().timesteps in (100, 200)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)


def test_an_outage_in_mid_run_delays_commits_and_nothing_else(
    far_run: Run, sac: Rehearsed, proxy: FaultProxy, watchdog: Watchdog
) -> None:
    """Longer than any phase may be silent: the training ends, waits, and commits when the store is back."""
    far_run.befall("90-sleep", text="0.1")
    process = far_run.start(env={**far_run.worker, **PATIENCE, "NOTIFY_SOCKET": watchdog.name})
    until(lambda: not any(far_run.accidents.iterdir()), "training")
    proxy.arm(".*", refuse(503, "ServiceUnavailable"), float("inf"))
    threading.Timer(8, proxy.disarm).start()
    assert watchdog.guard(process) == 0, far_run.said()
    assert not watchdog.bitten and "delayed" in far_run.log() or far_run.head().outcome == "completed"
    assert exact(far_run, sac)


def test_a_notice_during_an_outage_leaves_at_the_last_commit(far_run: Run, sac: Rehearsed, proxy: FaultProxy) -> None:
    far_run.worker["TRAIN_CLOUD_STOP_SECONDS"] = "3"
    far_run.befall("150-sleep", text="1")
    process = far_run.start(env=far_run.worker)
    until(lambda: not any(far_run.accidents.iterdir()), "step 150")
    until(lambda: far_run.head().timesteps == 100, "the commit of step 100")
    proxy.arm(".*", refuse(503, "ServiceUnavailable"), float("inf"))
    os.kill(process.pid, signal.SIGTERM)
    assert ends(process, far_run, 150) == 75, far_run.said()
    assert "while the store does not answer" in far_run.log()
    proxy.disarm()
    assert (far_run.head().timesteps, far_run.head().outcome) == (100, None)
    far_run.another_machine()
    assert far_run.go() == 0, far_run.said()
    assert exact(far_run, sac)
