"""Append-only buffers of the user's own: of each checkpoint only the rows travel that are new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from train_cloud.errors import InputError
from train_cloud.snapshot import Array, Columns, Rows


@runtime_checkable
class Appended(Protocol):
    """A ring of rows: row ``n``, counted from the first one that was ever added, lies at ``n % capacity``. Rows never
    change once they are added.
    """

    columns: Mapping[str, Any]
    """Arrays or CPU tensors of one length, the capacity, each with the rows along its first axis."""
    count: int
    """Rows that were ever added; set when a checkpoint is restored."""


def check(name: str, buffer: Any) -> None:
    """:raises InputError: it is no such buffer"""
    field, kind = f"rows.{name}", type(buffer).__name__
    columns = getattr(buffer, "columns", None)
    if not isinstance(columns, Mapping) or not columns or not isinstance(getattr(buffer, "count", None), int):
        fix = "give it columns, arrays by name with a row for each entry, and count, the number of rows ever added"
        raise InputError(field, kind, fix)
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or not lengths.pop():
        raise InputError(field, kind, "its columns have different lengths: give each a place for every row")
    for column_name, column in columns.items():
        if isinstance(column, torch.Tensor) and column.is_cpu and column.dtype is not torch.bfloat16:
            continue
        if not isinstance(column, np.ndarray) or column.dtype.hasobject:
            raise InputError(f"{field}.{column_name}", type(column).__name__, "give a NumPy array or a CPU tensor")


def rows_of(buffer: Appended, first: int) -> Rows:
    """Rows from ``first`` on, of those that are alive: copies, as the loop goes on to add."""
    columns = {name: _array(column) for name, column in buffer.columns.items()}
    capacity, last = len(next(iter(columns.values()))), buffer.count
    first = max(first, last - capacity)
    chunks = []
    while first < last:
        stop = min(last, (first // capacity + 1) * capacity)
        at = first % capacity
        chunks.append((first, {name: column[at : at + stop - first].copy() for name, column in columns.items()}))
        first = stop
    begin = chunks[0][0] if chunks else last
    return Rows(begin, last, capacity, chunks)


def take_rows(name: str, buffer: Appended, rows: Rows) -> None:
    """Overwrite a buffer with the rows of a checkpoint.

    :raises InputError: it has another capacity
    """
    columns = {key: _array(column) for key, column in buffer.columns.items()}
    capacity = len(next(iter(columns.values())))
    if capacity != rows.capacity:
        raise InputError(f"rows.{name}", capacity, f"this run was begun with room for {rows.capacity} rows")
    for first, chunk in rows.chunks:
        count = len(next(iter(chunk.values())))
        start = first
        while start < first + count:
            stop = min(first + count, (start // capacity + 1) * capacity)
            at, among = start % capacity, slice(start - first, stop - first)
            for key, column in columns.items():
                target = column[at : at + stop - start]
                if isinstance(chunk, Columns):
                    chunk.copy(key, among, target)
                else:
                    target[:] = chunk[key][among]
            start = stop
    buffer.count = rows.last


def _array(column: Any) -> Array:
    return column.numpy() if isinstance(column, torch.Tensor) else column
