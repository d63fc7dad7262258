"""A run whose head is gone: nothing is begun anew on top of it, and a person gets it back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from sessions import Rehearsed
from test_rollback import CAPACITY, Worker, check, head_of, keys
from test_train import RUN

from train_cloud.checkpoint import read_manifest
from train_cloud.checkpoint.survey import survey
from train_cloud.cli import main
from train_cloud.config import Preservation
from train_cloud.errors import CorruptCheckpoint, Fenced, HeadMissing, InputError
from train_cloud.operations.delete import delete
from train_cloud.operations.fork import _by_a_fork
from train_cloud.operations.repair import plan, repair
from train_cloud.platforms.ec2.finish import Facts, decide
from train_cloud.platforms.ec2.units import UnitState
from train_cloud.rehearsal.metadata import MetadataService
from train_cloud.report.status import run_status, statuses
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Token, conclude, pack_head, read_head, trace
from train_cloud.run.session import begin_session, read_sessions
from train_cloud.sb3.compare import differences
from train_cloud.store import ObjectStore

KEEP = Preservation(last=5)


def manifest_key(store: ObjectStore, at: int) -> str:
    return next(k for k in sorted(keys(store), reverse=True) if (m := layout.manifest_of(k)) is not None and m[0] == at)


def damage(store: ObjectStore, key: str) -> None:
    """Other bytes of the same length."""
    body = bytearray(store.get(key).body)
    body[len(body) // 2] ^= 0xFF
    store.put(key, bytes(body))


def test_a_head_that_is_gone_is_written_again_and_a_living_worker_is_fenced(store_root: str, tmp_path: Path) -> None:
    living = Worker(store_root, tmp_path, policy=KEEP).work(100)
    store = living.store
    store.delete([layout.HEAD])
    before = keys(store)
    with pytest.raises(HeadMissing, match=r"a checkpoint at 100 timesteps.*train-cloud repair a-run"):
        Worker(store_root, tmp_path)
    for command in ("export", "rollback", "fork"):
        more = {"rollback": ["--to", "80"], "fork": ["--as", "b"], "export": []}[command]
        assert main([command, "a-run", "--store", store_root, *more]) == 1
    found = run_status(store_root, "a-run")
    assert (found.state, found.sessions[0].instance_id) == ("damaged", "i-1")
    assert found.damaged is not None and "the newest whole one at 100 timesteps" in found.damaged
    assert keys(store) - before == {"sessions/000002/start.json"}, "the session that was refused"

    planned = plan(store_root, "a-run")
    assert (planned.fault, planned.chosen.timesteps, planned.damaged) == ("head.json is missing", 100, {})
    head = repair(planned)
    assert head == head_of(store) and head.token > Token(1, 0) and head.outcome is None
    check(store, 100)
    kept = read_manifest(store, head.manifest).kept if head.manifest else ()
    assert [(each.timesteps, each.rows) for each in kept] == [(at, True) for at in (90, 80, 70, 60)]
    with pytest.raises(Fenced):
        living.work(110)
    assert read_sessions(store)[-1].end is not None
    following = Worker(store_root, tmp_path, policy=KEEP).work(120)
    check(following.store, 120)


def test_it_goes_back_to_what_is_whole(store_root: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = Worker(store_root, tmp_path, policy=KEEP).work(100).store
    newest, before = (read_manifest(store, each) for each in _references(store)[:2])
    damage(store, newest.parts["model"].key)
    store.delete([before.parts["model"].key, layout.HEAD])
    assert main(["repair", "a-run", "--store", store_root, "--yes"]) == 0
    shown = capfd.readouterr().out
    assert "head.json is missing" in shown and "CRC64NVME" in shown and "is missing, or not as long" in shown
    assert "80 timesteps, session 1: whole, every byte of it read" in shown and "is at 80 timesteps again" in shown
    check(store, 80)


def _references(store: ObjectStore) -> list[Any]:
    return [each.reference for each in survey(store).checkpoints]


@pytest.mark.parametrize("what", ["model", "manifest", "head", "empty head", "sessions too", "named none"])
def test_every_kind_of_fault_has_its_cure(folder_root: str, tmp_path: Path, what: str) -> None:
    worker = Worker(folder_root, tmp_path, policy=KEEP).work(60)
    store, expected = worker.store, 50 if what in ("model", "manifest") else 60
    head = head_of(store)
    assert head.manifest is not None
    if what == "model":
        damage(store, read_manifest(store, head.manifest).parts["model"].key)
    elif what == "manifest":
        damage(store, head.manifest.key)
    elif what == "head":
        damage(store, layout.HEAD)
    elif what == "empty head":
        store.put(layout.HEAD, b"")
    elif what == "sessions too":
        store.delete([key for key in keys(store) if key.startswith(layout.SESSIONS) or key == layout.HEAD])
    else:  # bootstrap's shell gives a run up that it finds without a head
        store.put(layout.HEAD, pack_head(Head(session=0, restart=0, owner="i-9", commit="x", outcome="failed")))
        with pytest.raises(HeadMissing):
            Worker(folder_root, tmp_path)
    listed = statuses(folder_root, ["a-run"])[0]
    assert listed.state == "damaged" or what in ("model", "manifest", "named none")
    repair(plan(folder_root, "a-run"))
    check(store, expected)
    assert head_of(store).session == 2 + (what == "named none") and head_of(store).outcome is None
    with pytest.raises(Fenced):
        worker.work(70)


def test_what_it_refuses(folder_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Worker(folder_root, tmp_path, policy=Preservation(last=2, every=20)).work(60).store
    with pytest.raises(InputError, match="nothing to repair: its head is there"):
        plan(folder_root, "a-run")
    with pytest.raises(InputError, match="nothing is stored"):
        plan(folder_root, "another")
    store.delete([layout.HEAD])
    for to, fix in ((70, r"whole ones: 60, 50"), (20, "no whole checkpoint is there: .* is missing")):
        with pytest.raises(InputError, match=fix):
            plan(folder_root, "a-run", to)
    standing = keys(store)
    monkeypatch.setattr("sys.stdin", io.StringIO("b-run\n"))
    assert main(["repair", "a-run", "--store", folder_root]) == 64
    assert keys(store) == standing, "a look changes nothing"
    monkeypatch.setattr("sys.stdin", io.StringIO("a-run\n"))
    assert main(["repair", "a-run", "--store", folder_root, "--to", "50"]) == 0
    assert head_of(store).timesteps == 50
    kept = read_manifest(store, head_of(store).manifest).kept  # type: ignore[arg-type]
    assert [(each.timesteps, each.rows) for each in kept] == [(40, False), (20, False)]


def test_nothing_whole_is_nothing_to_go_back_to(folder_root: str, tmp_path: Path) -> None:
    store = Worker(folder_root, tmp_path).work(10).store
    store.delete([layout.HEAD, next(key for key in keys(store) if key.endswith("/model"))])
    with pytest.raises(InputError, match="no whole checkpoint is there"):
        plan(folder_root, "a-run")
    with pytest.raises(HeadMissing):
        Worker(folder_root, tmp_path)
    delete(folder_root, "a-run")
    assert not keys(store)
    Worker(folder_root, tmp_path).work(10)


@pytest.mark.parametrize(
    ("left", "refused"),
    [
        (layout.checkpoint_prefix(10, (1, 0), 1) + "manifest.json", True),
        (layout.segment_key("replay", 0, 10, (1, 0), 1), True),
        (layout.end_key(1), True),
        (layout.end_key(1, 2), True),
        (layout.checkpoint_prefix(10, (1, 0), 1) + "model", False),  # of a first commit that did not come through
        (layout.start_key(1), False),
        (layout.RUN_YAML, False),
        ("checkpoints/notes.txt", False),
    ],
)
def test_what_shows_that_there_was_a_head(folder_root: str, tmp_path: Path, left: str, refused: bool) -> None:
    store = Worker(folder_root, tmp_path, run_id="b-run").store  # only for its kind
    store = type(store)(store.root.parent / "a-run", retry_timeout=5.0)  # type: ignore[attr-defined, call-arg]
    store.put(left, b"{}")
    assert (trace(store) == left) is refused
    if refused:
        with pytest.raises(HeadMissing):
            Lease.take(store, Token(3, 0), "i-3")
        assert read_head(store) is None
        # finish, or a worker that finds it so, leaves a head that still says that the run was lost.
        conclude(store, "failed", "no head", session=3, owner="i-3")
        with pytest.raises(HeadMissing):
            Lease.take(store, Token(4, 0), "i-4")
    else:
        assert Lease.take(store, Token(3, 0), "i-3").before is None


def test_nothing_is_swept_where_no_head_named_a_checkpoint(store_root: str, tmp_path: Path) -> None:
    worker = Worker(store_root, tmp_path)
    orphans = {layout.checkpoint_prefix(10, (0, 0), 1) + "model", layout.segment_key("replay", 0, 10, (0, 0), 1)}
    for key in orphans:
        worker.store.put(key, b"of whom?")
    worker.work(100)
    assert orphans <= keys(worker.store)
    Worker(store_root, tmp_path).work(110)
    assert not orphans & keys(worker.store), "the session after that knows what is garbage"


def test_a_session_goes_on_though_the_records_of_the_earlier_ones_are_gone(folder_root: str, tmp_path: Path) -> None:
    """A lifecycle rule takes what is old; session numbers begin above the head's."""
    store = Worker(folder_root, tmp_path).work(20).store
    Worker(folder_root, tmp_path).work(30)
    store.delete([key for key in keys(store) if key.startswith(layout.SESSIONS)])
    head = head_of(store)
    session = begin_session(
        store, tmp_path, instance_id="i", boot_id="b", details={}, persist=False, above=head.session
    )
    assert Lease.take(store, session.token, "i").head.session == 3


