"""finish: the design's table line by line, and what it does to a real store, group and service."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from groups import machines, make_group

from train_cloud.errors import StoreForbidden, StoreUnavailable
from train_cloud.platforms.ec2 import finish as module
from train_cloud.platforms.ec2.finish import Decision, Facts, decide, finish
from train_cloud.platforms.ec2.group import Group
from train_cloud.platforms.ec2.metadata import Metadata
from train_cloud.platforms.ec2.notices import NOTICE_FILE, Notice, local_form
from train_cloud.platforms.ec2.units import TRAIN, UnitState, boot_id
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.rehearsal.systemd import Machine
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Outcome, Token, read_head
from train_cloud.run.session import begin_session, read_sessions
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_local

WHEN = datetime(2030, 1, 1, tzinfo=timezone.utc)
HEAD = Head(session=3, restart=0, owner="i-0abc", commit="c")
SPOT = Notice(kind="spot", action="terminate", time=WHEN, seen=WHEN)

RUNNING = UnitState("active", "running", "success", 0, 0)
STARTING = UnitState("activating", "start", "success", 0, 0)
WAITING = UnitState("activating", "auto-restart", "exit-code", 1, 2)
STOPPING = UnitState("deactivating", "stop-sigterm", "success", 0, 0)
NEVER_RAN = UnitState("inactive", "dead", "success", 0, 0)
COMPLETED = NEVER_RAN
STOPPED = UnitState("inactive", "dead", "success", 75, 0)
TERMINATED = UnitState("inactive", "dead", "success", 15, 0)
BAD_INPUT = UnitState("failed", "failed", "exit-code", 64, 0)
FENCED = UnitState("failed", "failed", "exit-code", 73, 0)
KILLED = UnitState("failed", "failed", "signal", 9, 0)
SIGNAL_73 = UnitState("failed", "failed", "signal", 73, 0)
HUNG = UnitState("failed", "failed", "watchdog", 6, 4)
OUT_OF_MEMORY = UnitState("failed", "failed", "oom-kill", 9, 0)

ALIVE = (RUNNING, STARTING, WAITING, STOPPING)
OVER = (NEVER_RAN, STOPPED, TERMINATED, BAD_INPUT, FENCED, KILLED, HUNG, OUT_OF_MEMORY)

SEEN = Facts(head=HEAD, unreadable=None, session=3, train=KILLED, notice=None, boot=False)


def facts(**changes: Any) -> Facts:
    """Those of a trainer of ours that was killed for good, with changes."""
    return dataclasses.replace(SEEN, **changes)


def ended(outcome: Outcome) -> Head:
    return HEAD.model_copy(update={"outcome": outcome, "reason": "as it were"})


# ------------------------------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_an_outcome_closes_whatever_else_is_seen(outcome: Outcome) -> None:
    expected = Decision("close", f"the run is over: {outcome} (as it were)")
    for train, boot, notice, session in itertools.product(
        (*ALIVE, *OVER), (False, True), (None, SPOT), (None, 2, 3, 4)
    ):
        seen = facts(head=ended(outcome), train=train, boot=boot, notice=notice, session=session)
        assert decide(seen) == expected, seen


@pytest.mark.parametrize("train", ALIVE, ids=lambda train: train.sub)
def test_a_trainer_that_lives_is_left_alone(train: UnitState) -> None:
    heads = (None, HEAD, HEAD.model_copy(update={"session": 9}))
    for head, notice, boot in itertools.product(heads, (None, SPOT), (False, True)):
        seen = facts(train=train, head=head, notice=notice, boot=boot)
        assert decide(seen).verb == "nothing", seen


@pytest.mark.parametrize(
    ("seen", "verb", "why"),
    [
        # A notice: the machine goes, and its successor goes on.
        ({"train": STOPPED, "notice": SPOT}, "nothing", "spot notice"),
        ({"train": KILLED, "notice": SPOT}, "nothing", "spot notice"),
        ({"train": HUNG, "notice": SPOT, "head": None}, "nothing", "spot notice"),
        ({"train": BAD_INPUT, "notice": SPOT, "session": None}, "nothing", "spot notice"),
        # Fenced.
        ({"train": FENCED}, "replace", "another worker"),
        ({"train": FENCED, "notice": SPOT}, "replace", "another worker"),
        ({"train": FENCED, "head": None, "session": None}, "replace", "another worker"),
        ({"train": SIGNAL_73}, "fail", "signal 73"),
        ({"train": KILLED, "head": HEAD.model_copy(update={"session": 4})}, "replace", "session 4"),
        # Stopped from outside: no ending for good.
        ({"train": STOPPED}, "nothing", "stopped from outside"),
        ({"train": TERMINATED}, "nothing", "stopped from outside"),
        ({"train": STOPPED, "head": None, "session": None}, "nothing", "stopped from outside"),
        # Ended for good.
        ({"train": KILLED}, "fail", "the trainer was killed by SIGKILL (9)"),
        ({"train": BAD_INPUT}, "fail", "the trainer ended with exit status 64"),
        ({"train": HUNG}, "fail", "longer than its watchdog allows after 4 restarts"),
        ({"train": OUT_OF_MEMORY}, "fail", "ran out of memory"),
        ({"train": COMPLETED}, "fail", "exit status 0"),
        ({"train": KILLED, "head": HEAD.model_copy(update={"reason": "ValueError: x"})}, "fail", "ValueError: x"),
        ({"train": BAD_INPUT, "head": None, "session": None}, "fail", "exit status 64"),
        ({"train": BAD_INPUT, "head": None}, "fail", "exit status 64"),
        ({"train": BAD_INPUT, "session": None}, "fail", "exit status 64"),
        ({"train": KILLED, "head": HEAD.model_copy(update={"session": 2})}, "fail", "SIGKILL"),
        # The head cannot be read: the machine must not stay for ever.
        ({"train": KILLED, "head": None, "unreadable": "no JSON"}, "close", "no JSON"),
        ({"train": STOPPED, "head": None, "unreadable": "no JSON"}, "nothing", "stopped from outside"),
        ({"train": KILLED, "head": None, "unreadable": "no JSON", "notice": SPOT}, "nothing", "spot notice"),
        # Nothing has run yet.
        ({"train": NEVER_RAN, "session": None}, "nothing", "not run in this boot"),
        ({"train": NEVER_RAN, "session": None, "head": None}, "nothing", "not run in this boot"),
    ],
)
def test_the_table(seen: dict[str, Any], verb: str, why: str) -> None:
    decision = decide(facts(**seen))
    assert decision.verb == verb
    assert why in decision.why


def test_a_boot_goes_on_unless_the_run_is_over() -> None:
    heads = (None, HEAD, HEAD.model_copy(update={"session": 9}))
    for train, head, unreadable in itertools.product(OVER, heads, (None, "no JSON")):
        seen = facts(train=train, head=head, unreadable=unreadable, boot=True, session=None)
        assert decide(seen).verb == "nothing", seen


# ---------------------------------------------------------------------------------------------- on a machine, for real


class Worker:
    """A machine in a group, whose trainer is a command; asks finish."""

    def __init__(self, store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.state_dir, self.folder = store, folder / "state", folder
        self.group = make_group()
        (self.instance,) = machines(self.group)
        self.metadata = MetadataService(self.instance)
        self.machine: Machine | None = None
        self._monkeypatch = monkeypatch

    def train(self, command: str, options: str = "", *, until: Callable[[UnitState], bool] = lambda s: s.over) -> None:
        """Run a shell command as the trainer, until systemd sees it in some state."""
        units = self.folder / "units"
        units.mkdir()
        (units / TRAIN).write_text(
            f"[Service]\nExecStart=/bin/sh -c '{command}'\n"
            f"SuccessExitStatus=75\nRestartPreventExitStatus=64 73\n{options}"
        )
        self.machine = Machine(units, self.folder / "machine")
        self._monkeypatch.setenv("PATH", self.machine.path)
        self.machine.start(TRAIN)
        assert self.machine.wait(TRAIN, until, 10)

    def begin(self, *, number: int = 1) -> Lease:
        """A session and the run, taken."""
        for _ in range(number):
            session = begin_session(
                self.store, self.state_dir, instance_id=self.instance, boot_id=boot_id(), details={}, persist=False
            )
        return Lease.take(self.store, session.token, self.instance)

    def finish(self, *, boot: bool = False, store: ObjectStore | None = None) -> str:
        metadata = Metadata(self.metadata.endpoint)
        try:
            group = Group(self.group, retry_timeout_s=None)
            return finish(store or self.store, self.state_dir, metadata, group, boot=boot).verb
        finally:
            metadata.close()

    def head(self) -> Head | None:
        read = read_head(self.store)
        return read[0] if read else None

    @property
    def capacity(self) -> int | None:
        return Group(self.group).capacity()

    def close(self) -> None:
        self.metadata.close()
        if self.machine is not None:
            self.machine.close()


@pytest.fixture
def worker(aws_endpoint: str, folder_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    worker = Worker(open_store(layout.run_url(folder_root, "r")), tmp_path, monkeypatch)
    yield worker
    worker.close()


@pytest.mark.parametrize(("outcome", "boot"), [("completed", False), ("stopped", True), ("failed", False)])
def test_an_outcome_takes_the_capacity_to_0_however_often_it_is_asked(
    worker: Worker, outcome: Outcome, boot: bool
) -> None:
    worker.begin().conclude(outcome, "why")
    worker.train("exit 0")
    for _ in range(2):
        assert worker.finish(boot=boot) == "close"
        assert worker.capacity == 0
        assert machines(worker.group) == []
    head = worker.head()
    assert head is not None and (head.outcome, head.reason) == (outcome, "why")


def test_a_failure_is_said_in_the_head_before_the_capacity_goes(worker: Worker) -> None:
    worker.begin()
    worker.train("kill -KILL $$$$")
    assert worker.finish() == "close"
    head = worker.head()
    assert head is not None
    assert (head.outcome, head.reason, head.session) == ("failed", "the trainer was killed by SIGKILL (9)", 1)
    assert worker.capacity == 0


def test_the_trainers_own_words_come_first(worker: Worker) -> None:
    worker.begin().record_failure("environment.id: 'Nowhere-v0': no such environment")
    worker.train("exit 64")
    assert worker.finish() == "close"
    head = worker.head()
    assert head is not None and head.reason == "environment.id: 'Nowhere-v0': no such environment"


def test_a_run_that_never_began_fails_too(worker: Worker) -> None:
    worker.train("exit 64")
    assert worker.finish() == "close"
    head = worker.head()
    assert head is not None
    assert (head.outcome, head.reason) == ("failed", "the trainer ended with exit status 64")
    assert worker.capacity == 0


def test_fenced_leaves_the_capacity_and_the_head_alone(worker: Worker) -> None:
    worker.begin()
    before = worker.head()
    worker.train("exit 73")
    assert worker.finish() == "replace"
    assert worker.capacity == 1
    assert worker.instance not in machines(worker.group)
    assert worker.head() == before


def test_a_newer_session_is_not_touched(worker: Worker) -> None:
    worker.begin(number=2)
    Lease.take(worker.store, Token(7, 0), "i-other")
    worker.train("exit 1")
    assert worker.finish() == "replace"
    assert worker.capacity == 1
    head = worker.head()
    assert head is not None and (head.session, head.outcome) == (7, None)


def test_after_a_notice_the_successor_goes_on(worker: Worker) -> None:
    worker.begin()
    write_local(worker.state_dir / NOTICE_FILE, local_form(SPOT, boot_id()))
    worker.train("exit 75")
    assert worker.finish() == "nothing"
    assert machines(worker.group) == [worker.instance]


def test_the_notice_of_an_earlier_boot_excuses_nothing(worker: Worker) -> None:
    worker.begin()
    write_local(worker.state_dir / NOTICE_FILE, local_form(SPOT, "the boot before"))
    worker.train("exit 1")
    assert worker.finish() == "close"


@pytest.mark.parametrize(
    ("command", "options", "until"),
    [
        ("sleep 60", "", lambda state: state.active == "active"),
        ("exit 1", "Restart=on-failure\nRestartSec=60\n", lambda state: state.sub == "auto-restart"),
        ("exit 75", "", lambda state: state.over),
    ],
)
def test_what_is_not_over_goes_on(
    worker: Worker, command: str, options: str, until: Callable[[UnitState], bool]
) -> None:
    worker.begin()
    worker.train(command, options, until=until)
    assert worker.finish() == "nothing"
    assert (worker.capacity, machines(worker.group)) == (1, [worker.instance])


def test_a_boot_of_a_run_that_is_not_over_goes_on(worker: Worker) -> None:
    worker.begin()
    worker.train("exit 0", until=lambda _: True)
    assert worker.finish(boot=True) == "nothing"
    assert worker.capacity == 1


def test_a_corrupt_head_stops_the_money_and_is_not_overwritten(worker: Worker) -> None:
    worker.begin()
    worker.store.delete([layout.HEAD])
    worker.store.create(layout.HEAD, b'{"session": 1, "torn')
    worker.train("exit 1")
    assert worker.finish() == "close"
    assert worker.capacity == 0
    assert bytes(worker.store.get(layout.HEAD).body) == b'{"session": 1, "torn'


class Away:
    """A store that answers with an error, a number of times."""

    def __init__(self, store: ObjectStore, error: Exception, times: int) -> None:
        self.url, self._store, self._error, self._times = store.url, store, error, times

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        if self._times > 0:
            self._times -= 1
            raise self._error
        found: Callable[..., Any] = getattr(self._store, verb)
        return found


def test_an_outage_of_the_store_is_waited_for(worker: Worker) -> None:
    worker.begin()
    worker.train("exit 1")
    assert worker.finish(store=Away(worker.store, StoreUnavailable("away"), 2)) == "close"
    head = worker.head()
    assert head is not None and head.outcome == "failed"


def test_a_refusal_that_lasts_stops_the_money_all_the_same(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFUSAL_RETRY_TIMEOUT_S", 0.5)
    worker.begin()
    worker.train("exit 1")
    assert worker.finish(store=Away(worker.store, StoreForbidden("no"), 10**6)) == "close"
    assert worker.capacity == 0


def test_the_metadata_service_does_not_hold_up_the_money(worker: Worker) -> None:
    worker.begin().conclude("completed")
    worker.train("exit 0")
    worker.metadata.fail(10**6, 503)
    assert worker.finish() == "close"
    assert worker.capacity == 0


def test_a_trainer_that_ends_the_run_meanwhile_keeps_its_outcome(worker: Worker) -> None:
    lease = worker.begin()
    worker.train("exit 1")

    class Late(Away):
        """Ends the run between finish's look and its deed."""

        def __getattr__(self, verb: str) -> Callable[..., Any]:
            if verb == "swap":
                lease.conclude("completed", "just in time")
            return super().__getattr__(verb)

    assert worker.finish(store=Late(worker.store, StoreUnavailable(""), 0)) == "close"
    head = worker.head()
    assert head is not None and (head.outcome, head.reason) == ("completed", "just in time")
    assert worker.capacity == 0


