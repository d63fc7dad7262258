"""From an order of samples to batches, ahead of whoever takes them.

Threads of the training's process fetch objects (obstore lets go of the interpreter meanwhile) and keep them in the
cache; worker processes decode. A batch that no worker has taken when it is wanted is made by who wants it: so the first
ones come before the workers have started. Nothing here decides which sample comes when.
"""

from __future__ import annotations

import collections
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, overload

import numpy as np

from train_cloud.data.cache import Body, Slot, Slots, read_slot
from train_cloud.data.decoding import Decoder, Made
from train_cloud.data.index import Index, Numbers
from train_cloud.data.source import Source, Stopped
from train_cloud.data.wire import Done, Start, Task
from train_cloud.data.workers import Workers
from train_cloud.errors import DataError

log = logging.getLogger(__name__)

_SHARDS_AT_ONCE = 4
_SHARDS_KEPT = 2
"""Windows of shards in memory: the one that is read, and the next."""
_DEATHS = 5
"""Of workers at one batch, until it is said to be at fault."""
_LOOK_S = 0.2
_END_S = 20.0


class Plan(NamedTuple):
    """Which samples a batch consists of."""

    epoch: int
    number: int
    """within the epoch"""
    samples: Numbers
    window: tuple[int, ...] = ()
    """In a packed data set, of the first batch of a window: shards of the next one."""


class _Batch:
    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.plan = plan
        self.places: list[Slot | Body | None] = [None] * len(plan.samples)
        self.fetching = 0
        self.taken = False
        """By a worker, or by who waits for it."""
        self.made: Made | None = None
        self.error: BaseException | None = None
        self.deaths = 0

    @property
    def whole(self) -> bool:
        return self.fetching == 0 and self.made is None and self.error is None


class _ShardFetch:
    def __init__(self) -> None:
        self.body: Body | None = None
        self.kept = False
        """Its samples lie in the cache."""
        self.waiting: list[tuple[_Batch, list[int]]] = []


class _Keys(Sequence[str]):
    """Of samples, each looked up where somebody asks for it."""

    def __init__(self, index: Index, samples: Sequence[int]) -> None:
        self._index, self._samples = index, samples

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self._index.key(sample) for sample in self._samples[at]]
        return self._index.key(self._samples[at])


class Statistics(NamedTuple):
    """Since the data set was opened."""

    samples: int
    hits: int
    """samples that lay in the cache when they were asked for"""
    requests: int
    """objects fetched"""
    fetched_bytes: int


