"""The background commit: parts and segments, then the manifest, then the head; garbage goes only after that.

States of one commit, and what a kill at that instant leaves:

1. writing parts and segments — objects that nothing refers to; the head names the checkpoint before
2. writing the manifest, beside them where somebody waits — the same: nobody knows of it
3. swapping the head — either the checkpoint before or this one, each whole
4. deleting what expired — this checkpoint; some objects that nothing refers to, swept by the next session
5. compacting segments for the next commit — this checkpoint; at most one object that nothing refers to
"""

from __future__ import annotations

import _thread
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from train_cloud.checkpoint import compaction
from train_cloud.checkpoint.format import crc64nvme, drop_successors, join, pack, unpack
from train_cloud.checkpoint.manifest import (
    Kept,
    Manifest,
    Segment,
    Stream,
    encoded,
    read_manifest,
    read_verified,
    refer,
)
from train_cloud.checkpoint.preserve import preserved
from train_cloud.config import Preservation
from train_cloud.errors import CorruptCheckpoint, StoreForbidden, StoreUnavailable, TrainCloudError
from train_cloud.retry import Retry
from train_cloud.run import layout
from train_cloud.run.head import Head, Lease, Outcome, Reference, Token
from train_cloud.run.session import now
from train_cloud.snapshot import Array, Part, Rows, Snapshot
from train_cloud.store import ObjectStore

log = logging.getLogger(__name__)

_PARALLEL = 8
#: More segments than this, about a gigabyte, are written in parallel although nobody waits: it costs the training four
#: times as much (docs/checkpoint-cost.md), but what is not committed is at risk.
_FEW = 64
#: Of rows in memory: about half of it is stored, which then is one PUT in one part.
_SEGMENT_BYTES = 31 << 20
_TOKEN_IN_KEY = re.compile(r"-(\d{6})\.(\d{4})-\d{6}(?:/|$)")


@dataclass(frozen=True)
class Committed:
    """Figures of one commit."""

    head: Head
    seconds: float
    sent_bytes: int


@dataclass(frozen=True)
class References:
    """What was written of a checkpoint.

    :ivar folder: that its parts lie in, and its manifest will
    :ivar parts: by name
    :ivar segments: new ones, by stream
    """

    folder: str
    parts: dict[str, Reference]
    segments: dict[str, list[Segment]]


