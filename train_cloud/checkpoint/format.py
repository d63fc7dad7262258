"""Bytes of a part or segment: magic, length of the header, JSON header, raw arrays, blob. No compression. Of an
array that is stored by its content, the header has the content's name in the place of an offset.

Everything that touches array data runs in numpy or native code that releases the interpreter lock: a background
commit costs the training the time for which it holds that lock, so compression in a thread would cost more than it
saves.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from awscrt import checksums

from train_cloud.errors import CorruptCheckpoint
from train_cloud.snapshot import Array, Columns, Part

_MAGIC = b"TRNCLD01"
#: Of parts with arrays that are stored elsewhere, which earlier versions cannot read.
_MAGIC_CONTENTS = b"TRNCLD02"
_LENGTH = struct.Struct("<Q")
_ALIGN = 64
_PADDING = bytes(_ALIGN)
_CHUNK = 64 << 20
_EXCEPTIONS = "::exceptions"
_INDEX = "::index"


def crc64nvme(body: memoryview) -> int:
    """CRC-64/NVME, the checksum S3 itself recommends (Amazon S3 User Guide, "Checking object integrity"): 38
    GB/s here.
    """
    value = 0
    for start in range(0, len(body), _CHUNK):
        value = checksums.crc64nvme(body[start : start + _CHUNK], value)
    return value


def pack(part: Part) -> memoryview:
    """One contiguous buffer. Its bytes are copied once, outside the interpreter lock: ``bytes.join`` leaves it for
    anything large.
    """
    layout: dict[str, Any] = {}
    pieces: list[Any] = []
    offset = 0
    for name, array in part.arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only plain numbers can be stored as they are")
        if name in part.contents:
            layout[name] = [array.dtype.str, array.shape, part.contents[name]]
            continue
        layout[name] = [array.dtype.str, array.shape, offset]
        end = offset + array.nbytes
        offset = _aligned(end)
        pieces += (array if array.flags.c_contiguous else np.ascontiguousarray(array), _PADDING[: offset - end])
    header = {"arrays": layout, "blob": [offset, len(part.blob)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    front = (_MAGIC_CONTENTS if part.contents else _MAGIC) + _LENGTH.pack(len(text)) + text
    return memoryview(b"".join((front, _PADDING[: _aligned(len(front)) - len(front)], *pieces, part.blob)))


def unpack(body: memoryview, name: str, content: Callable[[str], memoryview] | None = None) -> Part:
    """Arrays are read-only views into ``body``.

    :param name: the object's key, for the error
    :param content: gives the content of a name
    :raises CorruptCheckpoint: not such a buffer
    """
    header, base = _header(body, name)
    data = np.frombuffer(body, np.uint8)
    arrays: dict[str, Array] = {}
    contents: dict[str, str] = {}
    for key, (dtype, shape, offset) in header["arrays"].items():
        if isinstance(offset, str):
            if content is None:
                raise CorruptCheckpoint(f"{name} names contents, which only a checkpoint's parts do")
            contents[key] = offset
            arrays[key] = np.frombuffer(content(offset), np.uint8).view(dtype).reshape(shape)
            continue
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        arrays[key] = data[base + offset : base + offset + size].view(dtype).reshape(shape)
    at, size = header["blob"]
    return Part(arrays, bytes(body[base + at : base + at + size]), contents)


def contents_of(body: memoryview, name: str) -> set[str]:
    """Names of the contents that :func:`unpack` will ask for."""
    layout = _header(body, name)[0]["arrays"]
    return {offset for _, _, offset in layout.values() if isinstance(offset, str)}


def _header(body: memoryview, name: str) -> tuple[dict[str, Any], int]:
    """And where it ends."""
    if bytes(body[: len(_MAGIC)]) not in (_MAGIC, _MAGIC_CONTENTS):
        raise CorruptCheckpoint(f"{name} is not a train-cloud part (wrong first bytes)")
    (length,) = _LENGTH.unpack(body[len(_MAGIC) : len(_MAGIC) + _LENGTH.size])
    start = len(_MAGIC) + _LENGTH.size
    return json.loads(bytes(body[start : start + length])), _aligned(start + length)


def drop_successors(columns: Mapping[str, Array], successors: Mapping[str, str]) -> dict[str, Array]:
    """Leave out of each column ``a`` what stands in row ``i + 1`` of its column ``b``: half of a replay segment,
    losslessly.

    Compared as bytes, so that NaN and -0.0 come back as they were. Columns have the shape (rows, environments, …): one
    environment's episode end keeps only that environment's row.
    """
    out = dict(columns)
    for name, source in successors.items():
        after, before = columns[name], columns[source]
        rows, environments = after.shape[:2]
        kept = np.ones((rows, environments), dtype=bool)
        if rows > 1:
            kept[:-1] = (_as_words(after[:-1]) != _as_words(before[1:])).any(axis=2)
        index = np.flatnonzero(kept)
        del out[name]
        out[name + _INDEX] = index.astype(np.uint32)
        out[name + _EXCEPTIONS] = after.reshape(rows * environments, *after.shape[2:])[index]
    return out


class Filled(Columns):
    """The inverse of :func:`drop_successors`.

    :param skip: so many of the first rows are left out
    """

    def __init__(self, stored: Mapping[str, Array], successors: Mapping[str, str], skip: int = 0) -> None:
        self._stored = stored
        self._successors = {name: source for name, source in successors.items() if name + _INDEX in stored}
        self._skip = skip

    def __getitem__(self, name: str) -> Array:
        if name not in self._successors:
            return self._stored[name][self._skip :]
        before, exceptions = self._stored[self._successors[name]], self._stored[name + _EXCEPTIONS]
        filled = np.empty((len(before) - self._skip, *before.shape[1:]), exceptions.dtype)
        self.copy(name, slice(0, len(filled)), filled)
        return filled

    def copy(self, name: str, rows: slice, target: Array) -> None:
        start, stop = rows.start + self._skip, rows.stop + self._skip
        if name not in self._successors:
            target[:] = self._stored[name][start:stop]
            return
        before = self._stored[self._successors[name]]
        following, environments = before[start + 1 : stop + 1], before.shape[1]
        target[: len(following)] = following
        index = self._stored[name + _INDEX].astype(np.int64) - start * environments
        low, high = np.searchsorted(index, (0, (stop - start) * environments))
        flat = target.view()
        flat.shape = (len(target) * environments, *target.shape[2:])  # never a copy
        flat[index[low:high]] = self._stored[name + _EXCEPTIONS][low:high]

    def __iter__(self) -> Iterator[str]:
        dropped = {name + kind for name in self._successors for kind in (_INDEX, _EXCEPTIONS)}
        return iter([*(name for name in self._stored if name not in dropped), *self._successors])

    def __len__(self) -> int:
        return len(self._stored) - len(self._successors)


def join(segments: Sequence[Mapping[str, Array]], successors: Mapping[str, str]) -> dict[str, Array]:
    """Segments that follow each other, each as :func:`drop_successors` made it, as if it had made them one.

    :raises ValueError: their columns differ
    """
    names = segments[0].keys()
    if any(segment.keys() != names for segment in segments):
        raise ValueError(f"columns differ: {sorted({name for segment in segments for name in segment})}")
    out = {name: np.concatenate([segment[name] for segment in segments]) for name in names}
    for name, source in successors.items():
        before = out[source]
        rows, environments = before.shape[:2]
        begins = np.cumsum([0, *(len(segment[source]) for segment in segments[:-1])])
        index = np.concatenate(
            [
                segment[name + _INDEX] + np.int64(begin * environments)
                for segment, begin in zip(segments, begins, strict=True)
            ]
        )
        exceptions = out[name + _EXCEPTIONS]
        # A segment's last row was an exception because nothing followed it.
        kept = np.ones(len(index), dtype=bool)
        inner = np.flatnonzero(index < (rows - 1) * environments)
        following = before.reshape(rows * environments, *before.shape[2:])[index[inner] + environments]
        if len(inner):
            kept[inner] = (_as_words(exceptions[inner, None]) != _as_words(following[:, None])).any(axis=(1, 2))
        out[name + _INDEX], out[name + _EXCEPTIONS] = index[kept].astype(np.uint32), exceptions[kept]
    return out


def _as_words(array: Array) -> Array:
    """Of the widest unsigned type that fits, for the comparison's sake: (rows, environments, words)."""
    rows, environments = array.shape[:2]
    flat = np.ascontiguousarray(array).reshape(rows, environments, -1)
    size = flat.shape[2] * flat.itemsize
    width = next(width for width in (8, 4, 2, 1) if size % width == 0)
    return flat.view(np.uint8).view(f"u{width}")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
