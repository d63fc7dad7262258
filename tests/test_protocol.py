"""The commit protocol over a simulated bucket: two and three workers, crashes, lost and late requests; and a real race.

First every schedule of the lease alone, one by one; then whole sessions (take, write, commit, collect, restart) in
schedules that hypothesis looks for; then real processes on a real server.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from simulation import FAULTS, WRITES, Died, Objects, Worker

from train_cloud.checkpoint import Committer, commit, compaction, copy, find, read_manifest, restore
from train_cloud.checkpoint.commit import Committed
from train_cloud.checkpoint.format import crc64nvme
from train_cloud.config import Preservation
from train_cloud.errors import ConditionFailed, CorruptCheckpoint, Fenced, InputError, StoreUnavailable, TrainCloudError
from train_cloud.operations import rollback
from train_cloud.run import head as run_head
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Outcome, Reference, Token, conclude, found, parse_head, read_head, reopen
from train_cloud.run.session import begin_session
from train_cloud.snapshot import Part, Rows, Snapshot
from train_cloud.store import open_store


class AtOnce(Executor):
    """Calls what it is given itself. A thread begins with the next call before it is told that the last one failed, or
    after it: then no schedule could be played twice.
    """

    def __init__(self, max_workers: int | None = None, **_: Any) -> None:
        pass

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for, as an executor does
            future.set_exception(error)
        return future


@pytest.fixture(scope="module", autouse=True)
def one_after_the_other() -> Iterator[None]:
    """So that a schedule decides everything: one object at a time, and another try at once. Two segments are many."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (commit, sys.modules[copy.__module__], sys.modules[restore.__module__]):
            patch.setattr(module, "_PARALLEL", 1)
            patch.setattr(module, "ThreadPoolExecutor", AtOnce)
        patch.setattr(sys.modules[copy.__module__], "now", lambda: "now")
        own_number = SimpleNamespace(randbelow=lambda end: int(threading.current_thread().name[-1]) % end)
        patch.setattr(sys.modules[copy.__module__], "secrets", own_number)
        patch.setattr(rollback, "open_store", lambda url: stores[url.partition("/")[0]])
        patch.setattr(compaction, "MANY", 2)
        patch.setattr(compaction, "FAN_IN", 2)
        for module in (commit, run_head):
            patch.setattr(module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None))
        for module, hook in ((threading, "excepthook"), (sys, "unraisablehook")):
            patch.setattr(module, hook, lambda hook: None)  # a dying thread has nobody to tell
        yield


#: Where somebody who names a store's URL finds it.
stores: dict[str, Worker] = {}


def check_history(heads: list[Head], since: int = 0) -> None:
    """What must hold between any head and the one that replaced it. ``seq`` counts the swaps, so that each replaced the
    one before it and no other.
    """
    for before, after in itertools.pairwise(heads[max(0, since - 1) :]):
        assert after.seq == before.seq + 1, "a swap that did not build on the head it replaced"
        assert after.token >= before.token, "a stale worker fenced its successor"
        assert after.timesteps >= before.timesteps or after.owner.startswith("rollback"), "the head went back"
        assert after.manifest is not None or before.manifest is None, "the checkpoint was lost"
        assert after.commit != before.commit


# -------------------------------------------------------------------------------------- every schedule of the lease


class Machine:
    """Takes the run and commits, of two times the last one together with the outcome; started again once after its
    process has died or given up.
    """

    def __init__(self, objects: Objects, session: int, commits: int) -> None:
        self.objects, self.session, self.commits, self.restart = objects, session, commits, -1
        self.done: list[str] = []
        self.start()

    def start(self) -> None:
        self.restart += 1
        self.gave_up = False
        self.since = max(0, len(self.objects.heads) - 1)
        self.worker = Worker(self.objects, f"{self.session}.{self.restart}", self.program)

    def program(self, store: Any) -> str:
        token = Token(self.session, self.restart)
        lease = Lease.take(store, token, f"i-{self.session}")
        self.done.append(lease.head.commit)
        if lease.head.outcome is not None:
            return "over"
        for number in range(self.commits):
            timesteps = lease.head.timesteps + 10
            reference = Reference(key=f"{layout.token_text(token)}-{number}", size=1, crc64nvme=1)
            outcome: Outcome | None = "completed" if number == 1 else None
            try:
                self.done.append(lease.commit(reference, timesteps, outcome=outcome).commit)
            except StoreUnavailable:
                if number == 1:  # out of time: word of it is left, and the next start goes on from what stands
                    self.gave_up = True
                    lease.record_failure("the store does not answer")
                    raise
                self.done.append(lease.commit(reference, timesteps, outcome=outcome).commit)
        return "done"

    def fenced_rightly(self) -> bool:
        token = Token(self.session, self.restart)
        since = self.objects.heads[self.since :]
        # What it gave up may have happened after all: a failure can be recorded no longer then.
        over = ("failed", "completed") if self.gave_up else ("failed",)
        return any(head.token > token or head.outcome in over for head in since)


