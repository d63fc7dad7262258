"""``train-cloud pack``: many small objects as few large ones, so that a line carries bytes instead of requests.

S3 serves about 5,500 GETs a second per prefix ("Best practices design patterns: optimizing Amazon S3 performance",
Amazon S3 User Guide), which of frames of 9 KB is 49 MB/s. A shard is samples one after the other, in the layout of the
cache's file of slots, and after them a checksum of each. Which samples share a shard is drawn, with the same result
each time: so a packing that broke off goes on, and reading a few shards at once is reading at random.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from awscrt.checksums import crc64nvme

from train_cloud.data.cache import checksum
from train_cloud.data.index import PACKED, Index, Numbers, Shard, build, packed
from train_cloud.data.order import scattered
from train_cloud.data.source import Source, expanded
from train_cloud.errors import InputError
from train_cloud.store import open_store

log = logging.getLogger(__name__)

SHARD_BYTES = 16_000_000
_AT_ONCE = 32


class Packed(NamedTuple):
    samples: int
    shards: int
    bytes: int
    kept: int
    """shards that an earlier call has written"""


def pack(
    url: str,
    out: str,
    *,
    include: str = "*",
    shard_bytes: int = SHARD_BYTES,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Pack the objects below ``url`` into shards below ``out``. What was packed before is kept.

    :param each: called with the shards that are done, and how many there will be
    :raises InputError: nothing to pack, or ``out`` holds something else
    """
    source = Source(url, include=include)
    target = open_store(expanded(out, "out"))
    if target.url == source.url or f"{target.url}/".startswith(f"{source.url}/"):
        raise InputError("out", out, "it lies in what is to be packed, and would be packed too: name a place outside")
    index = build(source.list())
    stored = scattered(index.count)
    bounds = _bounds(index.sizes[stored], shard_bytes)
    prefix = index.identity[:16]
    there = {info.key: info.size for info in target.list()}
    strange = sorted(key for key in there if key != PACKED and not key.startswith(f"shard-{prefix}-"))
    if strange:
        raise InputError("out", out, f"it holds something else already ({strange[0]}): name an empty place")
    shards: list[Shard] = []
    kept = 0
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for number, (first, end) in enumerate(zip(bounds, [*bounds[1:], index.count], strict=True)):
            name, samples = f"shard-{prefix}-{number:06d}", stored[first:end]
            size = int(index.sizes[samples].sum())
            body: bytes | None = None
            if there.get(name) == size + 8 * len(samples):
                found = bytes(target.get(name).body)
                # Its own checksums say whether it is whole; a name is used for these samples only.
                body = found if _fits(index, samples, found, size) else None
                kept += body is not None
            if body is None:
                body = _shard(source, index, samples, threads)
                target.put(name, body)
            shards.append(Shard(name, size, crc64nvme(body), first))
            each(number + 1, len(bounds))
    whole = packed(index, stored, shards)
    target.put(PACKED, memoryview(whole.body))
    return Packed(index.count, len(shards), index.total, kept)


def _bounds(sizes: Numbers, most: int) -> list[int]:
    """Where each shard begins; one that is larger than ``most`` has a single sample."""
    bounds, filled = [0], 0
    for position, size in enumerate(sizes.tolist()):
        if filled and filled + size > most:
            bounds.append(position)
            filled = 0
        filled += size
    return bounds


def _shard(source: Source, index: Index, samples: Numbers, threads: ThreadPoolExecutor) -> bytes:
    bodies = list(
        threads.map(
            lambda sample: source.fetch(index.key(sample), int(index.sizes[sample]), index.etag(sample)),
            samples.tolist(),
        )
    )
    sums = np.array([checksum(body) for body in bodies], "<u8")
    return b"".join([*bodies, sums.tobytes()])


def _fits(index: Index, samples: Numbers, body: bytes, size: int) -> bool:
    sums = np.frombuffer(body[size:], "<u8")
    return all(
        checksum(piece) == int(sums[at]) for at, piece in enumerate(_pieces(index.sizes[samples], memoryview(body)))
    )


def _pieces(sizes: Numbers, body: memoryview) -> Iterator[memoryview]:
    begin = 0
    for size in sizes.tolist():
        yield body[begin : begin + size]
        begin += size
