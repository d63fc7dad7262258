"""From a manifest back to a snapshot: everything is verified before anybody reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from train_cloud.checkpoint import signing
from train_cloud.checkpoint.format import Filled, unpack
from train_cloud.checkpoint.manifest import Manifest, Segment, Stream, read_verified
from train_cloud.snapshot import Array, Part, Rows, Snapshot
from train_cloud.store import ObjectStore

_PARALLEL = 8
#: Of segments that are on their way. With the one that is unpacked, and what the interpreter and the client take, a
#: restore stays below 500 MB beside the ring.
_AHEAD_BYTES = 256 << 20


def restore(
    store: ObjectStore,
    manifest: Manifest,
    *,
    parts: set[str] | None = None,
    received: Callable[[int], None] | None = None,
) -> Snapshot:
    """Read the parts at once, in parallel; the rows come while they are iterated, some segments ahead.

    :param parts: only these, and no rows; None for all
    :param received: called in this thread with the number of bytes of each object that has arrived and is verified
    :raises CorruptCheckpoint: an object is missing or changed. The run must not go on from zero because of it.
    """

    def load(name: str) -> Part:
        reference = manifest.parts[name]
        signing.check_key(store, reference)
        return unpack(read_verified(store, reference), reference.key)

    loaded = {}
    wanted = [name for name in manifest.parts if parts is None or name in parts]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for name, part in zip(wanted, pool.map(load, wanted), strict=True):
            loaded[name] = part
            if received:
                received(manifest.parts[name].size)
    streams = {} if parts is not None else manifest.streams
    return Snapshot(
        timesteps=manifest.timesteps,
        parts=loaded,
        streams={
            name: Rows(
                first=max(0, stream.last - stream.capacity),
                last=stream.last,
                capacity=stream.capacity,
                chunks=_chunks(store, stream, received),
                successors=stream.successors,
            )
            for name, stream in streams.items()
        },
        facts=manifest.facts,
    )


def _chunks(
    store: ObjectStore, stream: Stream, received: Callable[[int], None] | None
) -> Iterator[tuple[int, Mapping[str, Array]]]:
    """Segments in order, with some fetched ahead, so that memory stays at a few segments beyond the ring."""
    oldest = max(0, stream.last - stream.capacity)

    waiting = deque(stream.segments)
    ahead: deque[tuple[Segment, Future[memoryview]]] = deque()

    def fetch() -> None:
        while waiting and len(ahead) < _PARALLEL:
            if ahead and sum(segment.size for segment, _ in ahead) + waiting[0].size > _AHEAD_BYTES:
                return
            segment = waiting.popleft()
            ahead.append((segment, pool.submit(read_verified, store, segment)))

    with ThreadPoolExecutor(_PARALLEL) as pool:
        fetch()
        while ahead:
            segment, future = ahead.popleft()
            fetch()
            body = future.result()
            if received:
                received(segment.size)
            skip = max(0, oldest - segment.first)  # rows that the ring has overwritten since
            columns = Filled(unpack(body, segment.key).arrays, stream.successors, skip)
            yield segment.first + skip, columns
            del future, body, columns
