"""From a manifest back to a snapshot: everything is verified before anybody reads it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from train_cloud.checkpoint import signing
from train_cloud.checkpoint.format import Filled, contents_of, unpack
from train_cloud.checkpoint.manifest import CURE, Manifest, Segment, Stream, read_verified
from train_cloud.errors import CorruptCheckpoint
from train_cloud.run import layout
from train_cloud.snapshot import Array, Rows, Snapshot
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
    streams: set[str] | None = None,
    received: Callable[[int], None] | None = None,
) -> Snapshot:
    """Read the parts at once, in parallel; the rows come while they are iterated, some segments ahead.

    :param parts: only these; None for all
    :param streams: only their rows; None for all, and for none where ``parts`` are named
    :param received: called in this thread with the number of bytes of each object that has arrived and is verified
    :raises CorruptCheckpoint: an object is missing or changed. The run must not go on from zero because of it.
    """

    def load(name: str) -> memoryview:
        reference = manifest.parts.get(name)
        if reference is None:
            raise CorruptCheckpoint(f"the checkpoint at {manifest.timesteps} lacks {name}, which it needs{CURE}")
        signing.check_key(store, reference)
        return read_verified(store, reference)

    def load_all(names: Iterable[str]) -> dict[str, memoryview]:
        bodies = {}
        wanted = list(names)
        for name, body in zip(wanted, pool.map(load, wanted), strict=True):
            bodies[name] = body
            if received:
                received(manifest.parts[name].size)
        return bodies

    with ThreadPoolExecutor(_PARALLEL) as pool:
        wanted = (name for name in manifest.parts if parts is None or name in parts)
        bodies = load_all(name for name in wanted if not name.startswith(layout.CONTENT))
        needed = set[str]().union(*(contents_of(body, manifest.parts[name].key) for name, body in bodies.items()))
        contents = load_all(layout.CONTENT + content for content in sorted(needed))
    loaded = {
        name: unpack(body, manifest.parts[name].key, lambda content: contents[layout.CONTENT + content])
        for name, body in bodies.items()
    }
    if streams is None:
        streams = set() if parts is not None else set(manifest.streams)
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
            for name, stream in manifest.streams.items()
            if name in streams
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
