"""The head under two workers, lost replies and corruption; on a folder and over real S3 protocol."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from train_cloud.errors import ConditionFailed, CorruptCheckpoint, Fenced, StoreUnavailable
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Reference, Token, conclude, parse_head, read_head, reopen
from train_cloud.store import ObjectStore, open_store

MANIFEST = Reference(key="checkpoints/x/manifest.json", size=1, crc64nvme=2)


@pytest.fixture
def store(store_root: str) -> ObjectStore:
    return open_store(layout.run_url(store_root, "a-run"))


def head_of(store: ObjectStore) -> Head:
    read = read_head(store)
    assert read is not None
    return read[0]


class LosesReplies:
    """A store whose conditional writes happen and are answered by ``error``: a reset connection, or the 412 that the
    client's own retry runs into."""

    def __init__(self, store: ObjectStore, error: Exception, *, happens: bool = True) -> None:
        self.url, self._store, self._error, self._happens = store.url, store, error, happens
        self.armed = True

    def __getattr__(self, verb: str) -> Callable[..., object]:
        real: Callable[..., object] = getattr(self._store, verb)
        if verb not in ("create", "swap") or not self.armed:
            return real

        def lose(*arguments: object) -> object:
            self.armed = False
            if self._happens:
                real(*arguments)
            raise self._error

        return lose


def test_a_new_run_has_no_head(store: ObjectStore) -> None:
    assert read_head(store) is None


def test_the_newer_session_fences_the_older_and_not_the_other_way_round(store: ObjectStore) -> None:
    old = Lease.take(store, Token(1, 0), "i-old")
    old.commit(MANIFEST, 100)
    new = Lease.take(store, Token(2, 0), "i-new")
    with pytest.raises(Fenced, match="i-new"):
        old.commit(MANIFEST, 200)
    with pytest.raises(Fenced):
        old.conclude("completed")
    for restart in (1, 2, 99):
        with pytest.raises(Fenced):
            Lease.take(store, Token(1, restart), "i-old")
    assert head_of(store).timesteps == 100
    new.commit(MANIFEST, 300)
    assert head_of(store).timesteps == 300
    assert head_of(store).token == (2, 0)


def test_a_restart_fences_the_process_before_it(store: ObjectStore) -> None:
    before = Lease.take(store, Token(1, 0), "i-1")
    Lease.take(store, Token(1, 1), "i-1")
    with pytest.raises(Fenced):
        before.commit(MANIFEST, 1)
    with pytest.raises(Fenced):
        Lease.take(store, Token(1, 1), "i-1")


@pytest.mark.parametrize(
    ("error", "happens"),
    [
        (ConditionFailed("412 after the client's own retry"), True),
        (StoreUnavailable("connection reset"), True),
        (StoreUnavailable("503"), False),
    ],
)
def test_a_lost_reply_is_resolved_by_the_commit_id(store: ObjectStore, error: Exception, happens: bool) -> None:
    flaky = LosesReplies(store, error, happens=happens)
    flaky.armed = False
    lease = Lease.take(flaky, Token(1, 0), "i-1")  # type: ignore[arg-type]
    flaky.armed = True
    if happens:
        lease.commit(MANIFEST, 10)
    else:
        with pytest.raises(StoreUnavailable):
            lease.commit(MANIFEST, 10)
        lease.commit(MANIFEST, 10)
    assert head_of(store).timesteps == 10
    lease.commit(MANIFEST, 20)
    assert head_of(store).timesteps == 20


def test_a_reply_lost_for_good_does_not_lock_its_own_lease_out(store: ObjectStore) -> None:
    class Deaf(LosesReplies):
        def __getattr__(self, verb: str) -> Callable[..., object]:
            if verb == "get" and self.deaf:
                raise StoreUnavailable("still away")
            return super().__getattr__(verb)

        deaf = False

    flaky = Deaf(store, StoreUnavailable("reset"))
    flaky.armed = False
    lease = Lease.take(flaky, Token(1, 0), "i-1")  # type: ignore[arg-type]
    flaky.armed = flaky.deaf = True
    with pytest.raises(StoreUnavailable):
        lease.commit(MANIFEST, 10)
    flaky.deaf = False
    lease.commit(MANIFEST, 10)
    lease.commit(MANIFEST, 20)
    assert head_of(store).timesteps == 20


