"""watch, with a real metadata service, a systemctl that writes down what it is asked, a store that may be away."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from groups import AutoScaling, scripted_autoscaling

from train_cloud.errors import InputError, StoreUnavailable
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import local_notice
from train_cloud.platforms.ec2.units import FINISH, TRAIN
from train_cloud.platforms.ec2.watch import Watch, watch
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.run.layout import run_url
from train_cloud.run.session import begin_session, local_session, read_sessions
from train_cloud.store import ObjectStore, open_store

BOOT = "b007"
SYSTEMCTL = """#!/bin/sh
# Writes down every verb that changes something; what `show` says lies in files.
here=$(dirname "$0")
case "$1" in
show) for unit; do :; done; cat "$here/$unit" ;;
*) [ ! -e "$here/broken" ] || { echo "Failed to connect to bus" >&2; exit 1; }
   echo "$*" >> "$here/asked" ;;
esac
"""
ACTIVE = "ActiveState=active\nSubState=running\nResult=success\nExecMainStatus=0\nNRestarts=0\n"
STARTING = ACTIVE.replace("active", "activating", 1).replace("running", "start")
OVER = ACTIVE.replace("active", "inactive", 1).replace("running", "dead").replace("Status=0", "Status=75")
STOP = f"stop --no-block {TRAIN}"
START = f"start --no-block {TRAIN}"
CHECKPOINT = f"kill --kill-who=main --signal=SIGUSR1 {TRAIN}"


class Systemd:
    """A ``systemctl`` on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "systemctl").write_text(SYSTEMCTL)
        (folder / "systemctl").chmod(0o755)
        self.is_now(ACTIVE)
        (folder / FINISH).write_text(OVER)

    def is_now(self, train: str) -> None:
        (self.folder / TRAIN).write_text(train)

    @property
    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    systemd = Systemd(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{systemd.folder}:{os.environ['PATH']}")
    return systemd


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with MetadataService("i-0abc") as service:
        yield service


@pytest.fixture
def store(folder_root: str) -> ObjectStore:
    return open_store(run_url(folder_root, "r"))


@pytest.fixture
def state_dir(tmp_path: Path, store: ObjectStore) -> Path:
    """Of a machine whose trainer has begun session 1."""
    state_dir = tmp_path / "state"
    begin_session(store, state_dir, instance_id="i-0abc", boot_id=BOOT, details={}, persist=True)
    return state_dir


@pytest.fixture
def watcher(store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd) -> Iterator[Watch]:
    watcher = Watch(store, state_dir, Metadata(service.endpoint, timeout_s=0.3), boot_id=BOOT)
    yield watcher
    watcher.close()


def now(seconds: float = 0) -> datetime:
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def notices(store: ObjectStore, wanted: int = 1, wait_s: float = 10) -> list[dict[str, Any]]:
    """The session's recorded notices, as soon as there are ``wanted``."""
    deadline = time.monotonic() + wait_s
    while True:
        (session,) = read_sessions(store)
        if len(session.notices) >= wanted or time.monotonic() > deadline:
            return session.notices
        time.sleep(0.02)


def test_without_a_notice_nothing_happens(watcher: Watch, systemd: Systemd, state_dir: Path) -> None:
    for _ in range(3):
        watcher.poll(now())
    assert systemd.asked == []
    assert not (state_dir / "notice.json").exists()


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_a_spot_notice_stops_the_trainer_once_and_is_recorded(
    watcher: Watch, systemd: Systemd, service: MetadataService, store: ObjectStore, state_dir: Path, action: str
) -> None:
    when = service.interrupt(action, seconds=120)
    for _ in range(3):
        watcher.poll(now())
    assert systemd.asked == [STOP]
    local = json.loads((state_dir / "notice.json").read_text())
    assert (local["kind"], local["action"], local["boot_id"]) == ("spot", action, BOOT)
    assert datetime.fromisoformat(local["time"].replace("Z", "+00:00")) == when
    (recorded,) = notices(store)
    assert recorded == {name: local[name] for name in ("kind", "action", "time", "seen")}


def test_the_notice_is_on_the_disk_before_the_trainer_is_stopped(
    watcher: Watch, systemd: Systemd, service: MetadataService, state_dir: Path
) -> None:
    (systemd.folder / "broken").touch()
    service.interrupt()
    watcher.poll(now())
    assert systemd.asked == []
    found = local_notice(state_dir, BOOT)
    assert found is not None and found.kind == "spot"
    (systemd.folder / "broken").unlink()
    watcher.poll(now())
    assert systemd.asked == [STOP]


def test_a_scale_in_stops_the_trainer(
    watcher: Watch, systemd: Systemd, service: MetadataService, state_dir: Path
) -> None:
    service.scale_in()
    for _ in range(3):
        watcher.poll(now())
    assert systemd.asked == [STOP]
    found = local_notice(state_dir, BOOT)
    assert found is not None and found.kind == "scale-in"
    assert found.time - found.seen == timedelta(seconds=120)


@pytest.mark.parametrize("state", ["Pending", "InService", "Standby", "Detached"])
def test_no_other_lifecycle_state_does(watcher: Watch, systemd: Systemd, service: MetadataService, state: str) -> None:
    service.set("meta-data/autoscaling/target-lifecycle-state", state)
    watcher.poll(now())
    assert systemd.asked == []


def test_a_rebalance_recommendation_asks_for_one_checkpoint_and_carries_on(
    watcher: Watch, systemd: Systemd, service: MetadataService, store: ObjectStore, state_dir: Path
) -> None:
    service.recommend_rebalance()
    for _ in range(3):
        watcher.poll(now())
    assert systemd.asked == [CHECKPOINT]
    assert not (state_dir / "notice.json").exists()
    assert notices(store)[0]["kind"] == "rebalance"


def test_a_trainer_that_is_still_starting_gets_no_signal_that_would_kill_it(
    watcher: Watch, systemd: Systemd, service: MetadataService
) -> None:
    systemd.is_now(STARTING)
    service.recommend_rebalance()
    watcher.poll(now())
    assert systemd.asked == []
    systemd.is_now(ACTIVE)
    watcher.poll(now())
    watcher.poll(now())
    assert systemd.asked == [CHECKPOINT]


def test_all_three_at_once(watcher: Watch, systemd: Systemd, service: MetadataService, store: ObjectStore) -> None:
    service.recommend_rebalance()
    service.interrupt()
    service.scale_in()
    watcher.poll(now())
    assert systemd.asked == [STOP, STOP, CHECKPOINT]
    assert [notice["kind"] for notice in notices(store, 3)] == ["spot", "scale-in", "rebalance"]


def lose_the_token(service: MetadataService) -> None:
    service.expire_tokens()


def answer_500(service: MetadataService) -> None:
    service.fail(6, 500)


def answer_404_to_everything(service: MetadataService) -> None:
    service.fail(2, 404)


def fall_silent(service: MetadataService) -> None:
    service.stall(3, seconds=1)


def talk_nonsense(service: MetadataService) -> None:
    service.set("meta-data/spot/instance-action", '{"action": "termin')


def announce_nothing_in_particular(service: MetadataService) -> None:
    service.set("meta-data/spot/instance-action", "[]")
    service.set("meta-data/events/recommendations/rebalance", "{}")


@pytest.mark.parametrize(
    "fault",
    [
        lose_the_token,
        answer_500,
        answer_404_to_everything,
        fall_silent,
        talk_nonsense,
        announce_nothing_in_particular,
    ],
)
def test_lives_through_faults_of_the_metadata_service(
    watcher: Watch, systemd: Systemd, service: MetadataService, fault: Callable[[MetadataService], None]
) -> None:
    watcher.poll(now())
    fault(service)
    for _ in range(3):
        watcher.poll(now())
    assert systemd.asked == []
    service.withdraw()
    service.interrupt()
    watcher.poll(now())
    assert systemd.asked == [STOP]


def test_nonsense_under_one_path_does_not_hide_the_others(
    watcher: Watch, systemd: Systemd, service: MetadataService
) -> None:
    talk_nonsense(service)
    service.scale_in()
    watcher.poll(now())
    assert systemd.asked == [STOP]


def test_an_outage_is_logged_once(watcher: Watch, service: MetadataService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "train_cloud.platforms.ec2.watch")
    service.fail(9, 503)
    for _ in range(5):
        watcher.poll(now())
    lines = [record.getMessage() for record in caplog.records if "spot" in record.getMessage()]
    assert len(lines) == 2 and "503" in lines[0] and "works again" in lines[1]


class Away:
    """A store that does not answer, until it does."""

    def __init__(self, store: ObjectStore) -> None:
        self.url, self._store = store.url, store
        self.back = threading.Event()
        self.asked = threading.Event()

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.asked.set()
            if not self.back.wait(5):
                raise StoreUnavailable("away")
            return getattr(self._store, verb)(*arguments)

        return call


def test_a_store_that_is_away_delays_nothing_and_gets_the_notice_later(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    away = Away(store)
    watcher = Watch(away, state_dir, Metadata(service.endpoint), boot_id=BOOT)
    service.interrupt()
    began = time.monotonic()
    watcher.poll(now())
    assert systemd.asked == [STOP]
    assert time.monotonic() - began < 4
    assert away.asked.wait(5) and notices(store, wait_s=0) == []
    away.back.set()
    assert [notice["kind"] for notice in notices(store)] == ["spot"]
    watcher.close()


def test_a_notice_before_the_session_is_recorded_once_there_is_one(
    store: ObjectStore, tmp_path: Path, service: MetadataService, systemd: Systemd
) -> None:
    state_dir = tmp_path / "fresh"
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT)
    service.interrupt()
    watcher.poll(now())
    assert systemd.asked == [STOP]
    assert read_sessions(store) == []
    begin_session(store, state_dir, instance_id="i-0abc", boot_id=BOOT, details={}, persist=True)
    watcher.poll(now())
    assert len(notices(store)) == 1
    watcher.close()


@pytest.mark.parametrize("kind", ["interrupt", "scale_in", "recommend_rebalance"])
def test_a_restarted_watch_repeats_nothing(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd, kind: str
) -> None:
    getattr(service, kind)()
    for _ in range(3):
        watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT)
        watcher.poll(now())
        assert len(notices(store)) == 1
        watcher.close()
    assert len(systemd.asked) == 1
    assert len(notices(store, 2, wait_s=0.3)) == 1