class Pipeline:
    """
    :param plans: batches in order, without an end
    :param workers: processes; 0: none
    :param ahead: batches that are prepared beside the one that is wanted
    :param connections: objects that are fetched at once
    :param window: of a packed data set: shards whose samples are mixed
    """

    def __init__(
        self,
        index: Index,
        source: Source,
        slots: Slots,
        decoder: Decoder,
        plans: Iterator[Plan],
        *,
        start: Start | None,
        workers: int,
        ahead: int,
        connections: int,
        window: int,
    ) -> None:
        self._index, self._source, self._slots, self._decoder = index, source, slots, decoder
        self._plans = plans
        self._ahead, self._window = ahead, window
        self._changed = threading.Condition()
        self._batches: collections.deque[_Batch] = collections.deque()
        self._by_number: dict[int, _Batch] = {}
        self._planned = 0
        self._shards: collections.OrderedDict[int, _ShardFetch] = collections.OrderedDict()
        self._wanted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._closed = False
        self.samples = self.hits = self.requests = self.fetched_bytes = 0
        threads = min(connections, _SHARDS_AT_ONCE) if index.shards else connections
        self._threads = [
            threading.Thread(target=self._serve, name="train-cloud data fetch", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._workers: Workers | None = None
        if start is not None and workers:
            self._workers = Workers(workers, start, free=self._hand_out, done=self._take, lost=self._lost)

    def next(self, while_waiting: Callable[[float], None]) -> tuple[Plan, Made]:
        """The next batch.

        :param while_waiting: called several times a second, with the seconds so far, where it is not there yet
        """
        self._plan()
        batch = self._batches[0]
        began = time.monotonic()
        with self._changed:
            while not (batch.made or batch.error or (batch.whole and not batch.taken)):
                if not self._changed.wait(_LOOK_S):
                    while_waiting(time.monotonic() - began)
            mine = batch.whole and not batch.taken
            batch.taken = True
        if mine:
            self._make(batch)
        if batch.error is not None:
            raise batch.error
        assert batch.made is not None
        with self._changed:
            self._batches.popleft()
            del self._by_number[batch.number]
        self._plan()
        self._hand_out()
        return batch.plan, batch.made

    def close(self) -> None:
        """End all threads and processes."""
        self._closed = True
        self._source.stopped.set()
        for _ in self._threads:
            self._wanted.put(None)
        if self._workers is not None:
            self._workers.close()
        # One that is left in obstore while the interpreter ends would take the process with it.
        until = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def pids(self) -> list[int]:
        """Of the worker processes."""
        return [] if self._workers is None else self._workers.pids()

    def statistics(self) -> Statistics:
        return Statistics(self.samples, self.hits, self.requests, self.fetched_bytes)

    # --- planning and fetching

    def _plan(self) -> None:
        while len(self._batches) <= self._ahead:
            batch = _Batch(self._planned, next(self._plans))
            self._planned += 1
            samples = batch.plan.samples
            present = self._slots.present(samples)
            self.samples += len(samples)
            self.hits += int(present.sum())
            absent = np.flatnonzero(~present).tolist()
            if len(absent) < len(samples):
                slots = self._slots.slots(samples)
                for position in np.flatnonzero(present).tolist():
                    batch.places[position] = slots[position]
            batch.fetching = len(absent)
            with self._changed:
                self._batches.append(batch)
                self._by_number[batch.number] = batch
            if absent:
                self._fetch(batch, absent)
            for shard in batch.plan.window:
                if shard not in self._shards and not self._slots.present(self._index.samples_of(shard)).all():
                    self._ask_for_shard(shard)
        if self._workers is not None:
            self._hand_out()

    def _fetch(self, batch: _Batch, positions: list[int]) -> None:
        if not self._index.shards:
            for position in positions:
                self._wanted.put(lambda position=position: self._fetch_object(batch, position))  # type: ignore[misc]
            return
        by_shard: dict[int, list[int]] = {}
        for position in positions:
            by_shard.setdefault(int(self._index.shard_of[batch.plan.samples[position]]), []).append(position)
        for shard, wanted in by_shard.items():
            with self._changed:
                found = self._shards.get(shard)
                if found is not None and found.body is None and not found.kept:
                    found.waiting.append((batch, wanted))
                    continue
            if found is None or not self._from_shard(found, batch, wanted):
                self._ask_for_shard(shard, (batch, wanted))

    def _ask_for_shard(self, shard: int, *waiting: tuple[_Batch, list[int]]) -> None:
        asked = _ShardFetch()
        asked.waiting.extend(waiting)
        with self._changed:
            self._shards[shard] = asked
        self._wanted.put(lambda: self._fetch_shard(shard, asked))

    def _serve(self) -> None:
        while (act := self._wanted.get()) is not None:
            if not self._closed:
                act()

    def _fetch_object(self, batch: _Batch, position: int) -> None:
        sample = int(batch.plan.samples[position])
        try:
            place = self._fetched(sample)
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by who takes the batch
            self._fail(batch, error)
            return
        self._arrived(batch, {position: place})

    def _fetched(self, sample: int) -> Slot | Body:
        index = self._index
        body = self._source.fetch(index.key(sample), int(index.sizes[sample]), index.etag(sample))
        self.requests += 1
        self.fetched_bytes += len(body)
        slot = self._slots.put(sample, body)
        return slot if slot is not None and self._workers is not None else body

    def _fetch_shard(self, number: int, asked: _ShardFetch) -> None:
        shard = self._index.shards[number]
        samples = self._index.samples_of(number)
        try:
            whole = memoryview(self._source.fetch_shard(shard))
            body, sums = whole[: shard.size], np.frombuffer(whole[shard.size :], np.uint64)
            self.requests += 1
            self.fetched_bytes += len(whole)
            kept = self._slots.put_shard(samples, body, sums)
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by who takes the batch
            for batch, _ in asked.waiting:
                self._fail(batch, error)
            with self._changed:
                self._shards.pop(number, None)
            return
        with self._changed:
            asked.kept = kept
            asked.body = None if kept else body
            waiting, asked.waiting = asked.waiting, []
            if kept:
                self._shards.pop(number, None)
            else:
                self._drop_shards()
        for batch, positions in waiting:
            self._arrived(batch, self._cut(asked.body if not kept else body, batch, positions, kept))

    def _drop_shards(self) -> None:
        """The oldest ones that are whole; batches have what they need of them."""
        most = _SHARDS_KEPT * self._window
        whole = [number for number, fetch in self._shards.items() if fetch.body is not None]
        for number in whole[: max(0, len(whole) - most)]:
            self._shards.pop(number)

    def _from_shard(self, found: _ShardFetch, batch: _Batch, positions: list[int]) -> bool:
        if found.body is None:
            return False
        self._arrived(batch, self._cut(found.body, batch, positions, False))
        return True

    def _cut(
        self, body: Body | None, batch: _Batch, positions: list[int], kept: bool
    ) -> Mapping[int, Slot | Body | None]:
        assert body is not None
        samples = batch.plan.samples[positions]
        if kept and self._workers is not None:
            return dict(zip(positions, self._slots.slots(samples), strict=True))
        view = memoryview(body)
        begins = self._index.within_shard[samples].tolist()
        sizes = self._index.sizes[samples].tolist()
        # Views: a batch holds the shards of its window, which are in memory anyway, and copies nothing.
        return {
            position: view[begin : begin + size] for position, begin, size in zip(positions, begins, sizes, strict=True)
        }

    def _arrived(self, batch: _Batch, places: Mapping[int, Slot | Body | None]) -> None:
        with self._changed:
            for position, place in places.items():
                batch.places[position] = place
            batch.fetching -= len(places)
            if batch.fetching:
                return
            self._changed.notify_all()
        self._hand_out()

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        with self._changed:
            batch.error = batch.error or error
            self._changed.notify_all()

    # --- making

    def _hand_out(self) -> None:
        """Give whole batches to workers that have room, in order."""
        if self._workers is None or self._closed:
            return
        while True:
            with self._changed:
                batch = next((one for one in self._batches if one.whole and not one.taken), None)
                worker = self._workers.choose(batch.number) if batch is not None else None
                if batch is None or worker is None:
                    return
                batch.taken = True
            worker.send(self._task(batch))

    def _task(self, batch: _Batch) -> Task:
        samples = batch.plan.samples.tolist()
        places: list[Slot | Body | None] = [
            bytes(place) if isinstance(place, memoryview) else place for place in batch.places
        ]
        return Task(batch.number, batch.plan.epoch, samples, [self._index.key(sample) for sample in samples], places)

    def _take(self, done: Done) -> None:
        batch = self._by_number.get(done.number)
        if batch is None:
            return
        with self._changed:
            batch.made, batch.error = done.made, done.error
            if done.missing:
                batch.taken = False
                batch.fetching = len(done.missing)
                for position in done.missing:
                    batch.places[position] = None
            else:
                batch.places = []
            self._changed.notify_all()
        if done.missing:
            for position in done.missing:
                self._slots.forget(int(batch.plan.samples[position]))
            self._fetch(batch, done.missing)

    def _lost(self, numbers: list[int], how: str) -> None:
        with self._changed:
            for number in numbers:
                batch = self._by_number.get(number)
                if batch is None:
                    continue
                batch.taken = False
                batch.deaths += 1
                if batch.deaths >= _DEATHS:
                    first = self._index.key(int(batch.plan.samples[0]))
                    batch.error = DataError(
                        f"worker processes of the data end ({how}) at the batch that begins with {first}: is there "
                        "memory enough? try workers=0"
                    )
            self._changed.notify_all()

    def _make(self, batch: _Batch) -> None:
        samples = batch.plan.samples.tolist()
        bodies: list[Body] = []
        try:
            for sample, place in zip(samples, batch.places, strict=True):
                body = read_slot(self._slots.descriptor, place) if isinstance(place, Slot) else place
                if body is None:
                    self._slots.forget(sample)
                    body = self._again(sample)
                bodies.append(body)
            batch.made = self._decoder.batch(batch.plan.epoch, samples, _Keys(self._index, samples), bodies)
        except Exception as error:  # noqa: BLE001 - raised again, each time that the batch is asked for
            batch.error = error

    def _again(self, sample: int) -> Body:
        """A sample whose slot does not hold what it should."""
        index = self._index
        if not index.shards:
            body = self._source.fetch(index.key(sample), int(index.sizes[sample]), index.etag(sample))
            self._slots.put(sample, body)
            return body
        shard = int(index.shard_of[sample])
        whole = memoryview(self._source.fetch_shard(index.shards[shard]))
        size = index.shards[shard].size
        self._slots.put_shard(index.samples_of(shard), whole[:size], np.frombuffer(whole[size:], np.uint64))
        begin = int(index.within_shard[sample])
        return bytes(whole[begin : begin + int(index.sizes[sample])])
