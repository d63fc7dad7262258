"""Faults between a worker and its store. Each ends in a correct commit, or in a clear error with the former head
intact.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import (
    Fault,
    FaultProxy,
    break_reply,
    flip_download,
    flip_upload,
    lose_reply,
    lose_request,
    meanwhile,
    now_and_then,
    refuse,
    stall,
    truncate_download,
    truncate_upload,
)
from paths import PYTHONPATH
from sessions import Rehearsed
from test_checkpoint import begin, check, snapshot

from train_cloud.checkpoint import Committer, read_manifest, restore
from train_cloud.errors import CorruptCheckpoint, Fenced, StoreForbidden, StoreUnavailable
from train_cloud.operations import rollback
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Token, conclude, read_head
from train_cloud.run.session import begin_session, read_sessions
from train_cloud.runtime.heartbeat import read_timesteps
from train_cloud.sb3.compare import differences
from train_cloud.store import ObjectStore, open_store

RETRY_TIMEOUT = 4.0
"""Seconds: half of it for one attempt, which a loaded machine must answer in."""

WRITES = ["put model", "put segment", "put manifest", "swap head"]
AFTER = ["list", "delete", "get manifest"]


@pytest.fixture
def proxy(aws_endpoint: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(aws_endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def direct(s3_root: str) -> ObjectStore:
    """The store as it is, with checkpoints at 10 and 20, and what a killed session left behind."""
    store = open_store(layout.run_url(s3_root, "a-run"))
    committer = begin(store, 1)
    for timesteps in (10, 20):
        commit(committer, timesteps)
    store.put(layout.segment_key("replay", 20, 30, Token(1, 0), 9), b"orphan")
    return store


@pytest.fixture
def faulty(
    request: pytest.FixtureRequest,
    proxy: FaultProxy,
    direct: ObjectStore,
    s3_root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> ObjectStore:
    """The same store, through the proxy."""
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        return open_store(layout.run_url(s3_root, "a-run"), retry_timeout=getattr(request, "param", RETRY_TIMEOUT))


def head_of(store: ObjectStore) -> Head:
    read = read_head(store)
    assert read is not None
    return read[0]


def commit(committer: Committer, timesteps: int, within: float = float("inf")) -> None:
    committer.submit(snapshot(timesteps, timesteps - 10))
    committer.wait(time.monotonic() + within)


def goes_on(direct: ObjectStore, session: int = 3) -> None:
    """The next session, without faults, goes on from a whole checkpoint."""
    standing = check(direct)
    committer = begin(direct, session)
    commit(committer, standing + 10)
    assert check(direct) == standing + 10


# --------------------------------------------------------------------------------------------------- faults that pass


@pytest.mark.parametrize("kind", [*WRITES, *AFTER])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(refuse(500, "InternalError"), id="500"),
        pytest.param(refuse(503, "SlowDown"), id="503"),
        pytest.param(refuse(500, "InternalError", happens=True), id="500, and it happened"),
        pytest.param(refuse(503, "ServiceUnavailable", happens=True), id="503, and it happened"),
        pytest.param(refuse(409, "OperationAborted"), id="409"),
        pytest.param(refuse(409, "ConditionalRequestConflict", happens=True), id="409, and it happened"),
        pytest.param(lose_request, id="reset in the request"),
        pytest.param(lose_reply, id="reset before the reply"),
        pytest.param(break_reply, id="reset in the reply"),
    ],
)
def test_a_fault_that_passes_costs_nothing_but_time(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    committer = begin(faulty, 2)
    proxy.arm(kind, fault)
    commit(committer, 30)
    assert not proxy.armed, f"no {kind} was seen in {proxy.seen}"
    assert check(direct) == 30
    assert (head_of(direct).seq, head_of(direct).token) == (4, (2, 0)), "each commit is one swap"
    commit(committer, 40)
    assert [check(direct, at) for at in (40, 30, 20)] == [40, 30, 20]


@pytest.mark.parametrize("fault", [lose_request, lose_reply, break_reply], ids=["in the request", "before", "after"])
def test_a_reset_while_a_run_is_taken_costs_nothing(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, tmp_path: Path, fault: Fault
) -> None:
    direct.create(layout.start_key(1), b"{}")
    for kind in ("list", "swap start", "get head", "swap head"):
        proxy.arm(kind, fault)
    session = begin_session(faulty, tmp_path, instance_id="i-1", boot_id="b", details={}, persist=True)
    lease = Lease.take(faulty, session.token, "i-1")
    assert not proxy.armed and lease.head == head_of(direct)
    assert (lease.head.seq, [record.number for record in read_sessions(direct)]) == (3, [1, 2])


#: An outage lasts longer than the client bears by itself: the committer has to try again.
SHORT_TIMEOUT, LASTS = 2.5, 4.0


@pytest.mark.parametrize("faulty", [SHORT_TIMEOUT], indirect=True)
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        pytest.param(".*", refuse(503, "SlowDown"), id="everything throttled"),
        pytest.param(".*", lose_reply, id="all replies lost"),
        pytest.param(".*", stall(60.0), id="silence"),
        pytest.param("put segment", lose_request, id="segments lost"),
        pytest.param("swap head", refuse(500, "InternalError", happens=True), id="the head swapped, and 500"),
        pytest.param("swap head", stall(60.0, where="after"), id="the head swapped, and silence"),
        pytest.param("(swap|get) head", lose_reply, id="all of the head's replies lost"),
        pytest.param("list|delete|get manifest", refuse(503, "SlowDown"), id="collecting throttled"),
    ],
)
def test_an_outage_only_delays_a_commit(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    committer = begin(faulty, 2)
    proxy.arm(kind, fault, float("inf"))
    over = threading.Timer(LASTS, proxy.disarm)
    over.start()
    commit(committer, 30)
    over.join()
    assert check(direct) == 30 and check(direct, 20) == 20
    commit(committer, 40)
    assert check(direct) == 40
    # One swap each, however often it was tried; only where not even the head could be read, one more of the same.
    assert head_of(direct).seq in ((5, 6) if kind == "(swap|get) head" else (5,))


@pytest.mark.parametrize("faulty", [SHORT_TIMEOUT], indirect=True)
@pytest.mark.parametrize("fault", [refuse(503, "SlowDown"), lose_reply], ids=["nothing happens", "all happens"])
def test_an_outage_beyond_the_deadline_is_an_error(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, fault: Fault
) -> None:
    committer = begin(faulty, 2)
    proxy.arm(".*", fault, float("inf"))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        commit(committer, 30, within=0.1)
    standing = head_of(direct)
    assert standing.timesteps == 20 or fault is lose_reply
    proxy.disarm()
    goes_on(direct)
    assert head_of(direct).timesteps == standing.timesteps + 10


# ------------------------------------------------------------------------------------------------- damaged on the way


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("fault", [flip_upload, truncate_upload])
def test_an_upload_that_arrives_damaged_is_refused_by_s3_and_sent_again(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    proxy.verifies = True
    committer = begin(faulty, 2)
    proxy.arm(kind, fault)
    commit(committer, 30)
    assert not proxy.armed
    assert [check(direct, at) for at in (30, 20, 10)] == [30, 20, 10]


@pytest.mark.parametrize("kind", WRITES)
def test_a_line_that_damages_every_upload_never_makes_a_head(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str
) -> None:
    proxy.verifies = True
    committer = begin(faulty, 2)
    before = head_of(direct)
    proxy.arm(kind, flip_upload, float("inf"))
    with pytest.raises(StoreUnavailable, match="BadDigest"):
        commit(committer, 30, within=0.1)
    assert head_of(direct) == before
    goes_on(direct)


@pytest.mark.parametrize("kind", ["put model", "put segment", "put manifest"])
@pytest.mark.parametrize("fault", [flip_upload, truncate_upload])
def test_a_server_that_verifies_nothing_is_found_out_at_restore(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    """Not S3, but such servers exist: what was damaged is never restored, and the checkpoint before it is whole."""
    before = head_of(direct).manifest
    assert before is not None
    committer = begin(faulty, 2)
    proxy.arm(kind, fault)
    commit(committer, 30)
    with pytest.raises(CorruptCheckpoint, match=r"CRC64NVME|bytes"):
        check(direct)
    manifest = read_manifest(direct, before)
    assert restore(direct, manifest).parts["model"].arrays["step"] == 20
    assert len(list(restore(direct, manifest).streams["replay"].chunks)) > 1
    if kind != "put manifest":
        assert check(direct, 20) == 20
        direct.create(layout.start_key(2), b"{}")
        rollback.rollback(direct.url.removesuffix("/runs/a-run"), "a-run", 20)
        goes_on(direct, 9)


def test_a_damaged_head_is_no_head(proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore) -> None:
    """As above. Whoever reads it changes nothing; its own worker writes the next one over it."""
    committer = begin(faulty, 2)
    proxy.arm("swap head", flip_upload)
    commit(committer, 30)
    body = bytes(direct.get(layout.HEAD).body)
    for attempt in (lambda: read_head(direct), lambda: begin(direct, 3)):
        with pytest.raises(CorruptCheckpoint, match="damaged"):
            attempt()
    assert bytes(direct.get(layout.HEAD).body) == body
    commit(committer, 40)
    assert check(direct) == 40


@pytest.mark.parametrize("kind", ["get head", "get manifest", "get model", "get segment"])
@pytest.mark.parametrize("fault", [flip_download, truncate_download])
def test_a_download_that_arrives_damaged_is_not_used(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    before = bytes(direct.get(layout.HEAD).body)
    proxy.arm(kind, fault)
    with pytest.raises(CorruptCheckpoint):
        check(faulty)
    assert bytes(direct.get(layout.HEAD).body) == before
    assert check(faulty) == 20, "it was the line and not the checkpoint"


@pytest.mark.parametrize("fault", [flip_download, truncate_download])
def test_a_damaged_head_is_not_taken(proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, fault: Fault) -> None:
    before = bytes(direct.get(layout.HEAD).body)
    proxy.arm("get head", fault)
    with pytest.raises(CorruptCheckpoint):
        begin(faulty, 2)
    assert bytes(direct.get(layout.HEAD).body) == before
    goes_on(direct)


@pytest.mark.parametrize("kind", ["get head", "get manifest", "get model", "get segment"])
@pytest.mark.parametrize(
    "fault",
    [break_reply, lose_reply, lose_request, stall(60.0), stall(60.0, where="within"), refuse(503, "SlowDown")],
    ids=["reset in the reply", "reset before", "reset in the request", "silence", "silence in the reply", "503"],
)
def test_a_download_that_breaks_off_is_asked_for_again(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, fault: Fault
) -> None:
    proxy.arm(kind, fault)
    assert check(faulty) == 20
    assert not proxy.armed


def test_large_bodies_are_cut_in_the_middle(proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore) -> None:
    """In parts, each of which may be lost by itself."""
    body = random.Random(1).randbytes(40 << 20)
    for kind, faults in (("multipart", (lose_request, lose_reply, break_reply)), ("get large", (break_reply,))):
        for fault in faults:
            proxy.arm(kind, fault)
    faulty.put("large", body)
    assert bytes(faulty.get("large").body) == body
    assert not proxy.armed


# ------------------------------------------------------------------------------------------- races and credentials


@pytest.mark.parametrize("reply", [None, refuse(409, "ConditionalRequestConflict")], ids=["412", "409"])
def test_a_race_for_the_head_has_one_winner(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, reply: Fault | None
) -> None:
    committer = begin(faulty, 2)
    newer: list[Lease] = []
    proxy.arm("swap head", meanwhile(lambda: newer.append(Lease.take(direct, Token(9, 0), "i-9"))))
    if reply is not None:
        proxy.arm("swap head", reply)
    with pytest.raises(Fenced, match="i-9"):
        commit(committer, 30)
    assert head_of(direct) == newer[0].head
    assert check(direct) == 20


def test_a_race_for_an_outcome_has_one_winner(proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore) -> None:
    committer = begin(faulty, 2)
    proxy.arm("swap head", meanwhile(lambda: conclude(direct, "stopped", "by hand", session=2, owner="finish")))
    with pytest.raises(Fenced, match="stopped"):
        commit(committer, 30)
    assert (head_of(direct).outcome, head_of(direct).timesteps) == ("stopped", 20)


@pytest.mark.parametrize("session", [1, 9])
def test_a_race_for_the_run_has_one_winner(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, session: int
) -> None:
    """Of two that take at once the newer one owns the run, whoever's swap came first."""
    other: list[Lease] = []
    proxy.arm("swap head", meanwhile(lambda: other.append(Lease.take(direct, Token(session, 1), f"i-{session}"))))
    if session > 2:
        with pytest.raises(Fenced, match="i-9"):
            begin(faulty, 2)
        other[0].record_failure("still ours")
    else:
        commit(begin(faulty, 2), 30)
        with pytest.raises(Fenced, match="i-2"):
            other[0].record_failure("no longer ours")
    assert head_of(direct).session == max(session, 2)


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "ExpiredToken"), (400, "ExpiredToken"), (403, "AccessDenied"), (403, "InvalidAccessKeyId")],
)
@pytest.mark.parametrize("kind", [".*", "swap head"])
def test_credentials_that_expire_are_an_error_until_they_are_renewed(
    proxy: FaultProxy, direct: ObjectStore, faulty: ObjectStore, kind: str, status: int, code: str
) -> None:
    committer = begin(faulty, 2)
    before = head_of(direct)
    proxy.arm(kind, refuse(status, code), float("inf"))
    with pytest.raises(StoreForbidden, match="credentials"):
        commit(committer, 30)
    assert head_of(direct) == before
    with pytest.raises(StoreForbidden):
        begin(faulty, 3).submit(snapshot(30, 20))
    assert check(direct) == 20
    proxy.disarm()
    goes_on(faulty, 4)