def test_a_watch_that_ended_between_the_notice_and_the_stop_stops_the_trainer(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    (systemd.folder / "broken").touch()
    service.interrupt()
    first = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT)
    first.poll(now())
    first.close()
    (systemd.folder / "broken").unlink()
    service.withdraw()
    second = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT)
    second.poll(now())
    second.close()
    assert systemd.asked == [STOP]


def test_the_notice_of_an_earlier_boot_is_over(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    service.interrupt("stop")
    first = Watch(store, state_dir, Metadata(service.endpoint), boot_id="the boot before")
    first.poll(now())
    first.close()
    assert systemd.asked == [STOP]
    service.withdraw()
    second = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT)
    second.poll(now())
    second.close()
    assert systemd.asked == [STOP]
    assert not (state_dir / "notice.json").exists()


def test_a_machine_that_was_not_taken_trains_again(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    linger = timedelta(seconds=30)
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, linger=linger)
    service.interrupt(seconds=60)
    watcher.poll(now())
    systemd.is_now(OVER)
    watcher.poll(now(88))
    assert systemd.asked == [STOP]
    assert local_notice(state_dir, BOOT) is not None
    watcher.poll(now(92))
    assert systemd.asked == [STOP, START]
    assert local_notice(state_dir, BOOT) is None
    systemd.is_now(ACTIVE)
    watcher.poll(now(94))  # the same notice, still served
    watcher.close()
    again = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, linger=linger)
    again.poll(now(96))
    assert systemd.asked == [STOP, START]
    service.interrupt(seconds=240)  # another one
    again.poll(now(120))
    assert systemd.asked == [STOP, START, STOP]
    again.close()