def test_restarts_without_a_commit_are_attempts_and_a_commit_resets_them(store: ObjectStore) -> None:
    lease = Lease.take(store, Token(1, 0), "i-1", max_attempts=3)
    lease.record_failure("ValueError: no")
    assert Lease.take(store, Token(1, 1), "i-1", max_attempts=3).head.attempts == 1
    lease = Lease.take(store, Token(1, 2), "i-1", max_attempts=3)
    assert lease.head.attempts == 2
    lease.commit(MANIFEST, 5)
    assert head_of(store).attempts == 0
    assert head_of(store).reason is None
    for restart in (3, 4):
        assert Lease.take(store, Token(1, restart), "i-1", max_attempts=3).head.outcome is None
    Lease.take(store, Token(2, 0), "i-2", max_attempts=3)
    assert head_of(store).attempts == 2, "a machine that vanished is not an attempt"
    last = Lease.take(store, Token(2, 1), "i-2", max_attempts=3)
    assert last.head.outcome == "failed"
    assert "3 attempts without a new commit" in (head_of(store).reason or "")


def test_a_failed_run_tells_the_last_failure(store: ObjectStore) -> None:
    Lease.take(store, Token(1, 0), "i-1").record_failure("ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in (Lease.take(store, Token(1, 1), "i-1", max_attempts=1).head.reason or "")


def test_conclude_from_outside(store: ObjectStore) -> None:
    assert conclude(store, "failed", "exit status 64", session=1, owner="i-1").outcome == "failed"
    assert conclude(store, "failed", "something else", session=1, owner="i-1").reason == "exit status 64"
    reopened = reopen(store)
    assert reopened is not None and reopened.outcome is None
    Lease.take(store, Token(5, 0), "i-5").commit(MANIFEST, 50, outcome="completed")
    assert conclude(store, "failed", "late", session=5, owner="i-5").outcome == "completed"
    with pytest.raises(Fenced):
        conclude(store, "failed", "stale", session=4, owner="i-4")


def test_an_outcome_set_from_outside_stops_the_lease(store: ObjectStore) -> None:
    lease = Lease.take(store, Token(1, 0), "i-1")
    conclude(store, "failed", "gone", session=1, owner="i-1")
    with pytest.raises(Fenced, match="failed"):
        lease.commit(MANIFEST, 1)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"session": 1}', b"\x00\xff", b'{"session":1,"unknown":2}'])
def test_a_corrupt_head_is_an_error_and_stays(store: ObjectStore, body: bytes) -> None:
    store.create(layout.HEAD, body)
    for attempt in (
        lambda: read_head(store),
        lambda: Lease.take(store, Token(9, 0), "i-9"),
        lambda: conclude(store, "failed", "x", session=9, owner="i-9"),
    ):
        with pytest.raises(CorruptCheckpoint, match="head"):
            attempt()
    assert bytes(store.get(layout.HEAD).body) == body


def test_any_flipped_bit_of_a_head_is_found(store: ObjectStore) -> None:
    Lease.take(store, Token(1, 0), "i-1").commit(MANIFEST, 100)
    standing = store.get(layout.HEAD)
    head = parse_head(bytes(standing.body))
    silent = []
    for bit in range(8 * len(standing.body)):
        body = bytearray(standing.body)
        body[bit // 8] ^= 1 << bit % 8
        try:
            silent.append(parse_head(bytes(body)))
        except ValueError:
            continue
    assert all(other == head for other in silent), "only white space may be other bytes"


def test_of_many_that_take_at_once_the_newest_wins(store: ObjectStore) -> None:
    leases: list[Lease] = []
    barrier = threading.Barrier(6)

    def take(session: int) -> None:
        barrier.wait(10)
        with contextlib.suppress(Fenced):
            leases.append(Lease.take(store, Token(session, 0), f"i-{session}"))

    threads = [threading.Thread(target=take, args=(session,)) for session in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert head_of(store).session == 6
    winners = []
    for lease in leases:
        try:
            winners.append(lease.commit(MANIFEST, lease.head.session).session)
        except Fenced:
            continue
    assert winners == [6]