@pytest.mark.slow
def test_on_a_laptop_and_on_a_worker(warm: Any, tmp_path: Path) -> None:
    """Refused in both places; a worker's run has failed, so that the money stops. Repaired, it ends as it would."""
    twin = Rehearsed(warm, tmp_path / "twin", RUN)
    assert twin.session() == 0
    run = Rehearsed(warm, tmp_path / "run", {**RUN, "preservation": {"last": 3}})
    assert run.session("SIGTERM@250") == 75
    run.store.delete([layout.HEAD])
    before = keys(run.store)
    assert run.session() == 1 and keys(run.store) == before
    assert "newest whole one at 250 timesteps" in run.log() and "train-cloud repair a-run" in run.log()
    with MetadataService("i-0123456789abcdef0") as metadata:
        worker = {"TRAIN_CLOUD_AUTOSCALING_GROUP": "g", "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.endpoint}
        assert run.session(env=worker) == 1
        head = run.head()
        assert head.outcome == "failed" and head.reason is not None and "train-cloud repair" in head.reason
        over = UnitState(active="failed", sub="failed", result="exit-code", status=1, restarts=0)
        facts = Facts(head=head, unreadable=None, session=2, train=over, notice=None, boot=False)
        assert decide(facts).verb == "close"
        assert run.session(env=worker) == 0, "what systemd starts again has nothing to do"
    assert run.session() == 1, "nor does a person's next start train from zero"
    last = read_sessions(run.store)[-1].end
    assert last is not None and last["ended_by"] == "failure" and "HeadMissing" in last["because"]
    assert main(["repair", "a-run", "--store", run.root, "--yes"]) == 0
    assert run.session() == 0
    assert differences(run.final(), twin.final()) == []


def test_a_damaged_checkpoint_names_its_cure(folder_root: str, tmp_path: Path) -> None:
    store = Worker(folder_root, tmp_path, policy=KEEP).work(60).store
    head = head_of(store)
    assert head.manifest is not None
    newest = read_manifest(store, head.manifest)
    store.delete([newest.parts["model"].key])
    from train_cloud.checkpoint import restore
    from train_cloud.checkpoint.survey import cure

    with pytest.raises(CorruptCheckpoint, match=r"rollback --to TIMESTEPS, or train-cloud repair"):
        restore(store, newest)
    assert cure(store, head.manifest) == "train-cloud rollback a-run --to 50 goes back to the one before"
    damage(store, head.manifest.key)
    assert cure(store, head.manifest).startswith("train-cloud repair a-run")
    assert CAPACITY == 30


@pytest.mark.parametrize(
    ("left", "free"),
    [
        (None, True),
        (layout.checkpoint_prefix(10, (0, 0), 7) + "manifest.json", True),  # half a fork is no run
        (layout.segment_key("replay", 0, 10, (0, 0), 7), True),
        (layout.checkpoint_prefix(10, (3, 0), 7) + "manifest.json", False),
        (layout.segment_key("replay", 0, 10, (3, 0), 7), False),
        (layout.end_key(1), False),
    ],
)
def test_a_fork_takes_no_name_of_a_run_that_lost_its_head(left: str | None, free: bool) -> None:
    assert _by_a_fork(left) is free
