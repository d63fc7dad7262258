"""What is decided elsewhere while a run is trained: a cancelled run, and limits over all runs of an experiment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from until import until

from train_cloud.config.run_file import Limits as Configured
from train_cloud.errors import Fenced, StoreUnavailable
from train_cloud.operations.cancel import cancel
from train_cloud.platforms.ec2.price import Price
from train_cloud.run import layout
from train_cloud.run.experiment import Spending
from train_cloud.run.head import Lease, conclude, read_head
from train_cloud.run.session import Session, begin_session, end_session, read_sessions, write_progress
from train_cloud.runtime.elsewhere import LEAST_SUM_SECONDS, SUM_SECONDS, Ended, ExperimentLimits
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.runtime.limits import Limits
from train_cloud.store import FileStore, ObjectInfo, ObjectStore, StoredObject, open_store
from train_cloud.store.folder import FolderStore

PRICE = Price(spot=1.0, on_demand=3.0, volume=0.0, address=0.0)
RUNS = ["nets-a-s1", "nets-b-s1"]


def record(root: Path, **limits: float) -> None:
    """As Terraform writes it."""
    content = {"experiment": "nets", "limits": limits, "runs": {run_id: {"levels": {}, "seed": 1} for run_id in RUNS}}
    path = root / layout.experiment_key("nets")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def begun(root: Path, run_id: str, *, price: Price | None = PRICE) -> tuple[ObjectStore, Session, Lease]:
    """A run that a new session trains."""
    store = open_store(layout.run_url(str(root), run_id))
    details: dict[str, Any] = {"setup_seconds": 0.0, **({"price": price.model_dump()} if price else {})}
    session = begin_session(
        store, root / "state" / run_id, instance_id="i", boot_id="b", details=details, persist=False
    )
    return store, session, Lease.take(store, session.token, "i")


def after(session: Session, hours: float) -> Session:
    """The session as it is so much later."""
    return session.model_copy(update={"began": session.began - 3600 * hours})


def limits(root: Path, **configured: float) -> ExperimentLimits:
    record(root, **configured)
    store = open_store(str(root))
    assert isinstance(store, FileStore)
    return ExperimentLimits(store, "nets")


def test_hours_and_dollars_of_all_runs_are_summed_up(tmp_path: Path) -> None:
    asked = limits(tmp_path, hours=5, dollars=3)
    asked.hourly = 1.0
    assert asked.ask() == (None, SUM_SECONDS)
    runs = [begun(tmp_path, run_id) for run_id in RUNS]
    for (store, session, _), hours in zip(runs, (0.5, 1.0), strict=True):
        write_progress(store, after(session, hours))
    asked.ask()
    for hours, found in ((1.4, None), (1.5, "limits of the experiment nets: 3 dollars are spent")):
        for store, session, _ in runs:
            write_progress(store, after(session, hours))
        assert asked.ask()[0] == found
    record(tmp_path, hours=5, dollars=99)
    assert asked.ask()[0] is None, "the limit was raised"
    # A machine that was replaced counts as before, and its successor besides.
    store, session, _ = runs[0]
    end_session(store, after(session, 1.5), ended_by="notice")
    _, second, _ = begun(tmp_path, RUNS[0])
    write_progress(store, after(second, 1.9))
    assert asked.ask()[0] is None
    write_progress(store, after(second, 2.0))
    assert asked.ask()[0] == "limits of the experiment nets: 5 hours are used"


def test_it_looks_the_more_often_the_nearer_the_limit_is(tmp_path: Path) -> None:
    asked = limits(tmp_path, dollars=1)
    asked.hourly = 1.0
    runs = [begun(tmp_path, run_id) for run_id in RUNS]
    pauses = []
    for hours in (0.1, 0.45, 0.499):
        for store, session, _ in runs:
            write_progress(store, after(session, hours))
        found, pause = asked.ask()
        assert found is None
        pauses.append(pause)
    assert pauses[0] == SUM_SECONDS and pauses[2] == LEAST_SUM_SECONDS
    assert pauses[1] == pytest.approx(0.5 * 0.05 * 3600, rel=0.01), "half of the time, if both go on"


class Watched(FolderStore):
    """Notes what is asked of it, and does not answer where it is told so.

    :param asked: shared with the stores within it
    """

    def __init__(self, root: Path, asked: Counter[str]) -> None:
        super().__init__(root, retry_timeout=1.0)
        self.asked = asked

    def get(self, key: str) -> StoredObject:
        self.asked["get"] += 1
        if self.asked["silent"]:
            raise StoreUnavailable(f"{key}: no answer")
        return super().get(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        self.asked["list"] += 1
        return super().list(prefix)

    def within(self, folder: str) -> FolderStore:
        return Watched(self.root / folder, self.asked)


def test_a_sum_asks_for_no_more_than_what_may_have_changed(tmp_path: Path) -> None:
    """What docs/experiments.md counts."""
    for run_id in RUNS:
        store, session, lease = begun(tmp_path, run_id)
        write_progress(store, session)
    asked: Counter[str] = Counter()
    spending = Spending(Watched(tmp_path, asked))
    spending.look(RUNS)
    asked.clear()
    assert spending.look(RUNS).open == 2
    assert asked == {"get": 4}, "two for each run that is trained"
    lease.conclude("completed")
    spending.look(RUNS)
    asked.clear()
    assert spending.look(RUNS).open == 1
    assert asked == {"get": 3}, "one for a run that is over"


def test_a_price_that_is_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = limits(tmp_path, dollars=1)
    asked.read()
    nothing = Price(because="spot price: refused")
    store, session, _ = begun(tmp_path, RUNS[0], price=nothing)
    write_progress(store, after(session, 5))
    begun(tmp_path, RUNS[1])
    found = Limits(
        Configured(), session, read_sessions(store), price=nothing, store=store, deadline=None, experiment=asked
    )
    refused = found.reached()
    assert refused is not None and "spot price: refused" in refused
    assert refused.startswith("limits of the experiment nets: 1.0 dollars cannot be kept to")
    assert asked.ask()[0] is None
    assert "sessions of nets-a-s1 have no price: not counted" in caplog.text


def test_a_price_on_demand_stands_for_that_of_spot(tmp_path: Path) -> None:
    asked = limits(tmp_path, dollars=3)
    store, session, _ = begun(tmp_path, RUNS[0], price=Price(on_demand=3.0, volume=0.0, address=0.0))
    write_progress(store, after(session, 1.0))
    assert asked.ask()[0] is not None


def test_where_the_store_does_not_answer_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is asked again, in a thread: who asks does not wait."""
    monkeypatch.setattr("train_cloud.runtime.elsewhere._AFTER_FAILURE_SECONDS", 0.01)
    record(tmp_path, hours=1)
    store, session, _ = begun(tmp_path, RUNS[0])
    begun(tmp_path, RUNS[1])
    write_progress(store, after(session, 1.5))
    answers = Counter(silent=1)
    asked = ExperimentLimits(Watched(tmp_path, answers), "nets")
    until(lambda: asked.found() is not None or "cannot be read, and is asked for again" in caplog.text, "a warning", 60)
    assert asked.found() is None
    del answers["silent"]
    until(lambda: asked.found() is not None, "the limit", 60)
    assert asked.found() == "limits of the experiment nets: 1 hours are used"


