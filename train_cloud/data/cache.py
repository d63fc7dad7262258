"""Samples on the local disk: a file of slots per data set, shared by processes without locks, bounded by construction.

A data set's folder holds ``index``, ``slots`` (samples one after the other) and ``sums`` (8 bytes per slot). Which
samples have a slot is fixed: a prefix of a pseudo-random order, as long as the bound allows; none is ever evicted for
another one of the same data set. With a new order in each epoch that is the best there is: of a cache that holds half
of the data, "least recently used" hits 15 % and a fixed half hits 50 %.

Writing is data first, then its checksum; reading is checksum, then data, then comparison. So two who write one slot
write the same, a torn slot is a miss, and so is one whose data a power cut has lost. The kernel's page cache is the
memory between processes.

Between data sets the least recently used one goes, unless it is in use. Only this, which happens when a data set is
opened, is done under a lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from awscrt.checksums import crc64nvme
from filelock import FileLock, Timeout

from train_cloud.config.code import mark_as_cache
from train_cloud.data import index as indexes
from train_cloud.data.index import Index
from train_cloud.data.order import scattered
from train_cloud.whole_file import write_whole

log = logging.getLogger(__name__)

Body = bytes | bytearray | memoryview
_FORM = "1"
"""Of the layout; part of a folder's name."""
_SLOTS, _SUMS, _INDEX, _CLAIM, _USERS = "slots", "sums", "index", "claim", "users"
_LOCK_WAIT_S = 60.0
_KEPT_FREE = 64 << 20
"""Bytes of the disk that are left to others, whatever bound is asked for."""


class Slot(NamedTuple):
    """Where a sample lies in the file of slots, and what its checksum is."""

    offset: int
    size: int
    crc: int


def checksum(body: Body) -> int:
    """Of a slot; never 0, which says that there is nothing."""
    return crc64nvme(body) or 1


def read_slot(descriptor: int, slot: Slot) -> bytes | None:
    """What lies there, None where it is not what its checksum says."""
    body = os.pread(descriptor, slot.size, slot.offset)
    return body if len(body) == slot.size and checksum(body) == slot.crc else None


