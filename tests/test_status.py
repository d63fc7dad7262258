from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from train_cloud.cli import main
from train_cloud.cli.report import locate
from train_cloud.errors import CorruptCheckpoint, InputError
from train_cloud.report.status import RunStatus, run_ids, run_status, split_run_url, statuses
from train_cloud.run import layout
from train_cloud.run.head import Lease, Reference
from train_cloud.run.session import Session, begin_session, end_session, record_notice, write_progress
from train_cloud.store import ObjectStore, open_store
from train_cloud.store.folder import FolderStore

RUN_YAML = b"run_id: a\ntotal_timesteps: 2e4\n"
DETAILS = {"run_file": {"total_timesteps": 20_000, "save_frequency": 1000}}
MANIFEST = Reference(key="checkpoints/x/manifest.json", size=1, crc64nvme=1)


class Story:
    """A run as its workers would write it, told step by step."""

    def __init__(self, root: str, folder: Path, run_id: str = "a") -> None:
        self.root, self.folder, self.run_id = root, folder, run_id
        self.store: ObjectStore = open_store(layout.run_url(root, run_id))
        self.lease: Lease | None = None

    def launch(self) -> None:
        self.store.create(layout.RUN_YAML, RUN_YAML)

    def start(self, instance_id: str, **details: Any) -> Session:
        session = begin_session(
            self.store,
            self.folder,
            instance_id=instance_id,
            boot_id=instance_id,
            details={**DETAILS, **details},
            persist=False,
        )
        self.lease = Lease.take(self.store, session.token, instance_id)
        return session

    def reach(self, session: Session, timesteps: int, *, exact: bool = True, because: str = "") -> None:
        assert self.lease is not None
        first = self.lease.head.timesteps
        self.lease.commit(MANIFEST, timesteps)
        facts: dict[str, Any] = {"steps_per_second": 50.0, "exact": exact, "exact_because": because}
        write_progress(self.store, session, first_timestep=first, timesteps=timesteps + 100, **facts)

    def read(self, later: timedelta = timedelta()) -> RunStatus:
        return run_status(self.root, self.run_id, at=datetime.now(timezone.utc) + later)


@pytest.fixture
def story(store_root: str, tmp_path: Path) -> Story:
    return Story(store_root, tmp_path / "state")


def test_a_life(story: Story) -> None:
    with pytest.raises(InputError, match=r"no such run under .*there are: none"):
        story.read()
    story.launch()
    found = story.read()
    assert (found.state, found.timesteps, found.total_timesteps, found.sessions) == ("waiting", 0, 20_000, [])
    assert found.since is not None

    story.store.create(layout.boot_key(1, "i-1"), b"")
    assert story.read().state == "starting"
    assert story.read(timedelta(hours=1)).state == "waiting"

    first = story.start("i-1")
    found = story.read()
    assert (found.state, found.exact, found.seconds_left) == ("running", None, None)
    story.reach(first, 5000)
    found = story.read()
    assert (found.state, found.timesteps, found.committed_timesteps) == ("running", 5100, 5000)
    assert found.seconds_left == pytest.approx((20_000 - 5100) / 50)
    assert (found.exact, found.sessions[0].ended_by) == (True, None)
    # Two intervals of 20 s and five minutes later nobody believes in it any more.
    assert story.read(timedelta(seconds=330)).state == "running"
    found = story.read(timedelta(seconds=350))
    assert (found.state, found.sessions[0].ended_by, found.timesteps) == ("interrupted", "lost", 5000)

    record_notice(story.store, first, {"kind": "spot", "action": "terminate", "time": "2030-01-01T00:00:00Z"})
    found = story.read()
    assert (found.state, found.sessions[0].ended_by) == ("interrupted", "notice")
    end_session(story.store, first, ended_by="notice", last_timestep=5200)
    session = story.read().sessions[0]
    assert (session.first_timestep, session.last_timestep, session.ended_by) == (0, 5200, "notice")
    assert [notice["kind"] for notice in session.notices] == ["spot"]

    second = story.start("i-2")
    story.reach(second, 9000, exact=False, because="numpy was 2.0, is 2.1")
    found = story.read()
    assert (found.state, found.exact, found.because) == ("running", False, "session 2: numpy was 2.0, is 2.1")
    assert [session.exact for session in found.sessions] == [True, False]
    assert [session.instance_id for session in found.sessions] == ["i-1", "i-2"]

    assert story.lease is not None
    story.lease.conclude("failed", "no more ideas")
    found = story.read()
    assert (found.state, found.reason, found.timesteps) == ("failed", "no more ideas", 9000)
    assert found.steps_per_second is None