class Person:
    """Acts on the run from outside, once.

    :param program: given the store and a name
    """

    def __init__(self, objects: Objects, name: str, program: Callable[[Any, str], object]) -> None:
        self.restart = 1
        self.done: list[str] = []
        self.worker = Worker(objects, name, lambda store: str(program(store, name) and "done"))


def reopens(store: Any, name: str) -> object:
    return reopen(store) or name


def concludes(store: Any, name: str) -> object:
    return conclude(store, "failed", "no more", session=1, owner=name)


def forks(store: Any, name: str) -> object:
    """Into ``store``, with a part that no other fork has."""
    source = forked_from()
    (newest,) = (key for key in source.bodies if key.endswith("manifest.json"))
    manifest = read_manifest(source, reference_to(source, newest))
    reference = copy(source, manifest, store, token=Token(0, 0), parts={"lock": Part(blob=name.encode())}, facts={})
    return found(store, reference, manifest.timesteps, owner=name, parent=source.url)


Choices = tuple[tuple[int, str], ...]
Actors = Callable[[Objects], list[Machine | Person]]


class Schedule:
    """One execution, choice by choice: (actor, fault), (actor, "restart") or (-1 - request, "") for a late one."""

    def __init__(self, actors: Actors, faults: int, kinds: Sequence[str], choices: Choices) -> None:
        self.objects = Objects()
        self.kinds = kinds
        self.actors = actors(self.objects)
        self.late: list[tuple[str, Callable[[], object]]] = []
        self.faults = faults
        for choice in choices:
            self.go(choice)
        self.check()

    def go(self, choice: tuple[int, str]) -> None:
        index, fault = choice
        if index < 0:
            self.late.pop(-1 - index)[1]()
        elif fault == "restart":
            actor = self.actors[index]
            assert isinstance(actor, Machine)
            actor.start()
        else:
            worker = self.actors[index].worker
            self.faults -= bool(fault)
            late = worker.step(fault)
            if late is not None:
                self.late.append((f"{worker.name} {len(worker.answers)}", late))

    def check(self) -> None:
        check_history(self.objects.heads)
        stood = {head.commit for head in self.objects.heads}
        for actor in self.actors:
            assert stood.issuperset(actor.done), "a swap was won that never stood"
            ended = actor.worker.ended
            if isinstance(ended, Fenced) and isinstance(actor, Machine):
                assert actor.fenced_rightly(), ended
            elif actor.worker.call is None and not (isinstance(ended, ConditionFailed) and isinstance(actor, Person)):
                assert isinstance(ended, str | Died | StoreUnavailable | Fenced), ended

    def options(self) -> list[tuple[int, str]]:
        found = [(-1 - index, "") for index in range(len(self.late))]
        for index, actor in enumerate(self.actors):
            call, ended = actor.worker.call, actor.worker.ended
            if call is not None:
                faults = [kind for kind in self.kinds if call.verb in WRITES or kind in ("dies before", "unavailable")]
                found += [(index, fault) for fault in ("", *(faults if self.faults else ()))]
            elif isinstance(ended, Died | StoreUnavailable) and actor.restart == 0:
                found.append((index, "restart"))
        return found

    def state(self) -> object:
        """Equal for schedules after which everything can only go on alike."""
        return (
            tuple(
                (actor.restart, tuple(actor.worker.answers) if actor.worker.call else type(actor.worker.ended))
                for actor in self.actors
            ),
            tuple(sorted((key, self.objects.plain(body)) for key, body in self.objects.bodies.items())),
            tuple(sorted(name for name, _ in self.late)),
            self.faults,
        )

    def close(self) -> None:
        for actor in self.actors:
            actor.worker.kill()