def test_many_bells_at_once(worker: Worker) -> None:
    worker.begin()
    worker.train("exit 1")
    verbs: list[str] = []
    threads = [threading.Thread(target=lambda: verbs.append(worker.finish())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert verbs == ["close"] * 4
    head = worker.head()
    assert head is not None and head.outcome == "failed"
    assert worker.capacity == 0


def test_it_never_loads_torch(worker: Worker) -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, json, train_cloud.platforms.ec2.finish; print(json.dumps(sorted(sys.modules)))",
        ],
        env=os.environ.copy(),
        capture_output=True,
        check=True,
    )
    assert not {"torch", "stable_baselines3", "gymnasium"} & set(json.loads(loaded.stdout))


# ------------------------------------------------------------------------------- the real units, with a trainer of ours

TRAINER = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from train_cloud.run.head import Lease
from train_cloud.run.layout import run_url
from train_cloud.run.session import begin_session
from train_cloud.store import open_store
from train_cloud.platforms.ec2.units import boot_id
from train_cloud.whole_file import write_local
import sdnotify

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGUSR1, lambda *_: print("checkpoint", flush=True))
sdnotify.SystemdNotifier().notify("READY=1")
store = open_store(run_url(os.environ["TRAIN_CLOUD_STORE"], os.environ["TRAIN_CLOUD_RUN_ID"]))
state_dir = Path(os.environ["TRAIN_CLOUD_STATE_DIR"])
session = begin_session(store, state_dir, instance_id="i", boot_id=boot_id(), details={{}}, persist=True)
lease = Lease.take(store, session.token, "i")
print("trains", session.restart, flush=True)
exec(Path(os.environ["PLAN"]).read_text())
"""
"""A trainer that does what a file says, so that its endings can be chosen."""


PROGRAM = """\
#!{python}
import os, sys
if sys.argv[1] == "train":
    os.execv(sys.executable, [sys.executable, "{trainer}"])