@pytest.mark.parametrize("outcome", ["completed", "stopped", "failed"])
def test_an_outcome_stands_however_the_session_looks(
    folder_root: str, tmp_path: Path, outcome: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    story = Story(folder_root, tmp_path)
    story.reach(story.start("i-1"), 20_000)
    assert story.lease is not None
    story.lease.conclude(outcome, "because [so]")
    assert story.read().state == outcome
    assert main(["status", "a", "--store", folder_root]) == 0
    shown = capfd.readouterr().out
    for part in ("a  ", outcome, "20,000 of 20,000 (100%)", "because [so]", "i-1", "exact: not contradicted"):
        assert part in shown


def test_the_overrides_of_the_launch_count(folder_root: str, tmp_path: Path) -> None:
    story = Story(folder_root, tmp_path)
    story.launch()
    story.store.create("overrides-0.json", json.dumps({"total_timesteps": 500}).encode())
    assert story.read().total_timesteps == 500
    story.store.put(layout.RUN_YAML, b"\xff: [")
    assert story.read().total_timesteps == 500
    for number in (2, 10):
        story.store.create(f"overrides-{number}.json", json.dumps({"total_timesteps": number}).encode())
    assert story.read().total_timesteps == 10


def test_all_runs_of_a_store(store_root: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ids(store_root) == []
    assert main(["status", "--store", store_root]) == 0
    assert "no runs under" in capfd.readouterr().out
    for name in ("b", "a"):
        Story(store_root, tmp_path, name).launch()
    open_store(store_root).create("code/runs/x/y", b"")
    assert run_ids(store_root) == ["a", "b"]
    for arguments in (["status", "--store", store_root], ["status", store_root]):
        assert main(arguments) == 0
        shown = capfd.readouterr().out
        assert "0 of 20,000" in shown
        assert shown.count("waiting") == 2
    assert main(["status", "--store", store_root, "--json"]) == 0
    assert [found["run_id"] for found in json.loads(capfd.readouterr().out)] == ["a", "b"]
    assert main(["status", layout.run_url(store_root, "b"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["run_id"] == "b"
    with pytest.raises(InputError, match=r"no such run .*there are: a, b"):
        run_status(store_root, "c")


def test_requests_depend_on_sessions_and_not_on_checkpoints(
    folder_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of a run's checkpoints, or of all that lies below ``runs/``, would show here."""
    story = Story(folder_root, tmp_path)
    story.reach(story.start("i-1"), 1000)
    for timesteps in range(0, 1000, 10):
        story.store.put(layout.checkpoint_prefix(timesteps, (1, 0), timesteps) + "manifest.json", b"{}")
    asked: list[str] = []
    get, listed = FolderStore.get, FolderStore.list
    monkeypatch.setattr(FolderStore, "get", lambda self, key: asked.append(key) or get(self, key))  # type: ignore[func-returns-value]
    monkeypatch.setattr(FolderStore, "list", lambda self, at="": asked.append(at) or listed(self, at))  # type: ignore[func-returns-value]
    (found,) = statuses(folder_root, run_ids(folder_root))
    assert found.committed_timesteps == 1000
    assert 0 < len(asked) <= 8 and not any(key.startswith("checkpoints") or not key for key in asked), asked


def test_what_a_person_asks_first(
    folder_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Interruptions, steps done again, money, the last evaluation."""
    price = {"price": {"spot": 0.36, "on_demand": 1.0, "life_cycle": "spot"}, "instance_type": "g5.xlarge"}
    monkeypatch.setattr("test_status.DETAILS", {**DETAILS, **price})
    story = Story(folder_root, tmp_path)
    story.reach(story.start("i-1"), 1000)
    second = story.start("i-2")
    story.reach(second, 2000)
    evaluation = {"timesteps": 2000, "mean_return": -150.0, "success_rate": 0.25}
    write_progress(story.store, second, first_timestep=1000, timesteps=2000, exact=True, evaluation=evaluation)
    end_session(story.store, second, ended_by="limit", first_timestep=1000, last_timestep=2000)
    found = story.read()
    assert (found.interruptions, found.repeated_timesteps) == (1, 100)
    assert found.cost.dollars is not None and found.cost.saved_dollars is not None
    assert found.cost.dollars < found.cost.saved_dollars  # 0.36 of 1.0
    assert found.evaluation == evaluation
    assert [session.instance_type for session in found.sessions] == ["g5.xlarge", "g5.xlarge"]
    assert found.sessions[0].ended is not None
    assert main(["status", folder_root]) == 0
    assert "-150.0" in capfd.readouterr().out
    assert main(["status", "a", "--store", folder_root]) == 0
    shown = capfd.readouterr().out
    assert "interruptions: 1, steps done again: 100" in shown and "less than on demand" in shown
    assert "success rate 25%" in shown and "damaged" in shown  # its manifest is none


def test_a_session_that_starts_stands_where_the_run_does(story: Story) -> None:
    """Its first report is made before its first step; and a rollout of PPO may end beyond the total."""
    story.reach(story.start("i-1"), 15_000)
    second = story.start("i-2")
    write_progress(story.store, second, first_timestep=15_000, timesteps=0, committed_timesteps=15_000)
    found = story.read()
    assert (found.state, found.timesteps, found.seconds_left) == ("running", 15_000, None)
    write_progress(story.store, second, first_timestep=15_000, timesteps=20_480, steps_per_second=50.0)
    assert (story.read().timesteps, story.read().seconds_left) == (20_480, 0.0)


@pytest.mark.parametrize("ended_by", ["failure", "callback", "limit", "fenced", "signal"])
def test_what_ended_a_session_is_known_at_once(story: Story, ended_by: str) -> None:
    session = story.start("i-1")
    story.reach(session, 5000)
    end_session(story.store, session, ended_by=ended_by, first_timestep=0, last_timestep=5100)
    found = story.read()
    assert (found.state, found.sessions[0].ended_by) == ("interrupted", ended_by)
    assert (found.steps_per_second, found.seconds_left) == (None, None)
    # Started again within the boot: what is reported since says that it goes on.
    again = session.model_copy(update={"restart": 1})
    write_progress(story.store, again, first_timestep=0, timesteps=5200, steps_per_second=50.0)
    assert story.read().state == "running"


def test_a_process_that_was_killed_on_this_machine_is_not_waited_for(story: Story) -> None:
    code = "import json, time; from train_cloud.run.session import this_process; "
    code += "print(json.dumps(this_process()), flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    process = json.loads(child.stdout.readline())
    story.reach(story.start("a-laptop", process=process), 5000)
    assert story.read().state == "running"
    child.kill()
    deadline = time.monotonic() + 60
    while (found := story.read()).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)  # a killed process needs a moment to go, and is a zombie then
    assert (found.state, found.sessions[0].ended_by) == ("interrupted", "lost")
    child.communicate()
    assert story.read().state == "interrupted"
    for told in ({**process, "among": ["another machine"]}, {**process, "pid": "nonsense"}, "nonsense"):
        story.reach(story.start("a-laptop", process=told), 6000)
        assert story.read().state == "running", told
    reused = {**process, "pid": os.getpid()}
    story.reach(story.start("a-laptop", process=reused), 7000)
    assert story.read().state == "interrupted", "the number is another process's by now"


def test_an_evaluation_of_steps_that_were_taken_back_is_shown_no_longer(story: Story) -> None:
    first = story.start("i-1")
    for at in (1000, 2000):
        story.reach(first, at)
        evaluation = {"timesteps": at, "mean_return": float(at), "success_rate": None}
        write_progress(story.store, first, first_timestep=0, timesteps=at, evaluation=evaluation)
        second = story.start(f"i-{at}")
        write_progress(story.store, second, first_timestep=at, timesteps=at, evaluation=evaluation)
        first = second
    assert story.read().evaluation == evaluation
    back = story.start("rollback on here")
    assert story.lease is not None
    story.lease.commit(MANIFEST, 1500)
    end_session(story.store, back, ended_by="rollback", first_timestep=2000, last_timestep=1500)
    found = story.read().evaluation
    assert found is not None and found["timesteps"] == 1000
    story.reach(story.start("i-3"), 2500)
    found = story.read().evaluation
    assert found is not None and found["timesteps"] == 1000, "nor when the run is beyond it again"


def test_watching_ends_with_the_runs(folder_root: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    story = Story(folder_root, tmp_path)
    story.reach(story.start("i-1"), 1000)
    lease = story.lease
    assert lease is not None
    later = threading.Timer(1.0, lambda: lease.conclude("stopped", "enough"))
    later.start()
    assert main(["status", "--store", folder_root, "--watch", "--every", "0.1"]) == 0
    later.join()
    assert "stopped" in capfd.readouterr().out
    assert main(["status", "--store", folder_root, "--watch", "--json"]) == 64


def test_a_corrupt_head_is_an_error_not_a_new_run(folder_root: str, tmp_path: Path) -> None:
    story = Story(folder_root, tmp_path)
    story.launch()
    story.store.create(layout.HEAD, b"not json")
    with pytest.raises(CorruptCheckpoint):
        story.read()


@pytest.mark.parametrize(
    ("run", "store", "found"),
    [
        (None, "s3://b/p", ("s3://b/p", None)),
        ("a-1", "s3://b/p", ("s3://b/p", "a-1")),
        ("s3://b/p/runs/a-1", None, ("s3://b/p", "a-1")),
        ("s3://b/p/runs/a-1/", "elsewhere", ("s3://b/p", "a-1")),
        ("s3://b/runs/runs/a-1", None, ("s3://b/runs", "a-1")),
        ("s3://b/p", None, ("s3://b/p", None)),
        ("./store", "elsewhere", ("./store", None)),
        ("./store/runs/a", None, ("./store", "a")),
        ("store", None, ("store", None)),
    ],
)
def test_how_a_run_is_named(run: str | None, store: str | None, found: tuple[str, str | None]) -> None:
    assert locate(run, store) == found


def test_a_run_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "run_id: a\nalgorithm: sac\ntotal_timesteps: 2\nsave_frequency: 1\nenvironment: {id: Pendulum-v1}\n"
    )
    assert locate(str(path), "s3://b") == ("s3://b", "a")
    for run in (str(path), None):
        with pytest.raises(InputError, match="--store"):
            locate(run, None)
    assert split_run_url("s3://b/p") is None


@pytest.mark.parametrize("lacks", [[], ["callbacks[0] Mine.socket: cannot pickle 'socket' object"]])
def test_what_no_checkpoint_keeps_is_a_field_of_its_own(story: Story, lacks: list[str]) -> None:
    session = story.start("i-1")
    assert story.read().not_kept is None
    write_progress(story.store, session, timesteps=100, exact=not lacks, exact_because="", not_kept=lacks)
    found = story.read()
    assert found.not_kept == found.sessions[0].not_kept == lacks
    second = story.start("i-2")
    assert story.read().not_kept == lacks, "the second session does not know yet"
    write_progress(story.store, second, timesteps=100, exact=True, exact_because="", not_kept="no list")
    assert story.read().not_kept == lacks, "not written by us"
