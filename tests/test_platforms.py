"""What a platform answers, and the one deadline that it, signals and limits set."""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from train_cloud.config import parse_run_file
from train_cloud.errors import InputError
from train_cloud.platforms.ec2.notices import NOTICE_FILE, Notice, local_form
from train_cloud.platforms.ec2.worker import GROUP, Worker
from train_cloud.platforms.here import here
from train_cloud.platforms.local import Local
from train_cloud.run.head import read_head
from train_cloud.runtime.deadline import StopSignals, at_limit
from train_cloud.store import open_store
from train_cloud.trainer import Deadline
from train_cloud.whole_file import write_local

RUN = {
    "run_id": "a-run",
    "algorithm": "ppo",
    "total_timesteps": 64,
    "save_frequency": 64,
    "environment": {"id": "Pendulum-v1"},
}


def test_the_launch_says_which_platform_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GROUP, raising=False)
    assert isinstance(here(), Local) and here().max_attempts is None
    monkeypatch.setenv(GROUP, "a-group")
    monkeypatch.setenv("TRAIN_CLOUD_MAX_ATTEMPTS", "3")
    assert isinstance(here(), Worker) and here().max_attempts == 3


def test_secrets_are_variables_where_a_person_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_run_file({**RUN, "secrets": {"A_KEY": "/parameter"}})
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(InputError, match=r"secrets\.A_KEY"):
        Local().secrets(config)
    monkeypatch.setenv("A_KEY", "value")
    assert Local().secrets(config) == {}


def test_giving_up_ends_a_run_only_where_nobody_looks_on(tmp_path: Path) -> None:
    for platform, outcome in ((Local(), None), (Worker(), "failed")):
        store = open_store(str(tmp_path / str(outcome) / "runs" / "a-run"))
        platform.give_up(store, "it cannot be mended", 1)
        read = read_head(store)
        assert (read[0].outcome if read is not None else None) == outcome


def test_starts_that_cannot_acquire_the_run_are_counted_until_one_can(tmp_path: Path) -> None:
    store, worker = open_store(str(tmp_path / "runs" / "a-run")), Worker()
    for _ in range(20):
        assert worker.admit(store, tmp_path) is None
    with pytest.raises(InputError, match="20 starts"):
        worker.admit(store, tmp_path)
    worker.acquired(tmp_path)
    assert worker.admit(store, tmp_path) is None
    for _ in range(30):
        assert Local().admit(store, tmp_path) is None


def test_a_notice_of_this_boot_is_when_the_machine_goes(tmp_path: Path) -> None:
    worker, at = Worker(), datetime.now(timezone.utc) + timedelta(seconds=120)
    notice = Notice(kind="spot", action="terminate", time=at, seen=at)
    write_local(tmp_path / NOTICE_FILE, local_form(notice, "another boot"))
    assert worker.goes_at(tmp_path) is None
    write_local(tmp_path / NOTICE_FILE, local_form(notice, worker.boot_id))
    assert worker.goes_at(tmp_path) == at and Local().goes_at(tmp_path) is None


def test_a_limit_a_signal_and_a_notice_set_one_deadline() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    goes_at: list[datetime | None] = [None]
    deadline, told = Deadline(), list[str | None]()
    deadline.when_set = lambda: told.append(deadline.reason)
    try:
        signals = StopSignals(deadline, lambda: goes_at[0])
        assert deadline.at() is None and deadline.allows(1e9) and not signals.save_requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.save_requested() and not signals.save_requested()

        at_limit(deadline, "limits.hours: used")
        at_limit(deadline, "limits.dollars: spent")
        assert deadline.at() is not None and not deadline.urgent and deadline.limit == "limits.hours: used"
        assert deadline.urgent_at() is None and deadline.allows(600)

        goes_at[0] = datetime.now(timezone.utc) + timedelta(seconds=40)
        os.kill(os.getpid(), signal.SIGTERM)
        at = deadline.urgent_at()
        assert at is not None and 20 < at - time.monotonic() < 31, "ten seconds before the machine goes"
        assert vars(deadline)["limit"] is None and deadline.allows(5) and not deadline.allows(600)
        assert told == ["limit", "notice"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert deadline.at() == at, "the first one counts"
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def test_handlers_of_the_users_code_are_replaced_again_by_whoever_asks_for_the_deadline() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    deadline = Deadline()
    try:
        signals = StopSignals(deadline, lambda: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert deadline.at() is None
        signals.look()
        assert deadline.at() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert deadline.at() is not None and deadline.reason == "signal"
    finally:
        for number, action in before.items():
            signal.signal(number, action)