def test_a_scale_in_that_was_taken_back_and_comes_again_counts_again(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, linger=timedelta(seconds=1))
    service.scale_in()
    watcher.poll(now())
    watcher.poll(now(130))
    assert systemd.asked == [STOP, START]
    watcher.poll(now(131))
    assert systemd.asked == [STOP, START]
    service.withdraw()
    watcher.poll(now(132))
    service.scale_in()
    watcher.poll(now(140))
    assert systemd.asked == [STOP, START, STOP]
    watcher.close()


def test_a_trainer_that_a_late_boot_starts_after_the_notice_is_stopped_too(
    watcher: Watch, systemd: Systemd, service: MetadataService
) -> None:
    systemd.is_now(OVER)
    service.interrupt()
    watcher.poll(now())
    systemd.is_now(STARTING)
    watcher.poll(now())
    watcher.poll(now())
    assert systemd.asked == [STOP, STOP]


def test_a_trainer_that_was_started_between_two_looks_is_stopped_too(
    watcher: Watch, systemd: Systemd, service: MetadataService
) -> None:
    service.interrupt()
    watcher.poll(now())
    systemd.is_now(STARTING)  # the stop came before there was anything to stop, and nobody saw it over
    watcher.poll(now(2))
    assert systemd.asked == [STOP]
    watcher.poll(now(12))
    assert systemd.asked == [STOP, STOP]
    systemd.is_now(STARTING.replace("activating", "deactivating"))
    watcher.poll(now(60))
    assert systemd.asked == [STOP, STOP], "it is stopping"


