"""Bytes of a part or segment: a file in safetensors' layout, so that any reader of that opens it
(https://huggingface.co/docs/safetensors, "Format"): length of the header, JSON header, arrays without gaps. No
compression. The pickle that belongs to a part is one more array of bytes in it. What safetensors has no word for is in
the header's metadata: arrays of other types, and which arrays are objects of their own, named by their content.

Everything that touches array data runs in numpy or native code that releases the interpreter lock: a background
commit costs the training the time for which it holds that lock, so compression in a thread would cost more than it
saves.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from awscrt import checksums

from train_cloud.errors import CorruptCheckpoint
from train_cloud.snapshot import Array, Columns, Part

#: Earlier versions' parts begin so, the second with arrays that are stored elsewhere; see :func:`_former_header`.
_FORMER = (b"TRNCLD01", b"TRNCLD02")
_LENGTH = struct.Struct("<Q")
_ALIGN = 64
#: Before names that would be taken for one of the next two.
_ESCAPE = "::"
_BLOB = _ESCAPE + "blob"
_METADATA = "__metadata__"
_TYPES = {
    "|b1": "BOOL", "|u1": "U8", "|i1": "I8", "<u2": "U16", "<i2": "I16", "<f2": "F16", "<u4": "U32", "<i4": "I32",
    "<f4": "F32", "<u8": "U64", "<i8": "I64", "<f8": "F64",
}  # fmt: skip
_NUMPY = {name: dtype for dtype, name in _TYPES.items()}
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
    arrays = {name: array for name, array in part.arrays.items() if name not in part.contents}
    header: dict[str, Any] = {}
    contents = {name: (part.arrays[name].dtype.str, part.arrays[name].shape, of) for name, of in part.contents.items()}
    others = {}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only plain numbers can be stored as they are")
        kind = _TYPES.get(array.dtype.str)
        header[_escaped(name)] = {"dtype": kind or "U8", "shape": array.shape if kind else [array.nbytes]}
        if kind is None:
            others[name] = (array.dtype.str, array.shape)
    at = 0
    pieces: list[Any] = []
    for name in sorted(arrays, key=lambda name: 0 if name in others else -arrays[name].itemsize):  # each begins aligned
        array = arrays[name]
        header[_escaped(name)]["data_offsets"] = [at, at := at + array.nbytes]
        pieces.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
    header[_BLOB] = {"dtype": "U8", "shape": [len(part.blob)], "data_offsets": [at, at + len(part.blob)]}
    header[_METADATA] = {"format": "train-cloud", "numpy": json.dumps(others), "contents": json.dumps(contents)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGN)
    return memoryview(b"".join((_LENGTH.pack(len(text)), text, *pieces, part.blob)))


def _escaped(name: str) -> str:
    return _ESCAPE + name if name.startswith(_ESCAPE) or name == _METADATA else name


def unpack(body: memoryview, name: str, content: Callable[[str], memoryview] | None = None) -> Part:
    """Arrays are read-only views into ``body``.

    :param name: the object's key, for the error
    :param content: gives the content of a name
    :raises CorruptCheckpoint: not such a buffer
    """
    header, base = _header(body, name)
    data = np.frombuffer(body, np.uint8)

    def taken(dtype: str, shape: Sequence[int], begin: int, end: int) -> Array:
        return data[base + begin : base + end].view(dtype).reshape(shape)

    arrays = {key: taken(*stored) for key, stored in header.arrays.items()}
    for key, (dtype, shape, of) in header.contents.items():
        if content is None:
            raise CorruptCheckpoint(f"{name} names contents, which only a checkpoint's parts do")
        arrays[key] = np.frombuffer(content(of), np.uint8).view(dtype).reshape(shape)
    begin, end = header.blob
    contents = {key: of for key, (_, _, of) in header.contents.items()}
    return Part(arrays, bytes(body[base + begin : base + end]), contents)


def contents_of(body: memoryview, name: str) -> set[str]:
    """Names of the contents that :func:`unpack` will ask for."""
    return {of for _, _, of in _header(body, name)[0].contents.values()}


class _Header(NamedTuple):
    """What a part has, by name, in bytes from where its arrays begin.

    :ivar arrays: NumPy's type, shape, first byte and the one after the last
    :ivar contents: type, shape, and the content's name
    """

    arrays: dict[str, tuple[str, Sequence[int], int, int]]
    contents: dict[str, tuple[str, Sequence[int], str]]
    blob: tuple[int, int]


def _header(body: memoryview, name: str) -> tuple[_Header, int]:
    """And where the arrays begin."""
    if bytes(body[:8]) in _FORMER:
        return _former_header(body)
    try:
        (length,) = _LENGTH.unpack(body[: _LENGTH.size])
        found: Any = json.loads(bytes(body[_LENGTH.size : _LENGTH.size + length])) if length <= len(body) else None
        metadata = found.pop(_METADATA)
        others, contents = json.loads(metadata["numpy"]), json.loads(metadata["contents"])
        blob = tuple(found.pop(_BLOB)["data_offsets"])
        arrays = {}
        for escaped, stored in found.items():
            key = escaped.removeprefix(_ESCAPE)
            arrays[key] = *others.get(key, (_NUMPY[stored["dtype"]], stored["shape"])), *stored["data_offsets"]
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{name} is not a train-cloud part ({type(error).__name__} in its header)") from error
    return _Header(arrays, contents, blob), _LENGTH.size + length


def _former_header(body: memoryview) -> tuple[_Header, int]:
    """Of versions before 2026-11-28: magic, length, JSON, then arrays at multiples of 64 bytes and the blob."""
    (length,) = _LENGTH.unpack(body[8 : 8 + _LENGTH.size])
    start = 8 + _LENGTH.size
    header = json.loads(bytes(body[start : start + length]))
    at, size = header["blob"]
    found = _Header({}, {}, (at, at + size))
    for key, (dtype, shape, where) in header["arrays"].items():
        if isinstance(where, str):
            found.contents[key] = dtype, shape, where
        else:
            end = where + int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
            found.arrays[key] = dtype, shape, where, end
    return found, -(-(start + length) // _ALIGN) * _ALIGN


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