# --------------------------------------------------------------------------------------------------------- a full disk

FULL = """
import resource, sys, threading, time
from pathlib import Path
from test_checkpoint import begin, check, snapshot
from train_cloud.errors import StoreUnavailable
from train_cloud.store import open_store

kind, root = sys.argv[1], Path(sys.argv[2])
filler, (soft, hard) = root / "filler", resource.getrlimit(resource.RLIMIT_FSIZE)

def full():
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        return
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def free():
    if kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    else:
        filler.unlink()

def commit(session, timesteps, seconds):
    committer = begin(store, session)
    full()
    if seconds > 1:
        threading.Timer(1.5, free).start()
    committer.submit(snapshot(timesteps, timesteps - 10))
    committer.wait(time.monotonic() + seconds)

store = open_store(str(root / "store"))
committer = begin(store, 1)
committer.submit(snapshot(10))
committer.wait()
try:
    commit(2, 20, 0.1)
except StoreUnavailable as error:
    print(error)
assert check(store) == 10
assert [path.name for path in (root / "store" / ".train-cloud").iterdir()] == ["lock"], "half a file is left"
free()
commit(3, 20, 60)
assert check(store) == 20
print("committed")
"""


def small_file_system(folder: str) -> bool:
    """Mount one of 1 MiB; whether this user may."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "faults", folder]
    return shutil.which("mount") is not None and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode


def full_disks() -> list[str]:
    """Everybody may limit a process to files of 200 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        if not small_file_system(folder):
            return ["limit"]
        subprocess.run(["umount", folder], check=True)
        return ["limit", "tmpfs"]


