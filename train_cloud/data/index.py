"""The index of a data set: sorted keys with sizes and e-tags. Its SHA-256 is the identity of the data.

One file, of which nothing is parsed but a header of a few lines: a million samples are there in milliseconds.

::

    8 bytes    "tc-index"
    8 bytes    CRC64NVME of all that follows, little endian
    8 bytes    size of the header, little endian
    header     JSON, with spaces at its end, so that what follows begins at a multiple of 8
    arrays     in the header's order, each at a multiple of 8, little endian
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from awscrt.checksums import crc64nvme

from train_cloud.errors import DataError
from train_cloud.whole_file import replacing

Numbers = npt.NDArray[np.int64]

PACKED = "index.train-cloud"
"""Name of the index among the shards of a packed data set; written last, so that where it is they all are."""
_MAGIC = b"tc-index"
_SHOWN = 3


class Record(NamedTuple):
    """One object as a listing shows it."""

    key: str
    """relative to the data set's URL"""
    size: int
    """bytes"""
    etag: str
    """Without quotes. Of a local file: the MD5 of its bytes, as S3 has for an object sent in one piece."""
    modified: float
    """seconds since 1970"""


class Shard(NamedTuple):
    """Samples one after the other in one object, and after them the CRC64NVME of each (8 bytes, little endian)."""

    name: str
    size: int
    """bytes of the samples, without the checksums"""
    crc: int
    """CRC64NVME of the whole object"""
    first: int
    """Where it begins in :attr:`Index.stored`."""


class Index:
    """What a data set consists of. Samples are numbered in the order of their keys.

    :ivar count: samples
    :ivar sizes: bytes of each, ``(count,)``
    :ivar identity: SHA-256 (hexadecimal) over the lines ``key NUL size NUL e-tag``, and over the layout where the data
        set is packed
    :ivar newest: seconds since 1970, when the last of the objects was written
    :ivar stored: of a packed data set: samples in the order in which they lie in the shards, ``(count,)``
    :ivar shards: of a packed data set; else empty
    """

    def __init__(self, body: bytes | mmap.mmap) -> None:
        view = memoryview(body)
        if view[:8] != _MAGIC or crc64nvme(view[16:]) != int.from_bytes(view[8:16], "little"):
            raise DataError("the index of the data is damaged")
        start = 24 + int.from_bytes(view[16:24], "little")
        self._header: dict[str, Any] = json.loads(bytes(view[24:start]))
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, kind, length in self._header["arrays"]:
            arrays[name] = np.frombuffer(view, dtype=kind, count=length, offset=start)
            start += -(-arrays[name].nbytes // 8) * 8
        self.body = body
        self.sizes: Numbers = arrays["sizes"]
        self.count = len(self.sizes)
        self.identity: str = self._header["identity"]
        self.newest: float = self._header["newest"]
        self.stored: Numbers = arrays.get("stored", np.empty(0, np.int64))
        self.shards = [Shard(*shard) for shard in self._header.get("shards", ())]
        self._key_ends, self._keys = arrays["key_ends"], arrays["keys"]
        self._etag_ends, self._etags = arrays["etag_ends"], arrays["etags"]

    @property
    def nbytes(self) -> int:
        """Of the index itself."""
        return len(self.body)

    @cached_property
    def total(self) -> int:
        """Bytes of all samples."""
        return int(self.sizes.sum())

    @cached_property
    def shard_of(self) -> Numbers:
        """Number of the shard that each sample lies in, ``(count,)``."""
        found = np.empty(self.count, np.int64)
        found[self.stored] = np.repeat(np.arange(len(self.shards)), np.diff(self._shard_bounds))
        return found

    @cached_property
    def within_shard(self) -> Numbers:
        """Where each sample begins in its shard, in bytes, ``(count,)``."""
        sizes = self.sizes[self.stored]
        begins = np.cumsum(sizes) - sizes
        firsts = np.repeat(begins[self._shard_bounds[:-1]], np.diff(self._shard_bounds))
        found = np.empty(self.count, np.int64)
        found[self.stored] = begins - firsts
        return found

    def samples_of(self, shard: int) -> Numbers:
        """Samples of a shard, in the order in which they lie in it."""
        return self.stored[self._shard_bounds[shard] : self._shard_bounds[shard + 1]]

    @cached_property
    def _shard_bounds(self) -> Numbers:
        return np.array([*(shard.first for shard in self.shards), self.count], np.int64)

    def key(self, sample: int) -> str:
        return _text(self._keys, self._key_ends, sample)

    def etag(self, sample: int) -> str:
        return _text(self._etags, self._etag_ends, sample)

    def records(self) -> Iterator[Record]:
        for sample in range(self.count):
            yield Record(self.key(sample), int(self.sizes[sample]), self.etag(sample), self.newest)

    def save(self, path: Path) -> None:
        with replacing(path, lasting=True) as file:
            file.write(self.body)


def load(path: Path) -> Index | None:
    """The index in a file; None where there is none, or a damaged one."""
    try:
        with path.open("rb") as file:
            return Index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError, DataError):
        return None