class Committer:
    """Writes snapshots as checkpoints in a thread of its own, at most one at a time.

    :param lease: the right to swap the head
    :param manifest: the run's newest checkpoint, which the first commit builds on
    :param policy: which of the earlier checkpoints are preserved
    :param hold: timesteps of checkpoints that stay besides, as long as they are named
    :param extra_parts: called in the thread at a commit's beginning: parts that come from beside the training
    :param extra_streams: the same, after it: rows of other processes of the training
    :param facts: the same: the checkpoint's facts, where they are more than the snapshot's own
    :param before_head: called in the thread when all is written, right before the head is swapped
    :param on_commit: called in the thread after the swap
    :param urgent: whether somebody waits for the store: all is written at once then, and nothing is compacted
    :param on_delay: called in the thread with the reason when the store does not take a commit, which is tried again,
        and with None once it has
    """

    def __init__(
        self,
        store: ObjectStore,
        lease: Lease,
        manifest: Manifest | None,
        *,
        policy: Preservation | None = None,
        hold: Callable[[], Collection[int]] = tuple,
        extra_parts: Callable[[], Mapping[str, Part]] = dict,
        extra_streams: Callable[[], Mapping[str, Rows]] = dict,
        facts: Callable[[Snapshot], Mapping[str, Any]] = lambda snapshot: snapshot.facts,
        before_head: Callable[[], None] = lambda: None,
        on_commit: Callable[[Committed], None] = lambda committed: None,
        urgent: Callable[[], bool] = lambda: False,
        on_delay: Callable[[str | None], None] = lambda because: None,
    ) -> None:
        self._on_delay = on_delay
        self._store = store
        self._lease = lease
        self._newest = manifest
        self._keys = frozenset(manifest.keys() if manifest else ())
        self._policy = policy or Preservation()
        self._hold = hold
        self._extra_parts, self._extra_streams = extra_parts, extra_streams
        self._facts = facts
        self._before_head = before_head
        self._on_commit = on_commit
        self._urgent = urgent
        self._over = threading.Event()
        self._over.set()
        self._error: BaseException | None = None
        self._deadline = float("inf")
        self._needs: dict[Kept, frozenset[str]] = {}
        self._encoded: dict[str, bytes] = {}
        self._unreadable: set[Kept] = set()
        self._contents = _contents(manifest) if manifest is not None else {}
        self._written: set[str] = set()
        # Where no head named a checkpoint, nothing says what is garbage: what lies there may be all that is left of a
        # run whose head was deleted.
        self._swept = lease.before is None or lease.before.manifest is None
        self._merged: dict[str, tuple[tuple[Segment, ...], Segment]] = {}
        self.merged_bytes = 0
        """Sent so far to make few segments of many; no part of any commit's ``sent_bytes``."""

    @property
    def busy(self) -> bool:
        """Whether a commit is in flight.

        :raises Fenced: and whatever else the last commit ended with
        """
        over = self._over.is_set()
        self._raise()  # afterwards: an error is there before its commit is over
        return not over

    def submit(self, snapshot: Snapshot, *, outcome: Outcome | None = None, reason: str | None = None) -> None:
        """Start to commit ``snapshot``; its arrays must not change until the commit is over.

        :param outcome: goes into the head in the same swap
        """
        assert not self.busy, "a commit is in flight: wait for it first"
        self._over.clear()
        # Thread.start() would wait until the new thread has had the interpreter lock, and so for what it does first.
        _thread.start_new_thread(self._run, (snapshot, outcome, reason))

    def wait(self, deadline: float = float("inf")) -> None:
        """Wait until the commit in flight, if any, is over.

        :param deadline: on ``time.monotonic()``; from then on an unreachable store is not tried again. A write that is
            under way goes on: there is nothing better to do with the time that is left.
        :raises StoreUnavailable: the store could not be reached until the deadline; the former head stands
        """
        self._deadline = deadline
        self._over.wait()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, snapshot: Snapshot, outcome: Outcome | None, reason: str | None) -> None:
        began, created, held = time.monotonic(), now(), frozenset(self._hold())
        retry = Retry()
        try:
            facts = self._facts(snapshot)
            parts = {**snapshot.parts, **self._extra_parts()}
            snapshot = replace(
                snapshot, parts=parts, streams={**snapshot.streams, **self._extra_streams()}, facts=facts
            )
            while True:
                try:
                    sent = self._commit(snapshot, created, held, outcome, reason)
                    break
                except StoreUnavailable as error:
                    # An outage delays the commit and nothing else: every write below may be done again, with the same
                    # bytes, because a swap whose reply was lost may have made them the run's checkpoint.
                    if not retry.has_time(self._deadline):
                        raise
                    log.warning(
                        "commit at %d delayed, next try in %.0f s: %s", snapshot.timesteps, retry.pause_s, error
                    )
                    self._on_delay(str(error))
                    retry.pause()
            self._on_delay(None)
            self._on_commit(Committed(self._lease.head, time.monotonic() - began, sent))
            try:
                self._collect()
                if outcome is None:
                    self._compact()
            except (StoreUnavailable, StoreForbidden) as error:
                log.warning("superseded objects stay until the next commit: %s", error)
        except (TrainCloudError, OSError) as error:
            self._error = error
        except BaseException as error:
            # The thread's caller is the training thread: it must learn of a defect here, not train on unsaved.
            self._error = error
            raise
        finally:
            self._over.set()

    def _commit(
        self, snapshot: Snapshot, created: str, held: frozenset[int], outcome: Outcome | None, reason: str | None
    ) -> int:
        before = self._newest
        with _Writes(self._store, self._urgent) as writes:
            references = self._write(snapshot, writes)
            earlier = () if before is None else self._earlier(before)
            manifest = self._manifest(snapshot, references, created)
            # Of a pretraining there is one after the other at timesteps 0: the newest stands for all.
            others = [each for each in earlier if each.timesteps != manifest.timesteps]
            kept = preserved(self._policy, manifest.episode_return, others, held, lowest=manifest.lower_is_better)
            manifest = manifest.model_copy(update={"kept": kept})
            reference = writes.put(references.folder + "manifest.json", memoryview(encoded(manifest, self._encoded)))
        self._before_head()
        self._lease.commit(reference, snapshot.timesteps, outcome=outcome, reason=reason)
        if before is not None:
            self._needs[earlier[0]] = self._keys
        self._newest, self._keys = manifest, frozenset(manifest.keys())
        self._contents |= _contents(manifest)
        self._merged.clear()
        self._written |= self._keys | {reference.key}
        return writes.bytes

    def _write(self, snapshot: Snapshot, writes: _Writes) -> References:
        """Begin to write a snapshot's parts and rows; nothing refers to them until a manifest does, which the head
        names. What the checkpoint before has, and is the same, is referred to.
        """
        token, seq, before = self._lease.head.token, self._lease.head.seq + 1, self._newest
        folder = layout.checkpoint_prefix(snapshot.timesteps, token, seq)
        segments = [
            (name, first, columns, rows.successors)
            for name, rows in snapshot.streams.items()
            for first, columns in _split(rows)
        ]
        if len(segments) > _FEW:
            writes.in_parallel()
        parts = {
            name: _part(writes, folder + name, part, before.parts.get(name) if before else None)
            for name, part in snapshot.parts.items()
        }
        parts |= self._contents_of(snapshot, writes, folder)
        new: dict[str, list[Segment]] = {name: [] for name in snapshot.streams}
        for name, first, columns, successors in segments:
            last = first + len(next(iter(columns.values())))
            body = pack(Part(drop_successors(columns, successors)))
            written = writes.put(layout.segment_key(name, first, last, token, seq), body)
            new[name].append(Segment(first=first, last=last, **written.model_dump()))
        return References(folder, parts, new)

    def _manifest(self, snapshot: Snapshot, references: References, created: str) -> Manifest:
        token = self._lease.head.token
        return Manifest(
            timesteps=snapshot.timesteps,
            session=token.session,
            restart=token.restart,
            created=created,
            parts=references.parts,
            streams={
                name: _stream(rows, self._before(name), references.segments[name])
                for name, rows in snapshot.streams.items()
            },
            kept=(),
            facts=dict(snapshot.facts),
        )

    def _contents_of(self, snapshot: Snapshot, writes: _Writes, folder: str) -> dict[str, Reference]:
        """Large arrays of the snapshot's parts, as parts of their own: each content once, and only where no preserved
        checkpoint has it.
        """
        arrays = {
            layout.CONTENT + content: part.arrays[name]
            for part in snapshot.parts.values()
            for name, content in part.contents.items()
        }
        return {
            name: self._contents.get(name) or writes.put(folder + name, array.reshape(-1).view(np.uint8).data)
            for name, array in arrays.items()
        }

    def _reference(self) -> Reference:
        assert self._lease.head.manifest is not None
        return self._lease.head.manifest

    def _earlier(self, before: Manifest) -> tuple[Kept, ...]:
        """The checkpoints so far, newest first."""
        newest = Kept(timesteps=before.timesteps, manifest=self._reference(), episode_return=before.episode_return)
        return (newest, *(kept for kept in before.kept if kept not in self._unreadable))

    def _before(self, stream: str) -> tuple[Segment, ...]:
        """A stream's segments so far, the merged one in the place of those that it was made from."""
        known = self._newest.streams.get(stream) if self._newest else None
        segments = known.segments if known else ()
        if stream not in self._merged:
            return segments
        replaced, merged = self._merged[stream]
        at = segments.index(replaced[0])
        return (*segments[:at], merged, *segments[at + len(replaced) :])

    def _collect(self) -> None:
        """Delete what no preserved checkpoint needs: by explicit key, after the head that no longer needs it stands.

        Once in a session that went on from a checkpoint, that is everything which some other worker, dead or fenced by
        now, has left.
        """
        assert self._newest is not None
        for kept in self._newest.kept:
            if kept in self._needs:
                continue
            if self._is_urgent():
                return  # there may be hundreds
            try:
                earlier = read_manifest(self._store, kept.manifest)
                self._needs[kept] = frozenset(earlier.keys(rows=kept.rows))
                self._contents |= _contents(earlier)
            except CorruptCheckpoint as error:
                log.error("the checkpoint at %d is lost, and named no longer: %s", kept.timesteps, error)
                self._unreadable.add(kept)
        if not self._unreadable.isdisjoint(self._newest.kept):
            return  # what it needs may be needed by no other, and the head names it until the next commit
        self._needs = {kept: self._needs[kept] for kept in self._newest.kept}
        needed = {*self._keys, self._reference().key}
        for kept, keys in self._needs.items():
            needed |= keys
            needed.add(kept.manifest.key)
        self._contents = {name: part for name, part in self._contents.items() if part.key in needed}
        if self._swept:
            garbage = self._written - needed
        else:
            token = self._lease.head.token
            garbage = {
                info.key
                for prefix in (layout.CHECKPOINTS, layout.REPLAY)
                for info in self._store.list(prefix)
                if info.key not in needed and _token_of(info.key) <= token
            }
        if garbage:
            self._store.delete(sorted(garbage))
        self._written, self._swept = needed, True

    def _is_urgent(self) -> bool:
        return self._urgent() or self._deadline < float("inf")

    def _compact(self) -> None:
        """Send a few small neighbours once more, as one segment; the next commit names it in their place.

        They are read back rather than remembered: GETs cost a thousandth of what they replace, a restarted worker needs
        no other way, and what cannot be read is known while there is something left to save.
        """
        assert self._newest is not None
        for name, stream in self._newest.streams.items():
            segments = compaction.due(stream.segments)
            if not segments:
                continue
            columns = []
            for segment in segments:
                if self._is_urgent():
                    return
                try:
                    columns.append(unpack(read_verified(self._store, segment), segment.key).arrays)
                except CorruptCheckpoint as error:
                    log.error("the checkpoint at %d cannot be restored: %s", self._newest.timesteps, error)
                    return
            first, last, head = segments[0].first, segments[-1].last, self._lease.head
            body = pack(Part(join(columns, stream.successors)))
            key = layout.segment_key(name, first, last, head.token, head.seq)
            self._written.add(key)
            level = segments[0].merged + 1
            written = _Writes(self._store, lambda: False).put(key, body)
            merged = Segment(first=first, last=last, merged=level, **written.model_dump())
            self._merged[name] = (segments, merged)
            self.merged_bytes += merged.size
            return