class Slots:
    """The slots of one data set.

    :param folder: of the data set, None: nothing is kept
    :param layout: see :func:`layout`
    :param count: samples of it that have a slot
    :ivar admitted: how many samples have a slot
    """

    def __init__(
        self,
        folder: Path | None,
        index: Index,
        layout: tuple[indexes.Numbers, indexes.Numbers] = (np.empty(0, np.int64), np.empty(0, np.int64)),
        count: int = 0,
    ) -> None:
        order, self._ends = layout
        self.admitted = count
        self._sizes = index.sizes
        self._rank = np.full(index.count, -1, np.int64)
        self._rank[order[:count]] = np.arange(count)
        self._sums: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self.path = folder / _SLOTS if folder is not None else None
        self.descriptor = -1
        self._full = False
        if self.admitted and folder is not None:
            self._open(folder)

    def _open(self, folder: Path) -> None:
        size = 8 * self.admitted
        flags = os.O_RDWR | os.O_CREAT
        table = os.open(folder / _SUMS, flags, 0o644)
        try:
            if os.fstat(table).st_size < size:
                # Really there: a page of a mapped file that the disk has no room for ends the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(table, 0, size)
                else:
                    os.pwrite(table, bytes(size - os.fstat(table).st_size), os.fstat(table).st_size)
            self._sums = np.frombuffer(mmap.mmap(table, size), np.uint64)
        finally:
            os.close(table)
        self.descriptor = os.open(folder / _SLOTS, flags, 0o644)

    def present(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the samples can be read, as far as one can tell without reading."""
        ranks = self._rank[samples]
        found = np.zeros(len(samples), bool)
        inside = ranks >= 0
        found[inside] = self._sums[ranks[inside]] != 0
        return found

    def slot(self, sample: int) -> Slot | None:
        """None where the sample has no slot, or nothing is in it."""
        rank = int(self._rank[sample])
        if rank < 0 or not (crc := int(self._sums[rank])):
            return None
        return Slot(self._offset(rank, sample), int(self._sizes[sample]), crc)

    def slots(self, samples: npt.NDArray[np.int64]) -> list[Slot | None]:
        """:meth:`slot` of each."""
        ranks = self._rank[samples]
        inside = ranks >= 0
        crcs = np.zeros(len(samples), np.uint64)
        crcs[inside] = self._sums[ranks[inside]]
        ends = np.zeros(len(samples), np.int64)
        ends[inside] = self._ends[ranks[inside]]
        sizes = self._sizes[samples]
        found = zip((ends - sizes).tolist(), sizes.tolist(), crcs.tolist(), strict=True)
        return [Slot(offset, size, crc) if crc else None for offset, size, crc in found]

    def has_place(self, sample: int) -> bool:
        return bool(self._rank[sample] >= 0) and not self._full

    def get(self, sample: int) -> bytes | None:
        """None where it is not there, or not whole."""
        slot = self.slot(sample)
        return None if slot is None else read_slot(self.descriptor, slot)

    def put(self, sample: int, body: Body) -> Slot | None:
        """Keep a sample where it has a place; None where it has none."""
        if not self.has_place(sample):
            return None
        rank = int(self._rank[sample])
        slot = Slot(self._offset(rank, sample), len(body), checksum(body))
        if not self._write(body, slot.offset):
            return None
        self._sums[rank] = slot.crc
        return slot

    def put_shard(self, samples: npt.NDArray[np.int64], body: Body, sums: npt.NDArray[np.uint64]) -> bool:
        """Keep the samples of a whole shard, whose bytes are those of their slots.

        :param sums: the checksum of each, ``(len(samples),)``
        """
        if not len(samples) or not self.has_place(int(samples[0])):
            return False
        rank = int(self._rank[samples[0]])
        if not self._write(body, self._offset(rank, int(samples[0]))):
            return False
        self._sums[rank : rank + len(samples)] = np.maximum(sums, 1)
        return True

    def forget(self, sample: int) -> None:
        """What lies there is not what it should be."""
        rank = int(self._rank[sample])
        if rank >= 0:
            self._sums[rank] = 0

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _offset(self, rank: int, sample: int) -> int:
        return int(self._ends[rank]) - int(self._sizes[sample])

    def _write(self, body: Body, offset: int) -> bool:
        view = memoryview(body)
        try:
            while view:
                written = os.pwrite(self.descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            if not self._full:
                log.warning("the cache of the data, %s, cannot be written: going on without: %s", self.path, error)
            self._full = True
            return False
        return True


def layout(index: Index) -> tuple[indexes.Numbers, indexes.Numbers]:
    """Samples in the order of their slots, and where each slot ends, in bytes. Shards stay whole."""
    if index.shards:
        shards = scattered(len(index.shards))
        order = np.concatenate([index.samples_of(int(shard)) for shard in shards])
    else:
        order = scattered(index.count)
    return order, np.cumsum(index.sizes[order])


def admitted(index: Index, ends: indexes.Numbers, limit: int) -> int:
    """How many samples have a slot, so that slots and checksums take at most ``limit`` bytes."""
    if limit <= 0:
        return 0
    count = int(np.searchsorted(ends + 8 * np.arange(1, len(ends) + 1), limit, side="right"))
    if index.shards and count < index.count:
        order = [int(shard) for shard in scattered(len(index.shards))]
        bounds = np.cumsum([len(index.samples_of(shard)) for shard in order])
        whole = bounds[bounds <= count]
        count = int(whole[-1]) if len(whole) else 0
    return count


class Cache:
    """A folder with the slots of data sets, of ``limit`` bytes over all of them.

    :param root: None: nothing is kept
    """

    def __init__(self, root: Path | None, limit: int) -> None:
        if root is not None and not hasattr(os, "pread"):
            log.warning("no cache of the data on this system: it has no reads at a place in a file")
            root = None
        self.root = root
        self.limit = limit
        self._lock = FileLock(root / "lock", timeout=_LOCK_WAIT_S) if root is not None else None
        self._using: list[FileLock] = []

    def folder(self, identity: str) -> Path | None:
        return None if self.root is None else self.root / f"{identity}-{_FORM}"

    def index(self, identity: str) -> Index | None:
        """The index of that identity, if it is here."""
        folder = self.folder(identity)
        found = indexes.load(folder / _INDEX) if folder is not None else None
        return found if found is not None and found.identity == identity else None

    def open(self, index: Index, *, slots: bool = True) -> Slots:
        """The slots of a data set, which is in use from now on.

        :param slots: False: only the index is kept
        """
        folder = self.folder(index.identity)
        if folder is None or self._lock is None or self.root is None:
            return Slots(None, index)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            mark_as_cache(self.root)
            with self._lock:
                return self._claim(folder, index, slots)
        except (OSError, Timeout) as error:
            log.warning("the cache of the data, %s, cannot be used: going on without: %s", self.root, error)
            return Slots(None, index)

    def _claim(self, folder: Path, index: Index, slots: bool) -> Slots:
        whole = index.nbytes + (index.total + 8 * index.count if slots else 0)
        others = self._make_room(folder, min(whole, self.limit))
        mine = min(whole, self.limit - others)
        slots_limit = mine - index.nbytes
        if slots_limit < 0 or (slots and not slots_limit):
            if whole > self.limit - others:
                log.warning("the cache of the data, %s, has no room for this data set", self.root)
            return Slots(None, index)
        folder.mkdir(exist_ok=True)
        alone = not _in_use(folder)
        places = layout(index) if slots else None
        count = admitted(index, places[1], slots_limit) if places else 0
        if alone and places:
            _cut(folder / _SLOTS, int(places[1][count - 1]) if count else 0)
            _cut(folder / _SUMS, 8 * count)
        before = _claimed(folder)
        write_whole(folder / _CLAIM, json.dumps({"bytes": mine if alone else max(mine, before)}).encode())
        if indexes.load(folder / _INDEX) is None:
            index.save(folder / _INDEX)
        users = folder / _USERS
        users.mkdir(exist_ok=True)
        lock = FileLock(users / uuid.uuid4().hex, timeout=0)
        lock.acquire()
        self._using.append(lock)
        os.utime(folder)
        return Slots(folder, index, places, count) if places else Slots(None, index)

    def _make_room(self, folder: Path, wanted: int) -> int:
        """Remove data sets that are not in use, the least recently used first, until there is room.

        :return: bytes that others keep
        """
        kept = {other: _claimed(other) for other in self._data_sets() if other != folder}
        for other in sorted(kept, key=lambda path: path.stat().st_mtime):
            if sum(kept.values()) + wanted <= self.limit:
                break
            if not _in_use(other):
                log.info("removing the cached data set %s, the least recently used one", other.name[:12])
                shutil.rmtree(other, ignore_errors=True)
                kept.pop(other)
        return sum(kept.values())

    def _data_sets(self) -> Iterator[Path]:
        assert self.root is not None
        for path in self.root.iterdir():
            if path.is_dir() and path.name.rpartition("-")[2].isdigit():
                yield path

    def close(self) -> None:
        for lock in self._using:
            lock.release()
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
        self._using.clear()


def free_bytes(folder: Path) -> int:
    """That the disk has where ``folder`` is or will be, and can give away."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return max(0, shutil.disk_usage(there).free - _KEPT_FREE)


def used_bytes(folder: Path) -> int:
    """Bytes that the files below a folder take on the disk."""
    if not folder.is_dir():
        return 0
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _claimed(folder: Path) -> int:
    try:
        return int(json.loads((folder / _CLAIM).read_bytes())["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) if folder.is_dir() else 0


def _in_use(folder: Path) -> bool:
    """Whether any process holds one of its locks; what dead ones have left is removed."""
    users = folder / _USERS
    for path in users.iterdir() if users.is_dir() else ():
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        lock.release()
        with contextlib.suppress(OSError):
            path.unlink()
    return False


def _cut(path: Path, size: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > size:
            os.truncate(path, size)


def remember(root: Path | None, name: str, content: dict[str, object]) -> None:
    """A few lines about a URL, beside the data sets."""
    if root is not None:
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            write_whole(root / f"{name}.json", json.dumps({**content, "at": time.time()}).encode())


def remembered(root: Path | None, name: str) -> dict[str, object]:
    try:
        found = json.loads((root / f"{name}.json").read_bytes()) if root is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
