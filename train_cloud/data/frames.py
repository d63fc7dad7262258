"""``train_cloud.frames``: batches of a data set in S3 or a folder, the same after any interruption, without an end."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from awscrt.checksums import crc64nvme

from train_cloud import extras
from train_cloud.data import cache as caches
from train_cloud.data.decoding import Decode, Decoder, resolved
from train_cloud.data.index import Index, Numbers, build, named
from train_cloud.data.index import difference as difference
from train_cloud.data.order import epoch_order, members
from train_cloud.data.pipeline import Pipeline, Plan, Statistics
from train_cloud.data.source import Source, folder_of
from train_cloud.data.wire import Start
from train_cloud.data.workers import can_start, pickled
from train_cloud.errors import DataChanged, InputError, StoreError
from train_cloud.trainer import current_host

log = logging.getLogger(__name__)

SPLITS = {"train": (0.0, 0.9), "validation": (0.9, 1.0)}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
_FORM = 1
"""Of what ``state_dict`` returns."""
_DEFAULT_CACHE = 20 * 10**9
"""Bytes; half of the free disk where that is less."""
_AHEAD_SAMPLES, _AHEAD_BYTES = 512, 256 << 20
_MOST_WORKERS = 8
_WAITING_S = 5.0
_SKIPPED_NAMED = 1000


class Frames(Iterator[Any]):
    """Batches over and over, epoch after epoch; made by :func:`frames`.

    :ivar url: where the objects are read from
    :ivar skipped: damaged samples that batches were made without: key → what is wrong with it
    """

    def __init__(
        self,
        source: Callable[[], Source],
        *,
        url: str,
        local: str | None,
        include: str,
        wait_s: float,
        batch_size: int,
        decoder: Decoder,
        cache: caches.Cache,
        mean_of_limit: int | None,
        split: tuple[float, float],
        split_by: Literal["key", "folder"],
        shuffle: bool,
        drop_last: bool,
        workers: int,
        rank: int,
        ranks: int,
        window: int,
        tensors: bool,
        connections: int,
    ) -> None:
        self.url = url
        self._source_of = source
        self._local, self._include, self._wait_s = local, include, wait_s
        self._decoder = decoder
        self._cache, self._mean_of_limit = cache, mean_of_limit
        self._batch_size, self._split, self._split_by = batch_size, split, split_by
        self._shuffle, self._drop_last = shuffle, drop_last
        self._worker_count, self._connections = workers, connections
        self._rank, self._ranks, self._window = rank, ranks, window
        self._as_tensors = tensors
        self._index: Index | None = None
        self._source: Source | None = None
        self._slots: caches.Slots | None = None
        self._members: Numbers = np.empty(0, np.int64)
        self._orders: dict[int, Numbers] = {}
        self._epoch = self._batch = 0
        self._pipeline: Pipeline | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self.while_waiting: Callable[[float], None] = lambda seconds: None
        """Called several times a second while a batch is waited for, with the seconds so far."""
        self._last: tuple[Plan, list[int]] | None = None
        self.skipped: dict[str, str] = {}

    # --- what it consists of

    @property
    def identity(self) -> str:
        """SHA-256 of keys, sizes and e-tags: the same objects have the same one wherever they lie."""
        return self._opened().identity

    @property
    def samples(self) -> int:
        """Of an epoch, before any rank takes its share."""
        self._opened()
        return len(self._members)

    @property
    def batches_per_epoch(self) -> int:
        whole, rest = divmod(self.samples, self._batch_size * self._ranks)
        return whole + (1 if rest and self._ranks == 1 and not self._drop_last else 0)

    @property
    def epoch(self) -> int:
        """Of the next batch, from 0."""
        return self._epoch

    @property
    def position(self) -> int:
        """Batches of this epoch that have been given out; 0: the next one begins an epoch."""
        return self._batch

    @property
    def keys(self) -> list[str]:
        """Of the samples in the last batch."""
        if self._last is None:
            return []
        plan, kept = self._last
        return [self._opened().key(int(plan.samples[position])) for position in kept]

    def statistics(self) -> Statistics:
        """What was asked for since the data set was opened, and how much of it the cache had."""
        return Statistics(0, 0, 0, 0) if self._pipeline is None else self._pipeline.statistics()

    # --- batches

    def __iter__(self) -> Frames:
        return self

    def __next__(self) -> Any:
        pipeline = self._running()
        with _Waiting(self.while_waiting) as waiting:
            plan, made = pipeline.next(waiting)
        assert (plan.epoch, plan.number) == (self._epoch, self._batch)
        self._advance()
        for damaged in made.damaged:
            if damaged.key not in self.skipped:
                log.warning("left out: %s: %s", damaged.key, damaged.why)
            self.skipped[damaged.key] = damaged.why
        self._last = plan, made.kept
        return _tensors(made.content) if self._as_tensors else made.content

    def rest_of_epoch(self) -> Iterator[Any]:
        """Batches until the epoch ends; all of it where none has been taken yet. For validation, and for epochs."""
        epoch = self._epoch
        while self._epoch == epoch:
            yield next(self)

    def _advance(self) -> None:
        self._batch += 1
        if self._batch == self.batches_per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
            self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= self._epoch}

    # --- state

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and in what: small, and the same however far anything was read ahead."""
        index = self._opened()
        assert self._source is not None
        return {
            "form": _FORM,
            "epoch": self._epoch,
            "batch": self._batch,
            "identity": index.identity,
            "count": index.count,
            # An index that an earlier version has left in the cache knows a local folder's times.
            "newest": 0.0 if self._source.local else index.newest,
            "order": self._order_digest(self._epoch),
            "skipped": sorted(self.skipped)[:_SKIPPED_NAMED],
            **self._what_decides(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called.

        :raises InputError: an argument is not what it was then
        :raises DataChanged: the objects are not those of then
        """
        if state.get("form") != _FORM:
            raise InputError("data", state.get("form"), "this state was written by a later version: install that one")
        for name, value in self._what_decides().items():
            if state[name] != value:
                raise InputError(
                    name, value, f"it was {state[name]!r} in the checkpoint: give that, or begin a new run"
                )
        self._stop()
        if self._index is None or self._index.identity != state["identity"]:
            self._use(*self._find(state))
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self.skipped = dict.fromkeys(state.get("skipped", ()), "as before")
        if self._order_digest(self._epoch) != state["order"]:
            raise DataChanged(
                f"numpy {np.__version__} draws another order from the same seed than the version that the checkpoint "
                "was made with: install that one"
            )

    def _what_decides(self) -> dict[str, Any]:
        """Which sample comes when follows from these, and from the data."""
        return {
            "seed": self._decoder.seed,
            "batch_size": self._batch_size,
            "split": [*self._split],
            "split_by": self._split_by,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
            "ranks": self._ranks,
            "shuffle_shards": self._window,
            "include": self._include,
        }

    # --- opening and closing

    def close(self) -> None:
        """End its threads and processes. It can be used again, and goes on where it was."""
        self._stop()
        self._cache.close()
        if self._slots is not None:
            self._slots.close()
        self._index = self._source = self._slots = None

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._pipeline = self._end = None
        if self._source is not None:
            self._source.stopped.clear()

    def _opened(self) -> Index:
        if self._index is None:
            self._use(*self._find(None))
        assert self._index is not None
        return self._index

    def _find(self, state: Mapping[str, Any] | None) -> tuple[Source, Index]:
        source = self._source_of()
        known = self._cache.index(str(state["identity"])) if state is not None else None
        if known is not None:
            return source, known  # objects that are not those of the index are found out when they are read
        try:
            return source, _found(source, self._cache, self._include, state)
        except StoreError as error:
            if self._local is None:
                raise
            log.warning("reading the data from %s instead: %s", self._local, error)
            source = Source(self._local, include=self._include, wait_s=self._wait_s)
            return source, _found(source, self._cache, self._include, state)

    def _use(self, source: Source, index: Index) -> None:
        chosen = members(index, self._split, self._split_by)
        if not len(chosen):
            fix = f"none of the {index.count:,} samples is in it: choose another split, or split_by='key'"
            raise InputError("split", self._split, fix)
        if (self._drop_last or self._ranks > 1) and len(chosen) < self._batch_size * self._ranks:
            fix = f"give at most {len(chosen) // self._ranks}: there are {len(chosen):,} samples, {self._ranks} rank(s)"
            raise InputError("batch_size", self._batch_size, fix)
        if self._mean_of_limit is not None:
            wanted = self._mean_of_limit * (8 + -(-index.total // index.count)) + index.nbytes
            self._cache.limit = _checked_limit("max_cache_size", self._mean_of_limit, wanted, self._cache.root)
        self._cache.close()
        self._slots = self._cache.open(index, slots=not source.local)
        self.url = source.url
        self._source, self._index, self._members, self._orders = source, index, chosen, {}

    def _running(self) -> Pipeline:
        if self._pipeline is None:
            index = self._opened()
            assert self._source is not None and self._slots is not None
            self._source.stopped.clear()
            mean = max(1, index.total // index.count)
            ahead = min(_AHEAD_SAMPLES, _AHEAD_BYTES // mean) // self._batch_size
            start = None
            if self._worker_count:
                slots = self._slots.path if self._slots.admitted else None
                start = Start(_path(), str(slots) if slots else None, pickled(self._decoder))
            self._pipeline = Pipeline(
                index,
                self._source,
                self._slots,
                self._decoder,
                self._plans(self._epoch, self._batch),
                start=start,
                workers=self._worker_count,
                ahead=max(2 * self._worker_count, ahead, 1),
                connections=self._connections,
                window=self._window,
            )
            self._end = weakref.finalize(self, self._pipeline.close)
        return self._pipeline

    # --- order

    def _order(self, epoch: int) -> Numbers:
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(
                self._opened(), self._members, self._decoder.seed, epoch, shuffle=self._shuffle, window=self._window
            )
        return self._orders[epoch]

    def _order_digest(self, epoch: int) -> int:
        return int(crc64nvme(self._order(epoch).astype("<i8").tobytes()))

    def _plans(self, epoch: int, batch: int) -> Iterator[Plan]:
        ours = weakref.proxy(self)  # a pipeline must not keep alive what it ends with
        return _plans(ours, epoch, batch)


class _Waiting:
    """What happens while a batch is waited for: the watchdog hears that it is the store that does not answer."""

    def __init__(self, besides: Callable[[float], None]) -> None:
        self._besides = besides
        self._host = current_host()
        self._said = False

    def __enter__(self) -> _Waiting:
        return self

    def __call__(self, seconds: float) -> None:
        if self._host is not None and not self._said and seconds > _WAITING_S:
            self._host.phase("store")
            self._said = True
        self._besides(seconds)

    def __exit__(self, *exception: object) -> None:
        if self._host is not None and self._said:
            self._host.phase("steps")


def _plans(ours: Frames, epoch: int, first: int) -> Iterator[Plan]:
    index, size, ranks = ours._opened(), ours._batch_size, ours._ranks
    count = ours.batches_per_epoch
    while True:
        order = ours._order(epoch)
        windows = _Windows(index, order, ours._order(epoch + 1), ours._window) if index.shards else None
        for number in range(first, count):
            at = (number * ranks + ours._rank) * size
            samples = order[at : at + size]
            yield Plan(epoch, number, samples, windows.after(at, len(samples)) if windows else ())
        epoch, first = epoch + 1, 0


class _Windows:
    """Which shards will be wanted after a batch's own."""

    def __init__(self, index: Index, order: Numbers, following: Numbers, window: int) -> None:
        shards = index.shard_of[order]
        # In the order of their first samples; each window's are mixed, so this is window by window.
        self._windows: list[tuple[int, ...]] = []
        self._begins: list[int] = []
        sequence, at = _first_seen(shards)
        for start in range(0, len(sequence), window):
            self._windows.append(tuple(int(shard) for shard in sequence[start : start + window]))
            self._begins.append(int(at[start]))
        sequence, _ = _first_seen(index.shard_of[following])
        self._windows.append(tuple(int(shard) for shard in sequence[:window]))
        self._said = -1

    def after(self, at: int, length: int) -> tuple[int, ...]:
        """Those of the next window, once per window."""
        here = int(np.searchsorted(self._begins, at + length - 1, side="right")) - 1
        if here <= self._said:
            return ()
        self._said = here
        return self._windows[here + 1]


def _first_seen(shards: Numbers) -> tuple[Numbers, Numbers]:
    found, at = np.unique(shards, return_index=True)
    order = np.argsort(at)
    return found[order], at[order]


def _found(source: Source, cache: caches.Cache, include: str, state: Mapping[str, Any] | None) -> Index:
    """The index of what lies there; where a state is given, the one of then."""
    packed = source.packed()
    if packed is not None:
        if state is not None and packed.identity != state["identity"]:
            raise DataChanged(
                f"{source.url} was packed anew, or of other objects, since the checkpoint: pack as before"
            )
        return packed
    name = hashlib.sha256(f"{source.url}\0{include}".encode()).hexdigest()[:32]
    stamp = source.stamp()
    before = caches.remembered(cache.root, name)
    if stamp is not None and before.get("stamp") == stamp:
        known = cache.index(str(before.get("identity")))
        if known is not None and (state is None or known.identity == state["identity"]):
            return known
    records = list(source.list())
    index = build(records)
    if state is not None and index.identity != state["identity"]:
        older = build(record for record in records if record.modified <= state["newest"])
        since = sorted(record.key for record in records if record.modified > state["newest"])
        if older.identity != state["identity"]:
            gone = state["count"] - older.count
            raise DataChanged(
                f"{source.url} is not what it was at the checkpoint: {len(since):,} objects were written since "
                f"({named(since)})"
                + (f", and {gone:,} of then are changed or gone" if gone > 0 else "")
                + ": restore them, or begin a new run"
            )
        log.warning("%s objects are new below %s (%s): this run goes on without", len(since), source.url, named(since))
        return older
    if stamp is not None:
        caches.remember(cache.root, name, {"identity": index.identity, "stamp": stamp, "url": source.url})
    return index


def frames(
    url: str,
    batch_size: int,
    seed: int = 0,
    *,
    decode: Decode = "rgb",
    size: int | tuple[int, int] | None = None,
    augment: Callable[..., Any] | str | None = None,
    include: str = "*",
    split: str | tuple[float, float] | None = None,
    split_by: Literal["key", "folder"] = "key",
    shuffle: bool = True,
    drop_last: bool = False,
    cache: str | Path | None = None,
    cache_bytes: int | str | None = None,
    max_cache_size: int | None = None,
    workers: int | Literal["auto"] = "auto",
    on_bad: Literal["raise", "skip"] = "raise",
    local: str | Path | None = None,
    rank: int = 0,
    ranks: int = 1,
    shuffle_shards: int = 8,
    tensors: bool = True,
    connections: int = 32,
    wait_s: float = 900.0,
) -> Frames:
    """Batches of images (or of any objects) from S3 or a folder, without an end.

    Which sample comes when is a function of ``seed`` and epoch alone, and what ``augment`` draws of seed, epoch and
    sample: the batches are the same with any number of workers, any cache, and after any interruption. Nothing is read
    before the first batch, or the first question about the data.

    :param url: ``s3://bucket/prefix``, a folder or ``file://``; also what ``train-cloud pack`` has written.
        ``${S3_BUCKET_NAME}`` and other environment variables are put in.
    :param batch_size: samples of a batch, of this rank
    :param decode: ``rgb`` or ``gray``: images as uint8 ``[channels, height, width]``, batches with a dimension more;
        a function of the object's bytes, or of its bytes and its key (for labels), that returns an array, a number, or
        a tuple or dict of them, which is collated; also as ``module:function``; None: the bytes themselves
    :param size: ``(height, width)`` that ``rgb`` and ``gray`` resize to; one number is both
    :param augment: a function of a decoded sample and a ``numpy.random.Generator``; or of the sample alone, for which
        the global generators of Python, NumPy and torch (CPU) are seeded
    :param include: only keys that this glob matches, for example ``*.png``
    :param split: ``train`` (9 of 10), ``validation`` (the rest), or from where to where, such as ``(0, 0.8)``. A hash
        of the key decides, so that more data moves no sample.
    :param split_by: ``folder``: what lies in one folder, such as an episode, is in one part
    :param drop_last: leave out what is too little for a batch at an epoch's end
    :param cache: folder of the cache; by default ``TRAIN_CLOUD_DATA_CACHE``, or ``~/.cache/train-cloud/data``
    :param cache_bytes: over all data sets in it, such as ``"20 GB"``; 0: nothing is kept; by default 20 GB, and at most
        half of the free disk
    :param max_cache_size: the same in samples
    :param workers: processes that decode; ``auto``: one per core but one, at most 8
    :param on_bad: what a damaged object does: ``raise``, naming it, or ``skip``: its batch is one smaller, each time
    :param local: folder with the same objects, read only where the bucket cannot be
    :param rank: which share of each global batch, of ``batch_size * ranks`` samples, is made here
    :param shuffle_shards: of packed data: shards whose samples are mixed, which memory holds twice
    :param tensors: batches of ``torch.Tensor``; False: of NumPy arrays
    :param connections: objects that are fetched at once
    :param wait_s: how long a store that does not answer, or expired credentials, are waited for
    :raises InputError: an argument cannot be used
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("ranks", ranks, 1),
        ("shuffle_shards", shuffle_shards, 1),
        ("connections", connections, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(name, value, f"give a whole number of at least {least}")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < ranks:
        raise InputError("rank", rank, f"give a number from 0 to {ranks - 1}")
    if on_bad not in ("raise", "skip"):
        raise InputError("on_bad", on_bad, "give raise or skip")
    if split_by not in ("key", "folder"):
        raise InputError("split_by", split_by, "give key or folder")
    if tensors:
        extras.need("torch", "train_cloud.frames(tensors=True)")
    if cache_bytes is not None and max_cache_size is not None:
        raise InputError("max_cache_size", max_cache_size, "give this or cache_bytes")
    decoder = Decoder(
        resolved(decode, "decode"), _size(size, decode), resolved(augment, "augment"), seed, on_bad == "skip"
    )
    source = Source(url, include=include, wait_s=wait_s)
    if local is not None and folder_of(str(local)) is None:
        raise InputError("local", local, "give a local folder")
    root, limit = _cache(cache, cache_bytes, max_cache_size)
    return Frames(
        lambda: source,
        url=source.url,
        local=str(local) if local is not None else None,
        include=include,
        wait_s=wait_s,
        batch_size=batch_size,
        decoder=decoder,
        cache=caches.Cache(root, limit),
        mean_of_limit=max_cache_size,
        split=_split(split),
        split_by=split_by,
        shuffle=shuffle,
        drop_last=drop_last,
        workers=_workers(workers, decoder),
        rank=rank,
        ranks=ranks,
        window=shuffle_shards,
        tensors=tensors,
        connections=connections,
    )


def parse_bytes(value: int | str, field: str) -> int:
    """``"20 GB"`` (10⁹) or ``"20 GiB"`` (2³⁰) in bytes.

    :raises InputError: no such quantity
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if isinstance(value, bool) or found is None or found[2].upper() not in _UNITS:
        raise InputError(field, value, "give bytes, for example 20 GB or 500 MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder of the cache, which need not exist."""
    if given is not None:
        return Path(given).expanduser().absolute()
    named_so = os.environ.get("TRAIN_CLOUD_DATA_CACHE")
    if named_so:
        return Path(named_so).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 - never raises
    there = next((path for path in (base, *base.parents) if path.is_dir()), base)
    if not base.is_absolute() or not os.access(there, os.W_OK):
        base = Path(tempfile.gettempdir())
    return base / "train-cloud" / "data"


def _cache(given: str | Path | None, limit: int | str | None, samples: int | None) -> tuple[Path | None, int]:
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 0):
        raise InputError("max_cache_size", samples, "give a number of samples, or cache_bytes")
    wanted = parse_bytes(limit, "cache_bytes") if limit is not None else None
    if wanted == 0 or samples == 0:
        return None, 0
    root = cache_folder(given)
    if wanted is None:
        return root, min(_DEFAULT_CACHE, (caches.free_bytes(root) + caches.used_bytes(root)) // 2)
    return root, _checked_limit("cache_bytes", limit, wanted, root)


def _checked_limit(field: str, given: object, wanted: int, root: Path | None) -> int:
    if root is not None and wanted > (most := caches.free_bytes(root) + caches.used_bytes(root)):
        fix = f"the disk of {root} has room for {most / 1e9:,.1f} GB: give less, or another folder as cache"
        raise InputError(field, given, fix)
    return wanted


def _split(split: str | tuple[float, float] | None) -> tuple[float, float]:
    if split is None:
        return 0.0, 1.0
    fix = f"give {' or '.join(SPLITS)}, or from where to where, such as (0, 0.8)"
    if isinstance(split, str):
        if split not in SPLITS:
            raise InputError("split", split, fix)
        return SPLITS[split]
    try:
        low, high = (float(bound) for bound in split)
    except (TypeError, ValueError):
        raise InputError("split", split, fix) from None
    if not 0 <= low < high <= 1:
        raise InputError("split", split, fix)
    return low, high


def _size(size: int | tuple[int, int] | None, decode: Decode) -> tuple[int, int] | None:
    if size is None:
        return None
    if decode not in ("rgb", "gray"):
        raise InputError("size", size, "only for decode='rgb' or 'gray': resize in your decode")
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in pair):
        raise InputError("size", size, "give (height, width) in pixels, or one number for both")
    return pair[0], pair[1]


def _workers(workers: int | str, decoder: Decoder) -> int:
    if workers == "auto":
        if decoder.decode is None and decoder.augment is None:
            return 0  # nothing to do for them
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(_MOST_WORKERS, cores - 1) if can_start() else 0
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise InputError("workers", workers, "give a number of processes, 0 for none, or auto")
    if workers and not can_start():
        raise InputError("workers", workers, "not on this system: give 0")
    return workers


def _path() -> list[str]:
    return [os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path]  # noqa: PTH100, PTH109


def _tensors(content: Any) -> Any:
    import torch

    if isinstance(content, np.ndarray):
        return torch.from_numpy(content)
    if isinstance(content, tuple):
        return tuple(_tensors(one) for one in content)
    if isinstance(content, dict):
        return {name: _tensors(one) for name, one in content.items()}
    return content
