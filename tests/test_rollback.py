"""rollback and delete: by a person, while workers may live."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from groups import make_group
from sessions import Rehearsed

from train_cloud.checkpoint import Committer, find, read_manifest, restore
from train_cloud.cli import main
from train_cloud.config import Preservation
from train_cloud.errors import CorruptCheckpoint, Fenced, InputError
from train_cloud.operations.delete import delete
from train_cloud.operations.rollback import rollback
from train_cloud.platforms.ec2.group import Group
from train_cloud.report.status import run_ids, run_status
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, conclude, read_head
from train_cloud.run.session import begin_session, end_session, read_sessions, write_progress
from train_cloud.sb3.compare import differences
from train_cloud.snapshot import Part, Rows, Snapshot
from train_cloud.store import ObjectStore, open_store

CAPACITY = 30


class Worker:
    """A session that commits every ten timesteps."""

    def __init__(self, root: str, tmp_path: Path, *, policy: Preservation | None = None, run_id: str = "a-run") -> None:
        self.store = open_store(layout.run_url(root, run_id))
        details = {"run_file": {"total_timesteps": 500}}
        self.session = begin_session(
            self.store, tmp_path / "state", instance_id="i-1", boot_id="b", details=details, persist=False
        )
        self.lease = Lease.take(self.store, self.session.token, "i-1")
        head = self.lease.head
        self.at = head.timesteps
        manifest = read_manifest(self.store, head.manifest) if head.manifest else None
        self.committer = Committer(self.store, self.lease, manifest, policy=policy)

    def work(self, until: int, **facts: Any) -> Worker:
        for at in range(self.at + 10, until + 1, 10):
            rows = np.arange(at - 10, at, dtype=np.float32)[:, None]
            streams = {"replay": Rows(at - 10, at, CAPACITY, [(at - 10, {"reward": rows})])}
            parts = {"model": Part({"weight": np.full(3, at)}), "lock": Part(blob=b"the same")}
            self.committer.submit(Snapshot(at, parts, streams, facts))
            self.committer.wait()
            write_progress(self.store, self.session, timesteps=at, steps_per_second=1.0)
            self.at = at
        return self

    def end(self) -> None:
        end_session(self.store, self.session, ended_by="signal")


def head_of(store: ObjectStore) -> Head:
    read = read_head(store)
    assert read is not None
    return read[0]


def check(store: ObjectStore, at: int) -> None:
    """The newest checkpoint is the one at ``at``, and whole, as all that it names."""
    head = head_of(store)
    assert head.timesteps == at and head.manifest is not None
    manifest = read_manifest(store, head.manifest)
    for wanted in (at, *(kept.timesteps for kept in manifest.kept if kept.rows)):
        found = restore(store, find(store, head.manifest, wanted))
        assert (found.parts["model"].arrays["weight"] == wanted).all()
        rows = np.concatenate([chunk["reward"] for _, chunk in found.streams["replay"].chunks])
        assert (rows[:, 0] == np.arange(max(0, wanted - CAPACITY), wanted)).all()


def keys(store: ObjectStore) -> set[str]:
    return {info.key for info in store.list()}


# ------------------------------------------------------------------------------------------------------------ rollback


@pytest.mark.parametrize("to", [60, 80, 100])
def test_it_goes_back_and_a_living_worker_is_fenced(store_root: str, tmp_path: Path, to: int) -> None:
    living = Worker(store_root, tmp_path, policy=Preservation(last=5)).work(100)
    conclude(living.store, "failed", "as it were", session=1, owner="i-1")
    head = rollback(store_root, "a-run", to)
    assert head == head_of(living.store) and (head.session, head.outcome, head.attempts) == (2, None, 0)
    check(living.store, to)
    with pytest.raises(Fenced, match="rollback on"):
        living.work(110)
    check(living.store, to)
    assert read_sessions(living.store)[-1].end is not None
    status = run_status(store_root, "a-run")
    assert (status.state, status.committed_timesteps, status.total_timesteps) == ("interrupted", to, 500)

    following = Worker(store_root, tmp_path, policy=Preservation(last=5)).work(to + 10)
    assert following.session.number == 3
    check(following.store, to + 10)
    kept = read_manifest(following.store, head_of(following.store).manifest).kept  # type: ignore[arg-type]
    assert [k.timesteps for k in kept] == [*range(to, 50, -10)][:4]
    named = {old.manifest.key for old in kept} | {head_of(following.store).manifest.key}  # type: ignore[union-attr]
    assert {key for key in keys(following.store) if key.endswith("manifest.json")} == named, "what came after is gone"


def test_it_names_only_what_is_there_still(store_root: str, tmp_path: Path) -> None:
    """The manifest of the checkpoint that it goes back to names two before it, which are long gone."""
    living = Worker(store_root, tmp_path, policy=Preservation(last=3)).work(100)
    rollback(store_root, "a-run", 80)
    manifest = read_manifest(living.store, head_of(living.store).manifest)  # type: ignore[arg-type]
    assert manifest.kept == ()
    check(living.store, 80)


def test_what_is_not_there_is_refused_and_nobody_is_fenced(store_root: str, tmp_path: Path) -> None:
    living = Worker(store_root, tmp_path, policy=Preservation(last=2, every=20)).work(100)
    before = keys(living.store)
    for to, fix in ((70, "there are: 20, 40, 60, 80, 90, 100"), (60, "without its replay buffer")):
        with pytest.raises(InputError, match=fix):
            rollback(store_root, "a-run", to)
    with pytest.raises(InputError, match="no checkpoint"):
        rollback(store_root, "absent", 10)
    assert keys(living.store) == before
    living.work(110)


def test_a_newer_session_that_begins_meanwhile_wins(store_root: str, tmp_path: Path) -> None:
    living = Worker(store_root, tmp_path).work(30)

    class Overtaken:
        """A worker takes the run after the rollback has its number."""

        def __getattr__(self, name: str) -> Any:
            if name == "swap":
                Worker(store_root, tmp_path)
            return getattr(living.store, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_cloud.operations.rollback.open_store", lambda url: Overtaken())
        with pytest.raises(Fenced):
            rollback(store_root, "a-run", 20)
    check(living.store, 30)


@pytest.mark.slow
def test_a_run_rolled_back_ends_where_it_had_ended(warm: Any, tmp_path: Path) -> None:
    content = {
        "algorithm": "sac",
        "seed": 3,
        "total_timesteps": 500,
        "save_frequency": 100,
        "environment": {"id": "Pendulum-v1"},
        "hyperparameters": {"learning_starts": 100, "batch_size": 32, "policy_kwargs": {"net_arch": [16]}},
        "callbacks": ["interrupting:InterruptAt"],
    }
    run = Rehearsed(warm, tmp_path, content)
    assert run.session() == 0, run.log()
    first, scalars = run.final(), run.scalars()
    rows = {name: list(stream.chunks) for name, stream in first.streams.items()}
    assert main(["rollback", "a-run", "--store", str(tmp_path / "store"), "--to", "300"]) == 0
    assert (run.head().outcome, run.head().timesteps) == (None, 300)
    assert run.session("SIGTERM@350") == 75, run.log()
    assert run.session() == 0, run.log()
    from dataclasses import replace

    first = replace(first, streams={n: replace(s, chunks=rows[n]) for n, s in first.streams.items()})
    assert differences(run.final(), first) == []
    assert run.scalars() == scalars


# -------------------------------------------------------------------------------------------------------------- delete


def test_everything_goes_and_a_living_worker_is_fenced(store_root: str, tmp_path: Path) -> None:
    living = Worker(store_root, tmp_path).work(50)
    other = Worker(store_root, tmp_path, run_id="another").work(20)
    with pytest.raises(InputError, match="it is running"):
        delete(store_root, "a-run")
    living.work(60)
    assert delete(store_root, "a-run", force=True) > 10
    assert keys(living.store) == set() and run_ids(store_root) == ["another"]
    with pytest.raises(Fenced):
        living.work(70)
    assert layout.HEAD not in keys(living.store), "what it wrote before it knew is no run"
    delete(store_root, "a-run")
    assert run_ids(store_root) == ["another"]
    check(other.store, 20)
    with pytest.raises(InputError, match="nothing is stored"):
        delete(store_root, "absent")
    open_store(layout.run_url(store_root, "never-begun")).create(layout.RUN_YAML, b"run_id: never-begun")
    delete(store_root, "never-begun")
    assert run_ids(store_root) == ["another"]


def test_a_deletion_that_was_cut_short_is_done_again_and_leaves_no_run_to_go_on_with(
    store_root: str, tmp_path: Path
) -> None:
    living = Worker(store_root, tmp_path).work(50)
    living.end()

    class Cut:
        """Gone after a few objects."""

        def __getattr__(self, name: str) -> Any:
            if name == "delete":

                def few(found: list[str]) -> None:
                    living.store.delete(sorted(found)[:4])
                    raise KeyboardInterrupt

                return few
            return getattr(living.store, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_cloud.operations.delete.open_store", lambda url: Cut())
        with pytest.raises(KeyboardInterrupt):
            delete(store_root, "a-run")
    head = head_of(living.store)
    assert (head.outcome, head.reason) == ("stopped", "it is being deleted")
    with pytest.raises(CorruptCheckpoint):
        check(living.store, 50)
    delete(store_root, "a-run")
    assert keys(living.store) == set()


def test_a_head_that_cannot_be_read_is_deleted_by_force(store_root: str, tmp_path: Path) -> None:
    living = Worker(store_root, tmp_path).work(20)
    living.store.put(layout.HEAD, b"{}")
    with pytest.raises(CorruptCheckpoint):
        delete(store_root, "a-run")
    assert delete(store_root, "a-run", force=True)
    assert keys(living.store) == set()


@pytest.mark.parametrize(("typed", "code"), [("a-run\n", 0), ("a-ron\n", 64), ("", 1)])
def test_the_command_asks_for_the_runs_id(
    folder_root: str,
    tmp_path: Path,
    typed: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker = Worker(folder_root, tmp_path).work(20)
    worker.end()
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["delete", "a-run", "--store", folder_root]) == code
    assert bool(keys(worker.store)) == (code != 0)
    said = capsys.readouterr()
    assert ("objects under" in said.out) == (code == 0) and ("nothing was deleted" in said.err) == (code == 64)


def test_a_group_that_would_send_workers_stands_in_the_way(
    s3_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = make_group()
    worker = Worker(s3_root, tmp_path, run_id=group).work(20)
    worker.end()
    command = ["delete", layout.run_url(s3_root, group), "--yes"]
    assert main(command) == 64
    assert f"Auto Scaling group {group}" in capsys.readouterr().err
    check(worker.store, 20)
    Group(group).set_capacity(0)
    assert main(command) == 0 and keys(worker.store) == set()


def test_in_a_versioned_bucket_what_is_deleted_is_kept_for_the_lifecycle_rule(
    s3_root: str, bucket: str, tmp_path: Path
) -> None:
    boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    worker = Worker(s3_root, tmp_path).work(20)
    worker.end()
    delete(s3_root, "a-run")
    assert keys(worker.store) == set()
    assert boto3.client("s3").list_object_versions(Bucket=bucket)["Versions"]
