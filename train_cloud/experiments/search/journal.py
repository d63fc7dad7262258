"""Optuna's journal on an object store: one object for each write, created only where nothing is yet.

The objects are numbered without a gap, so whoever has read them up to a number and creates the next one has written
upon exactly what it has read; of several who try, the store lets one. There is no lock that a killed process could
leave, and no half of a write: an object is there with all that was appended at once, or not at all.

Optuna's own tools read a search with it, too::

    optuna.storages.JournalStorage(Journal(open_store("s3://bucket/experiments/lr")))
"""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from train_cloud.errors import ConditionFailed, CorruptCheckpoint, ObjectMissing
from train_cloud.store import ObjectStore

FOLDER = "search/journal"
"""Below ``experiments/<name>/``."""
_IN_A_FOLDER = 1000
"""So that looking for what is new lists no more than so many names."""
_AT_ONCE = 16


class Overtaken(Exception):
    """Somebody else has written since the journal was read: nothing was written, read again and decide again."""


class Journal(BaseJournalBackend):
    """All processes that have opened the same store see the same records in the same order. Thread-safe.

    :param store: of the experiment, ``experiments/<name>/``
    :raises StoreError: of any method
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._objects = 0
        """How many were read."""
        self._records: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] | None = None
        """Of the transaction under way."""

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Records from this number on. Within a transaction nothing of others is new."""
        with self._lock:
            if self._pending is None:
                self._read()
            return [*self._records, *(self._pending or ())][log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append these, one directly after the other, behind whatever is there by then."""
        with self._lock:
            if self._pending is not None:
                self._pending += _as_stored(logs)
                return
            if not logs:
                return
            while not self._write(logs):
                self._read()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is appended within is one object, which is written at the end.

        :raises Overtaken: nothing was written, as somebody else has written since the beginning
        """
        with self._lock:
            self._read()
            self._pending = []
            try:
                yield
                pending = self._pending
            finally:
                self._pending = None
            if pending and not self._write(pending):
                raise Overtaken

    @property
    def is_empty(self) -> bool:
        """Whether nobody has written anything."""
        with self._lock:
            self._read()
            return not self._records

    def _write(self, logs: list[dict[str, Any]]) -> bool:
        """:return: whether these are the next ones now"""
        key, written_by = _key(self._objects), uuid.uuid4().hex
        body = json.dumps({"written_by": written_by, "records": logs}).encode()
        try:
            self._store.create(key, body)
        except ConditionFailed:
            # The reply to our own may have been lost.
            if self._get(self._objects)["written_by"] != written_by:
                return False
        self._objects += 1
        self._records += _as_stored(logs)
        return True

    def _read(self) -> None:
        """What others have written since."""
        while True:
            first = self._objects
            folder = _key(first).rpartition("/")[0] + "/"
            there = {info.key for info in self._store.list(folder)}
            end = (first // _IN_A_FOLDER + 1) * _IN_A_FOLDER
            # A listing may have seen a later one and missed one that was written meanwhile; `_get` says if it is gone.
            last = max((number for number in range(first, end) if _key(number) in there), default=first - 1)
            new = range(first, last + 1)
            if len(new) > 1:
                with ThreadPoolExecutor(_AT_ONCE) as threads:
                    found = list(threads.map(self._get, new))
            else:
                found = [self._get(number) for number in new]
            for one in found:
                self._records += one["records"]
            self._objects += len(found)
            if self._objects < end:
                return

    def _get(self, number: int) -> dict[str, Any]:
        key = _key(number)
        try:
            found = json.loads(bytes(self._store.get(key).body))
        except ObjectMissing as error:
            raise CorruptCheckpoint(f"{error}: somebody deletes the search's journal") from error
        except ValueError as error:
            raise CorruptCheckpoint(f"{self._store.url}/{key} is no record of a search: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("records"), list) or "written_by" not in found:
            raise CorruptCheckpoint(f"{self._store.url}/{key} is no record of a search: restore it")
        return found


def _key(number: int) -> str:
    return f"{FOLDER}/{number // _IN_A_FOLDER:06d}/{number:09d}.json"


def _as_stored(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As everybody else will read them: enumerations are numbers there."""
    found: list[dict[str, Any]] = json.loads(json.dumps(logs))
    return found