def explore(
    actors: Actors,
    faults: int,
    kinds: Sequence[str] = FAULTS,
    check: Callable[[Objects], None] = lambda objects: None,
) -> Iterator[Schedule]:
    """Every schedule with so many faults, once for each state that it leads to; yields those that have come to an end.

    :param check: called in every state
    """
    seen: set[object] = set()
    waiting: list[Choices] = [()]
    while waiting:
        choices = waiting.pop()
        schedule = Schedule(actors, faults, kinds, choices)
        while (state := schedule.state()) not in seen:
            seen.add(state)
            check(schedule.objects)
            options = schedule.options()
            if not options:
                yield schedule
                break
            waiting += [(*choices, option) for option in options[1:]]
            choices = (*choices, options[0])
            schedule.go(options[0])
            schedule.check()
        schedule.close()
    print(f"{len(seen)} states")


@pytest.mark.parametrize(
    ("machines", "commits", "faults", "person"),
    [
        (2, 2, 0, None),
        (2, 1, 1, None),
        (3, 1, 0, None),
        (1, 2, 1, reopens),
        (1, 1, 1, concludes),
        (2, 1, 0, concludes),
        pytest.param(2, 2, 1, None, marks=pytest.mark.full),
        pytest.param(2, 1, 2, None, marks=pytest.mark.full),
        pytest.param(1, 2, 2, reopens, marks=pytest.mark.full),
        pytest.param(3, 1, 1, None, marks=pytest.mark.full),
    ],
)
@pytest.mark.timeout(1800)
def test_every_schedule_of_a_few_leases(machines: int, commits: int, faults: int, person: Any) -> None:
    def actors(objects: Objects) -> list[Machine | Person]:
        found: list[Machine | Person] = [Machine(objects, session + 1, commits) for session in range(machines)]
        return [*found, Person(objects, "person", person)] if person else found

    def ended_rightly(objects: Objects) -> None:
        for before, after in itertools.pairwise(objects.heads):
            if after.outcome == "failed" and before.outcome is None:
                assert after.session == 1, "somebody else's run was ended"

    ends = 0
    for schedule in explore(actors, faults, check=ended_rightly):
        ends += 1
        if not faults and person is None:
            assert schedule.actors[-1].worker.ended in ("done", "over")
            assert schedule.objects.heads[-1].session == machines
    assert ends


@pytest.mark.parametrize("faults", [0, 1])
def test_every_schedule_of_two_forks_to_one_name(faults: int) -> None:
    def whole(objects: Objects) -> None:
        for head in objects.heads:
            assert head.manifest is not None
            found = restore(objects, read_manifest(objects, head.manifest))
            check_snapshot(found, head.timesteps)
            assert found.parts["lock"].blob.decode() == head.owner, "one fork's objects under the other's head"

    winners = set()
    kinds = ("dies before", "dies after", "sent again")  # after an error a copy may still begin with its next object
    for schedule in explore(
        lambda objects: [Person(objects, f"fork {n}", forks) for n in (1, 2)], faults, kinds, whole
    ):
        assert len(schedule.objects.heads) == 1 or faults
        for actor in schedule.actors:
            if isinstance(actor.worker.ended, ConditionFailed):
                assert schedule.objects.heads[0].owner != actor.worker.name, "it has won, and was told that it has lost"
        winners |= {head.owner for head in schedule.objects.heads}
    assert winners == {"fork 1", "fork 2"}


# --------------------------------------------------------------------------------- whole sessions, schedules by search

EVERY, CAPACITY, TOTAL = 10, 45, 80
POLICIES = [Preservation(last=1), Preservation(last=2, every=30), Preservation(last=3, best=True)]