@pytest.mark.parametrize("kind", full_disks())
def test_a_full_disk_delays_a_commit_or_is_an_error(tmp_path: Path, kind: str) -> None:
    if kind == "tmpfs":
        assert small_file_system(str(tmp_path))
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, kind, tmp_path],
            env={**os.environ, "PYTHONPATH": PYTHONPATH},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        if kind == "tmpfs":
            subprocess.run(["umount", tmp_path], check=True)
    assert done.returncode == 0, done.stderr
    error, last = done.stdout.splitlines()
    assert ("File too large" if kind == "limit" else "No space left") in error
    assert last == "committed"


# ------------------------------------------------------------------------------------------------ sessions of training

RUN: dict[str, Any] = {
    "algorithm": "sac",
    "seed": 3,
    "total_timesteps": 500,
    "save_frequency": 50,
    "environment": {"id": "Pendulum-v1", "module": "jumping_clocks", "normalize": {}},
    "hyperparameters": {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [8]}},
    "callbacks": ["interrupting:InterruptAt"],
}


@pytest.fixture(scope="module")
def twin(warm: Any, tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """What comes of it when nothing happens."""
    run = Rehearsed(warm, tmp_path_factory.mktemp("twin"), RUN)
    assert run.session() == 0, run.log()
    return run


def check_equal(run: Rehearsed, twin: Rehearsed) -> None:
    assert differences(run.final(), twin.final()) == []
    assert run.scalars() == twin.scalars()


@pytest.mark.slow
def test_training_over_a_line_that_fails_all_the_time(
    warm: Any, twin: Rehearsed, proxy: FaultProxy, s3_root: str, tmp_path: Path
) -> None:
    """One in six requests fails in some way; interrupted, and killed, it ends as if nothing had happened."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    proxy.verifies = True
    passing: list[Fault] = [
        refuse(500, "InternalError"), refuse(503, "SlowDown"), refuse(500, "InternalError", happens=True),
        refuse(503, "ServiceUnavailable", happens=True), lose_request, lose_reply, break_reply,
        stall(0.5), stall(0.5, where="after"), stall(0.5, where="within"),
    ]  # fmt: skip
    proxy.arm("put (model|segment|manifest)", now_and_then(chance, 0.3, *passing, flip_upload, truncate_upload), 1e9)
    proxy.arm(".*", now_and_then(chance, 1 / 6, *passing), float("inf"))
    run = Rehearsed(warm, tmp_path, RUN, root=s3_root)
    env = {"AWS_ENDPOINT_URL_S3": proxy.url}
    assert run.session("SIGTERM@137", env=env) == 75, run.log()
    assert run.session("SIGKILL@331", env=env) == -9, run.log()
    assert run.session(env=env) == 0, run.log()
    check_equal(run, twin)


@pytest.mark.slow
def test_training_goes_on_through_an_outage(
    warm: Any, twin: Rehearsed, proxy: FaultProxy, s3_root: str, tmp_path: Path
) -> None:
    over = threading.Timer(8.0, proxy.disarm)

    def outage() -> None:
        proxy.arm(".*", refuse(503, "ServiceUnavailable"), float("inf"))
        over.start()

    run = Rehearsed(warm, tmp_path, RUN, root=s3_root)
    proxy.arm("put segment", meanwhile(outage))
    assert run.session(env={"AWS_ENDPOINT_URL_S3": proxy.url}) == 0, run.log()
    over.join()
    check_equal(run, twin)


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(warm: Any, twin: Rehearsed, tmp_path: Path) -> None:
    """No two readings of the wall clock agree: the state is the same, to the bit, and no limit in hours is reached."""
    run = Rehearsed(warm, tmp_path, RUN)
    env = {"CLOCK_JUMPS": "1"}
    for interrupt, code in (("SIGTERM@137", 75), ("SIGKILL@331", -9), ("", 0)):
        assert run.session(interrupt, env=env, options=("--set", "limits.hours=1")) == code, run.log()
    years = {record.start["started"][:4] for record in read_sessions(run.store)}
    assert len(years) > 1, f"the clock did not jump: {years}"
    check_equal(run, twin)


@pytest.mark.slow
def test_a_workers_own_disk_that_is_full_stops_no_commit(
    warm: Any, twin: Rehearsed, aws_endpoint: str, s3_root: str, tmp_path: Path
) -> None:
    """Logs, tables and the final model lie there before they are sent: an error, with what is committed intact."""
    run = Rehearsed(warm, tmp_path, RUN, root=s3_root)
    process = run.start(env={"AWS_ENDPOINT_URL": aws_endpoint})
    steps = tmp_path / "state" / "timesteps"
    while process.exitcode is None and not (steps.exists() and read_timesteps(steps.parent)):
        process.join(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    process.join(120)
    assert process.exitcode == 1, run.log()
    head = run.head()
    assert head.timesteps in (150, 300, 450) and head.outcome is None and "File too large" in str(head.reason)
    assert run.session(env={"AWS_ENDPOINT_URL": aws_endpoint}) == 0, run.log()
    check_equal(run, twin)