def test_finish_is_started_again_where_it_missed_an_ending_and_ever_more_seldom(
    watcher: Watch, systemd: Systemd, service: MetadataService
) -> None:
    """The trainer ended for good while finish was still leaving, which systemd does not start then."""
    finish = f"start --no-block {FINISH}"
    watcher.poll(now())
    watcher.poll(now(61))
    assert systemd.asked == [], "it trains"
    systemd.is_now(OVER)
    (systemd.folder / FINISH).write_text(STARTING)
    watcher.poll(now(122))
    assert systemd.asked == [], "finish is at it"
    (systemd.folder / FINISH).write_text(OVER)
    watcher.poll(now(150))
    assert systemd.asked == []
    watcher.poll(now(183))
    assert systemd.asked == [finish]
    watcher.poll(now(250))
    assert systemd.asked == [finish]
    watcher.poll(now(310))
    assert systemd.asked == [finish, finish]
    service.interrupt(seconds=900)
    watcher.poll(now(600))
    watcher.poll(now(700))
    assert systemd.asked == [finish, finish, STOP], "with a notice, what follows is the next machine's"


def test_a_trainer_that_has_not_run_yet_starts_no_finish(
    store: ObjectStore, tmp_path: Path, service: MetadataService, systemd: Systemd
) -> None:
    systemd.is_now(OVER.replace("Status=75", "Status=0"))
    watcher = Watch(store, tmp_path / "fresh", Metadata(service.endpoint), boot_id=BOOT)
    for seconds in (0, 61, 200):
        watcher.poll(now(seconds))
    watcher.close()
    assert systemd.asked == []


@pytest.fixture
def autoscaling(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoScaling]:
    with scripted_autoscaling() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_AUTO_SCALING", server.url)
        yield server