class _Writes:
    """Writes bodies, all of them by the end of its ``with``; what they will be is known before.

    :param at_once: asked before each, whether they are written in parallel from there on. That costs the training
        milliseconds in which the interpreter lock changes hands, and is for when somebody waits.
    """

    def __init__(self, store: ObjectStore, at_once: Callable[[], bool]) -> None:
        self._store = store
        self._at_once = at_once
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[str]] = deque()
        self.bytes = 0

    def in_parallel(self) -> None:
        """From here on."""
        if self._pool is None and _PARALLEL > 1:
            self._pool = ThreadPoolExecutor(_PARALLEL)

    def put(self, key: str, body: memoryview) -> Reference:
        self.bytes += len(body)
        if self._at_once():
            self.in_parallel()
        if self._pool is None:
            self._store.put(key, body)
        else:
            while len(self._under_way) >= _PARALLEL:  # no more bodies in memory than there are threads
                self._under_way.popleft().result()
            self._under_way.append(self._pool.submit(self._store.put, key, body))
        return refer(self._store, key, body)

    def __enter__(self) -> _Writes:
        return self

    def __exit__(self, kind: object, error: object, where: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self._under_way:
                future.result()


def _part(writes: _Writes, key: str, part: Part, before: Reference | None) -> Reference:
    body = pack(part)
    if before is not None and before.size == len(body) and before.crc64nvme == crc64nvme(body):
        return before  # unchanged since: the lock, the skeleton
    return writes.put(key, body)


def _contents(manifest: Manifest) -> dict[str, Reference]:
    return {name: part for name, part in manifest.parts.items() if name.startswith(layout.CONTENT)}


def _token_of(key: str) -> Token:
    """The fencing token of the worker that wrote ``key``; a key of another form is nobody's garbage."""
    found = _TOKEN_IN_KEY.search(key)
    return Token(int(found[1]), int(found[2])) if found else Token(1 << 62, 0)


def _split(rows: Rows) -> Iterator[tuple[int, Mapping[str, Array]]]:
    """Small chunks, so that they travel in parallel and a restore needs little memory beside the ring."""
    for first, columns in rows.chunks:
        count = len(next(iter(columns.values())))
        if not count:
            continue
        per_row = max(1, sum(column.nbytes for column in columns.values()) // count)
        step = max(1, _SEGMENT_BYTES // per_row)
        for start in range(0, count, step):
            yield first + start, {name: column[start : start + step] for name, column in columns.items()}


def _stream(rows: Rows, before: tuple[Segment, ...], new: list[Segment]) -> Stream:
    """The stream's live segments: those before that still hold a live row, then the new ones, without a gap."""
    oldest = max(0, rows.last - rows.capacity)
    old = [segment for segment in before if segment.last > oldest]
    segments = (*old, *sorted(new, key=lambda segment: segment.first))
    at = segments[0].first if segments else rows.last
    for segment in segments:
        assert segment.first == at, f"rows {at} to {segment.first} are in no segment"
        at = segment.last
    assert at == rows.last and (not segments or segments[0].first <= oldest), "the newest rows are in no segment"
    return Stream(capacity=rows.capacity, last=rows.last, successors=dict(rows.successors), segments=segments)