if sys.argv[1] == "watch":
    sys.argv[1:] = ["watch", "--interval", "0.2"]
from train_cloud.cli import main
sys.exit(main())
"""


class Whole:
    """A worker's machine with all its units; only the trainer is ours."""

    def __init__(self, worker: Worker, root: str, plan: str) -> None:
        folder = worker.folder
        bin_folder = folder / "venv"
        bin_folder.mkdir()
        (folder / "plan.py").write_text(plan)
        (folder / "trainer.py").write_text(TRAINER.format(path=[path for path in sys.path if path]))
        (bin_folder / "train-cloud").write_text(PROGRAM.format(python=sys.executable, trainer=folder / "trainer.py"))
        (bin_folder / "train-cloud").chmod(0o755)
        (folder / "worker.env").write_text(
            f"TRAIN_CLOUD_STORE={root}\nTRAIN_CLOUD_RUN_ID=r\nTRAIN_CLOUD_STATE_DIR={worker.state_dir}\n"
            f"TRAIN_CLOUD_RUN_FILE=/none\nTRAIN_CLOUD_AUTOSCALING_GROUP={worker.group}\n"
        )
        worker.state_dir.mkdir()
        aws = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "NO_PROXY", "no_proxy"))}
        worker.machine = self.machine = Machine(
            Path(__file__).parents[1] / "systemd",
            folder / "machine",
            paths={
                "/opt/train-cloud/venv/bin": str(bin_folder),
                "/etc/train-cloud": str(folder),
                "/var/lib/train-cloud": str(worker.state_dir),
            },
            environment={
                **aws,
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": worker.metadata.endpoint,
                "PLAN": str(folder / "plan.py"),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            restart_speedup=10,
        )
        self.machine.start(TRAIN)

    def until(self, unit: str, text: str) -> None:
        """:raises AssertionError: a unit has not said so in time; watch rings again after a minute"""
        found = self.machine.wait(
            TRAIN, lambda _: any(text in line.text for line in self.machine.journal(f"train-cloud-{unit}.service")), 150
        )
        assert found, "\n".join(f"{line.unit} {line.text}" for line in self.machine.journal())


@pytest.mark.slow
def test_a_notice_ends_the_training_and_nothing_else(worker: Worker, folder_root: str) -> None:
    whole = Whole(worker, folder_root, "time.sleep(600)")
    whole.until("train", "trains 0")
    worker.metadata.recommend_rebalance()
    whole.until("train", "checkpoint")
    worker.metadata.interrupt(seconds=60)
    whole.until("finish", "spot notice")
    state = whole.machine.state(TRAIN)
    assert (state.active, state.status, state.restarts) == ("inactive", 75, 0)
    assert (worker.capacity, machines(worker.group)) == (1, [worker.instance])
    (session,) = read_sessions(worker.store)
    assert [notice["kind"] for notice in session.notices] == ["rebalance", "spot"]
    assert whole.machine.power_off(20)


@pytest.mark.slow
def test_failed_attempts_go_on_until_one_is_for_good(worker: Worker, folder_root: str) -> None:
    whole = Whole(worker, folder_root, "sys.exit(1 if session.restart < 2 else 64)")
    whole.until("finish", "close: the run is over: failed (the trainer ended with exit status 64 after 2 restarts)")
    assert worker.capacity == 0
    said = [line.text for line in whole.machine.journal("train-cloud-finish.service") if "nothing:" in line.text]
    assert said and all("auto-restart" in text or "activating" in text or "active" in text for text in said)


@pytest.mark.slow
def test_a_completed_run_takes_its_group_to_0(worker: Worker, folder_root: str) -> None:
    whole = Whole(worker, folder_root, "lease.conclude('completed')")
    whole.until("finish", "close: the run is over: completed")
    assert whole.machine.wait("train-cloud-finish", lambda state: state.over, 30)
    assert (worker.capacity, machines(worker.group)) == (0, [])