def test_auto_scaling_gets_the_machine_once_nothing_has_anything_left_to_do(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd, autoscaling: AutoScaling
) -> None:
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    service.scale_in()
    watcher.poll(now())
    assert len(notices(store)) == 1
    watcher.poll(now())
    assert autoscaling.calls == []  # the trainer still commits
    (systemd.folder / FINISH).write_text(STARTING)
    systemd.is_now(OVER)
    watcher.poll(now())
    assert autoscaling.calls == []  # finish is not through
    (systemd.folder / FINISH).write_text(OVER)
    autoscaling.script = [(503, "ServiceUnavailable", "not now")] * 2
    watcher.poll(now())
    before = len(autoscaling.calls)
    for _ in range(3):
        watcher.poll(now())
    (sent,) = autoscaling.calls[before:]
    assert (sent["Action"], sent["InstanceId"]) == ("CompleteLifecycleAction", "i-0abc")
    assert systemd.asked == [STOP]
    watcher.close()


def test_a_spot_notice_completes_no_lifecycle_action(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd, autoscaling: AutoScaling
) -> None:
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    systemd.is_now(OVER)
    service.interrupt()
    for _ in range(3):
        watcher.poll(now())
    watcher.close()
    assert autoscaling.calls == []


def launched(service: MetadataService, hours_ago: float) -> None:
    when = (now(-3600 * hours_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
    service.set("dynamic/instance-identity/document", json.dumps({"instanceId": "i-0abc", "pendingTime": when}))


@pytest.mark.parametrize("hours", [0.1, 0.9, None])
def test_in_its_first_hour_a_machine_stays_until_ec2_takes_it_and_costs_nothing(
    store: ObjectStore,
    state_dir: Path,
    service: MetadataService,
    systemd: Systemd,
    autoscaling: AutoScaling,
    hours: float | None,
) -> None:
    """And one that does not know how old it is."""
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    if hours is None:
        service.set("dynamic/instance-identity/document", "<html>")
    else:
        launched(service, hours)
    systemd.is_now(OVER)
    service.interrupt()
    watcher.poll(now())
    assert len(notices(store)) == 1
    for _ in range(3):
        watcher.poll(now())
    watcher.close()
    assert autoscaling.calls == []


@pytest.mark.parametrize("hours", [0.98, 30])
def test_after_its_first_hour_a_machine_that_has_committed_makes_way_at_once(
    store: ObjectStore,
    state_dir: Path,
    service: MetadataService,
    systemd: Systemd,
    autoscaling: AutoScaling,
    hours: float,
) -> None:
    """What counts is its age when EC2 would take it. The group's answer is no second notice."""
    launched(service, hours)
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    service.interrupt(seconds=120)
    watcher.poll(now())
    assert len(notices(store)) == 1
    watcher.poll(now())
    assert autoscaling.calls == [], "the trainer still commits"
    systemd.is_now(OVER)
    autoscaling.script = [(400, "ScalingActivityInProgress", "in progress")] * 2
    watcher.poll(now())
    autoscaling.script, before = [], len(autoscaling.calls)
    watcher.poll(now())
    (sent,) = autoscaling.calls[before:]
    assert (sent["Action"], sent["InstanceId"]) == ("TerminateInstanceInAutoScalingGroup", "i-0abc")
    assert sent["ShouldDecrementDesiredCapacity"] == "false"
    watcher.close()

    service.scale_in()
    autoscaling.script = [(400, "ValidationError", "No active Lifecycle Action found with instance ID i-0abc")]
    again = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    for _ in range(4):
        again.poll(now())
    again.close()
    sent_then = [call["Action"] for call in autoscaling.calls[before + 1 :]]
    assert sent_then == ["CompleteLifecycleAction"] * 2, "once the hook holds it, and then no more"
    assert systemd.asked == [STOP]
    assert [notice["kind"] for notice in notices(store)] == ["spot"]


@pytest.mark.parametrize("status", [0, 1, 73])
def test_only_a_trainer_that_was_interrupted_with_all_committed_makes_way(
    store: ObjectStore,
    state_dir: Path,
    service: MetadataService,
    systemd: Systemd,
    autoscaling: AutoScaling,
    status: int,
) -> None:
    """What follows the other ends is for finish to say."""
    launched(service, 30)
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    systemd.is_now(OVER.replace("Status=75", f"Status={status}"))
    service.interrupt()
    watcher.poll(now())
    assert len(notices(store)) == 1
    watcher.poll(now())
    watcher.close()
    assert autoscaling.calls == []


def test_a_role_that_may_not_complete_the_action_asks_once(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd, autoscaling: AutoScaling
) -> None:
    watcher = Watch(store, state_dir, Metadata(service.endpoint), boot_id=BOOT, group=Group("g"))
    autoscaling.script = [(403, "AccessDenied", "no")] * 9
    systemd.is_now(OVER)
    service.scale_in()
    watcher.poll(now())
    assert len(notices(store)) == 1
    for _ in range(3):
        watcher.poll(now(25))
    watcher.close()
    assert len(autoscaling.calls) == 1


def test_a_full_disk_does_not_keep_the_trainer_running(
    store: ObjectStore, tmp_path: Path, service: MetadataService, systemd: Systemd
) -> None:
    blocked = tmp_path / "blocked"
    watcher = Watch(store, blocked, Metadata(service.endpoint), boot_id=BOOT)
    blocked.write_text("no folder can be made here")
    service.interrupt()
    watcher.poll(now())
    watcher.poll(now())
    assert systemd.asked == [STOP]
    watcher.close()


@pytest.mark.parametrize("interval", [0, -1, 5.1])
def test_an_interval_that_would_miss_notices_is_refused(
    store: ObjectStore, state_dir: Path, service: MetadataService, interval: float
) -> None:
    with pytest.raises(InputError, match="at most 5"):
        watch(store, state_dir, Metadata(service.endpoint), interval_s=interval)


PROGRAM = """
import sys
from pathlib import Path
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.store import open_store
from train_cloud.platforms.ec2.watch import watch
url, state_dir, endpoint, interval = sys.argv[1:]
watch(open_store(url), Path(state_dir), Metadata(endpoint, timeout_s=1), interval_s=float(interval))
assert "torch" not in sys.modules
print("ended")
"""


def start_watch(
    store: ObjectStore, state_dir: Path, service: MetadataService, interval: float
) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", PROGRAM, store.url, str(state_dir), service.endpoint, str(interval)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def polls(service: MetadataService) -> list[float]:
    return [entry.at for entry in service.requests if entry.path.endswith("instance-action")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_polls_at_its_interval_acts_and_ends_at_a_signal(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd, number: signal.Signals
) -> None:
    process = start_watch(store, state_dir, service, 0.2)
    try:
        deadline = time.monotonic() + 30
        while len(polls(service)) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        service.interrupt()
        while not systemd.asked and time.monotonic() < deadline:
            time.sleep(0.02)
        assert systemd.asked == [STOP]
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, "ended\n"), errors
    times = polls(service)
    assert all(later - earlier > 0.1 for earlier, later in itertools.pairwise(times)), "polls too often"


def test_a_killed_watch_goes_on_where_it_was(
    store: ObjectStore, state_dir: Path, service: MetadataService, systemd: Systemd
) -> None:
    service.interrupt()
    for _ in range(2):
        process = start_watch(store, state_dir, service, 0.1)
        try:
            before = len(polls(service))
            deadline = time.monotonic() + 30
            while len(polls(service)) < before + 3 and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()
    assert systemd.asked == [STOP]


def test_the_session_of_another_boot_is_not_written_to(state_dir: Path) -> None:
    assert local_session(state_dir, BOOT) is not None
    assert local_session(state_dir, "another") is None
    assert re.fullmatch(r"[0-9a-f-]{36}", Path("/proc/sys/kernel/random/boot_id").read_text().strip())