def build(records: Iterable[Record]) -> Index:
    """From a listing, in any order."""
    found = sorted((record.key.encode(), record.size, record.etag.encode(), record.modified) for record in records)
    digest = hashlib.sha256()
    for key, size, etag, _ in found:
        digest.update(b"%s\0%d\0%s\n" % (key, size, etag))
    keys, etags = [key for key, *_ in found], [etag for _, _, etag, _ in found]
    arrays = {
        "sizes": np.array([size for _, size, _, _ in found], "<i8"),
        "key_ends": np.cumsum([len(key) for key in keys], dtype="<i8"),
        "etag_ends": np.cumsum([len(etag) for etag in etags], dtype="<i8"),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "etags": np.frombuffer(b"".join(etags), np.uint8),
    }
    newest = max((modified for *_, modified in found), default=0.0)
    return Index(_encode({"identity": digest.hexdigest(), "newest": newest}, arrays))


def packed(index: Index, stored: Numbers, shards: Sequence[Shard]) -> Index:
    """The index of the same samples in shards."""
    layout = json.dumps([[shard.name, shard.size, shard.first] for shard in shards]).encode()
    identity = hashlib.sha256(b"packed" + index.identity.encode() + stored.astype("<i8").tobytes() + layout).hexdigest()
    header = {"identity": identity, "newest": index.newest, "source": index.identity, "shards": [*shards]}
    arrays = {
        "sizes": index.sizes,
        "key_ends": index._key_ends,
        "etag_ends": index._etag_ends,
        "stored": stored.astype("<i8"),
        "keys": index._keys,
        "etags": index._etags,
    }
    return Index(_encode(header, arrays))


def difference(before: Index, now: Index) -> str:
    """In words, which objects are not what they were: ``2 have changed (a, b), 1 is gone (c), 3 are new (d, e, f)``."""
    was = {record.key: (record.size, record.etag) for record in before.records()}
    is_now = {record.key: (record.size, record.etag) for record in now.records()}
    changed = [key for key, what in was.items() if key in is_now and is_now[key] != what]
    gone = [key for key in was if key not in is_now]
    new = [key for key in is_now if key not in was]
    told = [
        f"{len(keys):,} {word} ({named(keys)})"
        for keys, word in (
            (changed, "has changed" if len(changed) == 1 else "have changed"),
            (gone, "is gone" if len(gone) == 1 else "are gone"),
            (new, "is new" if len(new) == 1 else "are new"),
        )
        if keys
    ]
    return ", ".join(told) or "none differs now"


def named(keys: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    return f"{', '.join(keys[:_SHOWN])}{more}"


def _encode(header: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    header = {**header, "arrays": [[name, array.dtype.str, len(array)] for name, array in arrays.items()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pieces = [len(text).to_bytes(8, "little"), text]
    for array in arrays.values():
        raw = array.tobytes()
        pieces += [raw, bytes(-len(raw) % 8)]
    rest = b"".join(pieces)
    return b"".join([_MAGIC, crc64nvme(rest).to_bytes(8, "little"), rest])


def _text(blob: npt.NDArray[Any], ends: npt.NDArray[Any], at: int) -> str:
    return blob[int(ends[at - 1]) if at else 0 : int(ends[at])].tobytes().decode()
