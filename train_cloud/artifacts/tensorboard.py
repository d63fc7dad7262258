"""TensorBoard event files that stay one curve over all sessions: cut at the head, synced with the store.

Each session writes files of its own and never touches an earlier one's, so that files only ever grow, until ``cut``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from train_cloud.whole_file import UNFINISHED, replacing

from ..errors import StoreUnavailable
from ..run.layout import TENSORBOARD
from ..store import ObjectStore

_FRAME = 16
"""Bytes around each record (length and two checksums: tensorboard's RecordWriter)."""


def cut(folder: Path, timesteps: int) -> bool:
    """Remove what was logged beyond ``timesteps``, and what a later session has logged anew.

    Events of the given step stay, and every file's version and session records. A torn last record, as a kill leaves
    it, goes. A later file says from where on it logs anew by the START that ``SummaryWriter(purge_step=...)`` writes:
    TensorBoard hides an earlier file's events from there on, here they go.

    :return: whether a file changed
    """
    changed = False
    limits: dict[Path, int] = {}
    for path in reversed(event_files(folder)):
        limit = later = limits.get(path.parent, timesteps)
        kept, size = [], 0
        for record, event in _read(path):
            kind = event.WhichOneof("what")
            if kind == "session_log" and event.session_log.status == SessionLog.START:
                later = min(later, event.step - 1)
            if event.step <= limit or kind in ("file_version", "session_log"):
                kept.append(record)
                size += len(record) + _FRAME
        limits[path.parent] = later
        if size != path.stat().st_size:
            _replace(path, kept)
            changed = True
    return changed


def whole_records(path: Path, start: int) -> bytes:
    """Those from byte ``start`` on, which one begins at. One that is being written stays out."""
    with path.open("rb") as file:
        file.seek(start)
        body = file.read()
    end = 0
    while True:
        after = end + int.from_bytes(body[end : end + 8], "little") + _FRAME
        if after > len(body):
            return body[:end]
        end = after


def extend(path: Path, more: bytes) -> None:
    """Append those of these records that the file lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    there = [record for record, _ in _read(path)] if path.exists() else []
    unfinished = path.with_name(UNFINISHED)
    unfinished.write_bytes(more)
    known = set(there)
    missing = [record for record, _ in _read(unfinished) if record not in known]
    if missing or not there:
        _replace(path, [*there, *missing])
    else:
        unfinished.unlink()


def write_scalars(path: Path, timesteps: int, scalars: Mapping[str, float]) -> None:
    """One event file with these scalars and nothing else, in the place of one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    now = time.time()
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    events.append(Event(wall_time=now, step=timesteps, summary=Summary(value=values)))
    _replace(path, [event.SerializeToString() for event in events])


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar as logged: tag → (timesteps, value), in the order of sessions, with nothing hidden or sorted."""
    scalars: dict[str, list[tuple[int, float]]] = {}
    for path in event_files(folder):
        for _, event in _read(path):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    number = value.simple_value
                elif value.metadata.plugin_data.plugin_name == "scalars" and value.HasField("tensor"):
                    number = tensor_util.make_ndarray(value.tensor).item()
                else:
                    continue
                scalars.setdefault(value.tag, []).append((event.step, number))
    return scalars


def pull(store: ObjectStore, folder: Path) -> dict[str, int]:
    """Download the event files of the sessions before. A local one that is longer than the stored one stays.

    :return: file name → bytes in the store
    :raises StoreUnavailable: an object is not as long as it was listed: somebody is writing it
    """
    stored = {}
    for info in store.list(TENSORBOARD):
        name = info.key.removeprefix(TENSORBOARD)
        stored[name] = info.size
        path = folder / name
        if path.is_file() and path.stat().st_size > info.size:
            continue
        body = store.get(info.key).body
        if len(body) != info.size:
            raise StoreUnavailable(f"{store.url}/{info.key} has {len(body)} bytes, and was listed with {info.size}")
        with replacing(path, under=UNFINISHED) as file:
            file.write(body)
    return stored


def event_files(folder: Path) -> list[Path]:
    """In the order in which they were written, by the session in their name where there is one: clocks differ."""

    def order(path: Path) -> tuple[Path, int, str]:
        session = re.search(r"\.session-(\d+)$", path.name)
        return path.parent, int(session[1]) if session else -1, path.name

    return sorted((path for path in folder.rglob("*tfevents*") if path.is_file()), key=order)


def _read(path: Path) -> Iterator[tuple[bytes, Event]]:
    """The records of a file up to its end or the first damaged one."""
    for record in RawEventFileLoader(str(path)).Load():
        yield record, Event.FromString(record)


def _replace(path: Path, records: list[bytes]) -> None:
    with replacing(path, lasting=True, under=UNFINISHED) as file:  # TensorBoard reads names with "tfevents" only
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