def test_no_record_or_another_is_no_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = limits(tmp_path, hours=1)
    path = tmp_path / layout.experiment_key("nets")
    for content in ("[]", "no JSON", '{"experiment": "nets", "limits": {"hours": "many"}}'):
        path.write_text(content)
        assert asked.ask() == (None, SUM_SECONDS)
        assert "cannot be read" in caplog.text
        caplog.clear()
    path.unlink()
    assert asked.ask() == (None, SUM_SECONDS)
    store, session, _ = begun(tmp_path, RUNS[0])
    write_progress(store, after(session, 1.5))
    record(tmp_path, hours=1)
    assert asked.ask()[0] is not None
    path.unlink()
    assert asked.ask()[0] is not None, "what was known once counts on"


def test_a_run_that_somebody_ends_is_seen_between_two_commits(tmp_path: Path) -> None:
    store, session, _ = begun(tmp_path, RUNS[0])
    ended = Ended(store, session)
    assert ended.ask()[0] is None and ended.found() is None
    cancel(str(tmp_path), RUNS[0])
    found, _ = ended.ask()
    assert found is not None and found.startswith("the run was ended as stopped: cancelled on ")
    _, newer, _ = begun(tmp_path, RUNS[0])
    assert Ended(store, session).ask()[0] is None, "the run is another session's, which the next commit tells"
    conclude(store, "failed", "because", session=newer.number, owner="i")


@pytest.mark.slow
def test_its_training_leaves_long_before_its_next_commit(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "run_id: long\nalgorithm: ppo\ntotal_timesteps: 100_000_000\nsave_frequency: 50_000_000\n"
        "environment: {id: CartPole-v1}\nreproducibility: {replay: never}\n"
        "hyperparameters: {n_steps: 64, n_epochs: 1, policy_kwargs: {net_arch: [4]}}\n"
    )
    options = ["train", "run.yaml", "--store", "store", "--state-dir", "state"]
    # A look each second, so that nobody waits for a minute.
    code = "from train_cloud.runtime import elsewhere; elsewhere._HEAD_SECONDS = 1.0; import sys; "
    code += f"from train_cloud.cli import main; sys.exit(main({options!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        store = open_store(layout.run_url(str(tmp_path / "store"), "long"))
        until(lambda: (tmp_path / "state").is_dir() and reached(tmp_path / "state") > 200, "training", 200)
        assert cancel(str(tmp_path / "store"), "long").outcome == "stopped"
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == Fenced.exit_code and "Traceback" not in said, said
    read = read_head(store)
    assert read is not None and (read[0].outcome, read[0].timesteps) == ("stopped", 0)
    assert (read_sessions(store)[0].end or {})["ended_by"] == "fenced"


def reached(state_dir: Path) -> int:
    try:
        return read_timesteps(state_dir)
    except FileNotFoundError:
        return 0