def snapshot(timesteps: int) -> Snapshot:
    """Everything in it follows from the timesteps: what is computed again after a resume is the same."""
    rows = np.arange(timesteps - EVERY, timesteps, dtype=np.int64)[:, None]
    return Snapshot(
        timesteps,
        {"model": Part({"weight": np.array(timesteps)}, b"state"), "lock": Part(blob=b"torch==2")},
        {"replay": Rows(timesteps - EVERY, timesteps, CAPACITY, [(timesteps - EVERY, {"row": rows})])},
        {"episode_return": [5.0, 9.0, 1.0][timesteps // EVERY % 3]},
    )


def check_snapshot(found: Snapshot, timesteps: int, *, rows: bool = True) -> None:
    assert (found.timesteps, int(found.parts["model"].arrays["weight"])) == (timesteps, timesteps)
    read = [int(row) for _, columns in found.streams["replay"].chunks for row in columns["row"].ravel()]
    assert read == list(range(max(0, timesteps - CAPACITY), timesteps)) if rows else read == []


def reference_to(objects: Objects, key: str) -> Reference:
    body = memoryview(objects.bodies[key])
    return Reference(key=key, size=len(body), crc64nvme=crc64nvme(body))


@functools.cache
def forked_from() -> Objects:
    """A run with one checkpoint."""
    objects = Objects()
    committer = Committer(objects, Lease.take(objects, Token(1, 0), "i-1"), None)
    committer.submit(snapshot(EVERY))
    committer.wait()
    return objects


class Process:
    """One process of a session; ``disk`` outlives it."""

    def __init__(self, objects: Objects, disk: Path, number: int, policy: Preservation) -> None:
        self.disk, self.policy = disk, policy
        self.since = max(0, len(objects.heads) - 1)
        self.token: Token | None = None
        self.hurried = False
        self.total = TOTAL
        self.committed: list[Head] = []
        self.worker = Worker(objects, f"{disk.name}.{number}", self.program)

    def program(self, store: Any) -> str:
        """What ``worker.train`` does, without the training."""
        name = self.disk.name
        session = begin_session(store, self.disk, instance_id=name, boot_id=name, details={}, persist=True)
        self.token = session.token
        lease = Lease.take(store, session.token, name)
        if lease.head.outcome is not None:
            return lease.head.outcome
        manifest = read_manifest(store, lease.head.manifest) if lease.head.manifest else None
        committer = Committer(store, lease, manifest, policy=self.policy, on_commit=self.on_commit)
        try:
            if manifest is not None:
                check_snapshot(restore(store, manifest), lease.head.timesteps)
            for timesteps in range(lease.head.timesteps + EVERY, self.total + 1, EVERY):
                deadline = 0.0 if self.hurried else float("inf")
                committer.wait(deadline)  # known before the commit's first verb, for a schedule must decide everything
                committer.submit(snapshot(timesteps), outcome="completed" if timesteps == self.total else None)
                committer.wait(deadline)
            if lease.head.outcome is None:
                lease.conclude("completed")
        except Fenced:
            raise
        except TrainCloudError as error:
            lease.record_failure(str(error))
            raise
        return "completed"

    def on_commit(self, committed: Committed) -> None:
        self.committed.append(committed.head)

    def check_end(self, heads: list[Head]) -> None:
        ended, since, token = self.worker.ended, heads[self.since :], self.token
        newer = token is not None and any(head.token > token for head in since)
        if isinstance(ended, Fenced):
            over = any(head.outcome == "failed" or (head.outcome and head.token != token) for head in since)
            assert newer or over, f"{ended}; and yet {token} is the newest"
        elif isinstance(ended, CorruptCheckpoint):
            assert newer, f"{ended}, which {token} needs"
        else:
            assert isinstance(ended, str | Died | StoreUnavailable), repr(ended)


KINDS = ["model", "manifest", "head", "list", "delete"]


class Protocol(RuleBasedStateMachine):
    """Sessions on machines, in any order, with faults. The checks are in the invariants and in what follows the last
    step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects = Objects()
        self.folder = Path(tempfile.mkdtemp(prefix="protocol-"))
        self.processes: list[Process] = []
        self.people: list[Worker] = []
        self.late: list[Callable[[], object]] = []
        self.seen_changes = self.seen_heads = 0
        self.boots = 0
        self.restored: dict[tuple[str, bool], dict[str, bytes]] = {}

    # --------------------------------------------------------------------------------------------- what may happen

    def live(self) -> list[Process]:
        return [process for process in self.processes if process.worker.call is not None]

    def idle_disks(self) -> list[Path]:
        busy = {process.disk for process in self.live()}
        return sorted({process.disk for process in self.processes} - busy)

    def ended_sessions(self) -> list[int]:
        idle = self.idle_disks()
        return sorted({process.token.session for process in self.processes if process.token and process.disk in idle})

    def start(self, disk: Path, policy: Preservation = POLICIES[0]) -> Process:
        process = Process(self.objects, disk, sum(other.disk == disk for other in self.processes), policy)
        self.processes.append(process)
        return process

    @precondition(lambda self: len(self.live()) < 3 and self.boots < 8)
    @rule(policy=st.sampled_from(POLICIES))
    def a_machine_boots(self, policy: Preservation) -> None:
        self.boots += 1
        self.start(self.folder / f"i-{self.boots}", policy)

    @precondition(lambda self: self.idle_disks() and len(self.live()) < 3)
    @rule(which=st.integers(0, 7))
    def a_machine_starts_its_trainer_again(self, which: int) -> None:
        disks = self.idle_disks()
        self.start(disks[which % len(disks)])

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 2), verbs=st.integers(1, 25))
    def it_goes_on(self, which: int, verbs: int) -> None:
        process = self.live()[which % len(self.live())]
        for _ in range(verbs):
            if process.worker.call is None:
                break
            process.worker.step()
            self.whole()

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 2), fault=st.sampled_from(FAULTS))
    def a_fault(self, which: int, fault: str) -> None:
        late = self.live()[which % len(self.live())].worker.step(fault)
        if late is not None:
            self.late.append(late)

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 2), kind=st.sampled_from(KINDS), fault=st.sampled_from(("", "", *FAULTS)))
    def it_stands_at(self, which: int, kind: str, fault: str) -> None:
        """Goes on until it stands at a write, list or delete of that kind: there it stays for now, or fails."""
        process = self.live()[which % len(self.live())]
        for _ in range(40):
            call = process.worker.call
            if call is None:
                return
            if call.verb == kind or (call.verb in WRITES and call.key.removesuffix(".json").endswith(kind)):
                late = process.worker.step(fault) if fault else None
                if late is not None:
                    self.late.append(late)
                return
            process.worker.step()
            self.whole()

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 2))
    def a_notice(self, which: int) -> None:
        """From the next commit on there is no time to wait for a store that does not answer."""
        self.live()[which % len(self.live())].hurried = True

    @precondition(lambda self: self.late)
    @rule(which=st.integers(0, 9))
    def a_late_request_arrives(self, which: int) -> None:
        self.late.pop(which % len(self.late))()

    @precondition(lambda self: self.boots and not self.people)
    @rule()
    def somebody_reopens_the_run(self) -> None:
        self.people.append(Worker(self.objects, f"person {len(self.objects.heads)}", reopen))

    @precondition(lambda self: self.ended_sessions() and not self.people)
    @rule(which=st.integers(0, 7))
    def finish_finds_a_trainer_ended_for_good(self, which: int) -> None:
        sessions = self.ended_sessions()

        def program(store: Any) -> Head:
            return conclude(store, "failed", "no more", session=sessions[which % len(sessions)], owner="finish")

        self.people.append(Worker(self.objects, f"finish {len(self.objects.heads)}", program))

    @precondition(lambda self: len(self.preserved(rows=True)) > 1 and not self.people)
    @rule(which=st.integers(0, 3))
    def somebody_rolls_back(self, which: int) -> None:
        earlier = self.preserved(rows=True)[1:]
        to = earlier[which % len(earlier)]

        def program(store: Any) -> object:
            stores[store.name] = store
            return rollback.rollback(store.name, "a-run", to)

        self.people.append(Worker(self.objects, f"rollback {len(self.objects.heads)}", program))

    @precondition(lambda self: self.preserved() and not self.people)
    @rule(which=st.integers(0, 3))
    def somebody_forks(self, which: int) -> None:
        at = self.preserved()[which % len(self.preserved())]

        def program(store: Any) -> object:
            read = read_head(store)
            assert read is not None and read[0].manifest is not None
            manifest, target = find(store, read[0].manifest, at), Objects()
            reference = copy(store, manifest, target, token=Token(0, 0), parts={}, facts={})
            found(target, reference, at, owner="fork", parent=store.url)
            check_snapshot(restore(target, read_manifest(target, reference)), at, rows=not manifest.lacks_rows())
            return None

        self.people.append(Worker(self.objects, f"fork {len(self.objects.heads)}", program))

    @precondition(lambda self: self.people)
    @rule(verbs=st.integers(1, 12), fault=st.sampled_from(["", "", "", *FAULTS]))
    def somebody_goes_on(self, verbs: int, fault: str) -> None:
        person = self.people[0]
        for turn in range(verbs):
            if person.call is not None:
                late = person.step(fault if turn == verbs - 1 else "")
                if late is not None:
                    self.late.append(late)
                self.whole()

    def check_person(self, person: Worker) -> None:
        """A person may lose against a worker, and against time; what was to be read may be gone because of that."""
        ended = person.ended
        if isinstance(ended, CorruptCheckpoint | InputError):
            assert len(self.objects.heads) > int(person.name.split()[1]), ended
        else:
            assert isinstance(ended, Head | None | Fenced | Died | StoreUnavailable), repr(ended)

    def preserved(self, *, rows: bool = False) -> list[int]:
        """Timesteps of the checkpoints that there are, newest first.

        :param rows: only of those that have theirs
        """
        if not self.objects.heads or self.objects.heads[-1].manifest is None:
            return []
        newest = read_manifest(self.objects, self.objects.heads[-1].manifest)
        return [newest.timesteps, *(kept.timesteps for kept in newest.kept if kept.rows or not rows)]

    # --------------------------------------------------------------------------------------------- what always holds

    @invariant()
    def whole(self) -> None:
        heads = self.objects.heads
        while self.people and self.people[0].call is None:
            self.check_person(self.people.pop())
        for process in self.processes:
            if process.worker.call is None and process.worker.ended is not None:
                process.check_end(heads)
        if self.objects.changes == self.seen_changes:
            return
        self.seen_changes = self.objects.changes
        numbers: dict[Path, int] = {}
        for process in self.processes:
            if process.token is not None:
                kept = numbers.setdefault(process.disk, process.token.session)
                assert kept == process.token.session, "a machine began anew, and could fence its successor"
        assert len({*numbers.values()}) == len(numbers), "two machines have one number"
        check_history(heads, self.seen_heads)
        self.seen_heads = len(heads)
        stood = [head.commit for head in heads]
        for process in self.processes:
            for head in process.committed:
                assert stood.count(head.commit) == 1, f"{process.worker.name} won a swap that never stood"
        self.needed()

    def needed(self) -> set[str]:
        """Keys that the head needs, after every checkpoint that it preserves was restored."""
        read = read_head(self.objects)
        if read is None or read[0].manifest is None:
            return set()
        newest = read_manifest(self.objects, read[0].manifest)
        assert newest.timesteps == read[0].timesteps
        assert len({kept.timesteps for kept in newest.kept} - {newest.timesteps}) == len(newest.kept) <= TOTAL // 30 + 3
        keys: set[str] = set()
        for reference, rows in ((read[0].manifest, True), *((kept.manifest, kept.rows) for kept in newest.kept)):
            bodies = self.restored.get((reference.key, rows))
            if bodies is None or any(self.objects.bodies.get(key) != body for key, body in bodies.items()):
                manifest = read_manifest(self.objects, reference)
                found = restore(self.objects, manifest if rows else manifest.without_rows())
                check_snapshot(found, manifest.timesteps, rows=rows)
                bodies = {key: self.objects.bodies[key] for key in (reference.key, *manifest.keys(rows=rows))}
                self.restored[reference.key, rows] = bodies
            keys |= bodies.keys()
        return keys

    # ----------------------------------------------------------------------------------------- when the faults are over

    def teardown(self) -> None:
        try:
            self.quiescence()
        finally:
            for worker in (*self.people, *(process.worker for process in self.processes)):
                worker.kill()
            shutil.rmtree(self.folder)

    def quiescence(self) -> None:
        while self.late:
            self.late.pop()()
            self.whole()
        for person in list(self.people):
            while person.call is not None:
                person.step()
        self.whole()
        # The newest worker ends the run, whatever the others do; one with a larger budget after it leaves nothing over.
        for name, total in (("i-newest", TOTAL), ("i-alone", TOTAL + 2 * EVERY)):
            reopen(self.objects)
            self.start(self.folder / name).total = total
            for process in itertools.islice(itertools.cycle(self.live()), 3000):
                if process.worker.call is not None:
                    process.worker.step()
                    self.whole()
            assert not self.live()
            newest = max(self.processes, key=lambda process: process.token or (0, 0))  # the last to have a number
            assert newest.worker.ended == "completed", newest.worker.ended
            head = self.objects.heads[-1]
            assert (head.timesteps, head.outcome) == (total, "completed")
        stored = {key for key in self.objects.bodies if key.startswith((layout.CHECKPOINTS, layout.REPLAY))}
        assert self.needed() == stored, "objects that nothing refers to are left over"


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(deadline=None, max_examples=150, stateful_step_count=40, print_blob=True)


# ------------------------------------------------------------------------------------------- the real thing, in a race


def race(environment: dict[str, str], root: str, disk: Path, total: int, reports: Path) -> None:
    """A session as above, in a process of its own on a real store; one line in ``reports`` for each commit it made."""
    os.environ.update(environment)
    store = open_store(layout.run_url(root, "a-run"))
    session = begin_session(store, disk, instance_id=disk.name, boot_id="boot", details={}, persist=True)
    lease = Lease.take(store, session.token, disk.name)
    manifest = read_manifest(store, lease.head.manifest) if lease.head.manifest else None
    committer = Committer(store, lease, manifest, policy=Preservation(last=2))
    if manifest is not None:
        check_snapshot(restore(store, manifest), lease.head.timesteps)
    for timesteps in range(lease.head.timesteps + EVERY, total + 1, EVERY):
        committer.submit(snapshot(timesteps))
        committer.wait()
        with reports.open("a") as file:
            file.write(f"{lease.head.commit} {timesteps}\n")


def test_processes_that_race_and_are_killed(warm: Any, bucket: str, tmp_path: Path) -> None:
    """Up to four processes at a time on one bucket, killed and started again at random; the bucket keeps every version
    of the head.
    """
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    root, reports, total = f"s3://{bucket}/prefix", tmp_path / "reports", 200
    reports.touch()
    store = open_store(layout.run_url(root, "a-run"))
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    running: list[tuple[Path, Any]] = []
    disks: list[Path] = []

    def start(disk: Path) -> Any:
        process = warm.Process(target=race, args=(environment, root, disk, total, reports))
        process.start()
        return process

    def timesteps() -> int:
        read = read_head(store)
        return read[0].timesteps if read else 0

    def restored() -> None:
        """What a reader finds is whole, or gone because the head has moved on."""
        before = read_head(store)
        if before is not None and before[0].manifest is not None:
            try:
                check_snapshot(restore(store, read_manifest(store, before[0].manifest)), before[0].timesteps)
            except CorruptCheckpoint:
                after = read_head(store)
                assert after is not None and after[0].manifest != before[0].manifest

    deadline = time.monotonic() + 60
    try:
        while timesteps() < total and time.monotonic() < deadline:
            running = [(disk, process) for disk, process in running if process.exitcode is None]
            if len(running) < 4 and chance.random() < 0.6:
                idle = sorted(set(disks) - {disk for disk, _ in running})
                disk = chance.choice(idle) if idle and chance.random() < 0.4 else tmp_path / f"i-{len(disks)}"
                disks = sorted({*disks, disk})
                running.append((disk, start(disk)))
            elif running and chance.random() < 0.25:
                chance.choice(running)[1].kill()
            restored()
            time.sleep(chance.uniform(0, 0.2))
    finally:
        for _, process in running:
            process.join(60)
    last = start(tmp_path / "i-last")
    last.join(60)
    assert last.exitcode == 0 and timesteps() == total

    versions = client.list_object_versions(Bucket=bucket, Prefix="prefix/runs/a-run/head.json")["Versions"]
    heads = [
        parse_head(client.get_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])["Body"].read())
        for version in versions
    ]
    assert len({head.session for head in heads}) > 2, "this was no race"
    check_history(sorted(heads, key=lambda head: head.seq))
    stood = [head.commit for head in heads]
    for line in reports.read_text().splitlines():
        assert stood.count(line.split()[0]) == 1, f"{line} was reported, and never stood"
    restored()
