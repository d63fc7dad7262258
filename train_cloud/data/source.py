"""Where the objects of a data set come from: a bucket or a folder, packed or not. What arrives is verified.

Cut connections, throttling, server errors and expired credentials are waited out. What is not what the index names
(another e-tag, gone, other bytes than the e-tag's MD5) never leaves this module.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import TypeVar

from train_cloud.data.index import PACKED, Index, Record, Shard
from train_cloud.errors import (
    ConditionFailed,
    CredentialsExpired,
    DataChanged,
    DataError,
    InputError,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from train_cloud.retry import Retry
from train_cloud.store import Body, FileStore, ObjectInfo, ObjectStore, open_store
from train_cloud.store.folder import FolderStore
from train_cloud.store.s3 import BucketStore

log = logging.getLogger(__name__)
T = TypeVar("T")

_TRY_S = 15.0
"""Seconds that one request is tried within the store, until it is said that it is waited for."""
_MD5 = re.compile(r"[0-9a-f]{32}")
_NOT_MD5_FROM = 3
"""So many objects whose e-tags S3 says are no MD5, and the rest is not asked about."""
_HASHED_AT_ONCE = 8
_SAID_EVERY_S = 10.0


class Stopped(Exception):
    """Nobody wants it any more."""


class Source:
    """The objects below a URL.

    :param url: ``s3://bucket/prefix``, a folder or ``file://``; ``$NAME`` and ``${NAME}`` are environment variables
    :param include: only keys that this glob matches (``*`` matches any characters)
    :param wait_s: how long to wait for a store that does not answer, or for new credentials
    """

    def __init__(self, url: str, *, include: str = "*", wait_s: float = 900.0) -> None:
        self.url = expanded(url)
        self._include = include
        self._wait_s = wait_s
        self._store = open_store(self.url, retry_timeout=_TRY_S)
        self._answered = False
        self._not_md5 = 0
        self._opening = threading.Lock()
        self._waiting_said = 0.0
        self.stopped = threading.Event()
        """Set: what waits ends with :class:`Stopped`."""

    @property
    def local(self) -> bool:
        return isinstance(self._store, FolderStore)

    def packed(self) -> Index | None:
        """The index that lies there, where the data set is a packed one."""
        try:
            return Index(bytes(self._waited(lambda store: store.get(PACKED)).body))
        except ObjectMissing:
            return None
        except DataError as error:
            raise DataError(f"{self.url}/{PACKED}: {error}: pack the data again") from error

    def list(self) -> Iterator[Record]:
        """What lies there now.

        :raises InputError: nothing
        """
        store = self._store
        found = _files(store, self._wanted) if isinstance(store, FolderStore) else self._objects()
        count = 0
        for record in found:
            count += 1
            yield record
        if not count:
            which = f"that match {self._include!r} " if self._include != "*" else ""
            raise InputError("url", self.url, f"there are no objects {which}below it: correct the URL")

    def stamp(self) -> str | None:
        """Changes with any file of a folder: names, sizes, times. None for a bucket: there a listing is the answer."""
        if not isinstance(self._store, FolderStore):
            return None
        digest = hashlib.sha256(self._include.encode())
        for parent, folders, names in os.walk(self._store.root):
            folders.sort()
            for name in sorted(names):
                status = os.stat(os.path.join(parent, name))  # noqa: PTH116, PTH118 - a million of them
                digest.update(f"{parent}/{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def fetch(self, key: str, size: int, etag: str) -> Body:
        """The bytes of an object, verified.

        :raises DataChanged: it is another object by now, or gone
        :raises StoreError: the store does not answer, or refuses
        """
        if isinstance(self._store, FolderStore):
            return self._read(self._store, key, size, etag)
        if size and self._not_md5 < _NOT_MD5_FROM and _MD5.fullmatch(etag):
            # One call of obstore instead of two. Which version it was, its MD5 says.
            found = self._waited(lambda store: _beginning(store, key, size))
            if found is not None and _md5(found) == etag:
                return found
        retry = Retry(self._wait_s, first_s=0.1, longest_s=10.0)
        while True:
            body = self._waited(lambda store: _version(store, key, etag))
            if len(body) == size and self._is_what_it_was(key, etag, body):
                return body
            if not retry.has_time():
                raise DataError(
                    f"{self.url}/{key}: what arrives is not what its e-tag says, however often it is asked for"
                )
            self._pause(retry, f"{key} arrived damaged")

    def fetch_shard(self, shard: Shard) -> Body:
        """A whole shard, verified, with the checksums at its end."""
        from awscrt.checksums import crc64nvme

        retry = Retry(self._wait_s, first_s=0.1, longest_s=10.0)
        while True:
            try:
                body = self._waited(lambda store: store.get(shard.name)).body
            except ObjectMissing as error:
                raise DataChanged(f"{self.url}/{shard.name} is gone: pack the data again") from error
            if crc64nvme(body) == shard.crc:
                return body
            if self.local or not retry.has_time():
                raise DataChanged(f"{self.url}/{shard.name} is not the shard that was packed: pack the data again")
            self._pause(retry, f"{shard.name} arrived damaged")

    def _wanted(self, key: str) -> bool:
        hidden = key.startswith(".") or "/." in key
        return not hidden and key != PACKED and fnmatchcase(key, self._include)

    def _objects(self) -> Iterator[Record]:
        listing = self._waited(lambda store: _first_page(store))
        for number, info in enumerate(listing, 1):
            if number % 100_000 == 0:
                log.info("listing %s: %s objects so far", self.url, f"{number:,}")
            if self._wanted(info.key):
                yield Record(info.key, info.size, info.etag.strip('"'), info.modified.timestamp())

    def _read(self, store: FolderStore, key: str, size: int, etag: str) -> bytes:
        try:
            body = (store.root / key).read_bytes()
        except FileNotFoundError as error:
            raise DataChanged(f"{self.url}/{key} is gone since the data were indexed") from error
        if len(body) != size or _md5(body) != etag:
            raise DataChanged(f"{self.url}/{key} has changed since the data were indexed")
        return body

    def _is_what_it_was(self, key: str, etag: str, body: Body) -> bool:
        if self._not_md5 >= _NOT_MD5_FROM or not _MD5.fullmatch(etag) or _md5(body) == etag:
            return True
        how = self._waited(lambda store: store.encryption(key) if isinstance(store, BucketStore) else "AES256")
        if how in ("", "AES256"):
            return False
        self._not_md5 += 1
        if self._not_md5 == _NOT_MD5_FROM:
            log.info(
                "%s is encrypted with %s: its e-tags are no MD5, and only versions and sizes are compared",
                self.url,
                how,
            )
        return True

    def _waited(self, act: Callable[[ObjectStore], T]) -> T:
        """``act`` on the store, again as long as it does not answer, or says that the credentials have expired."""
        retry = Retry(self._wait_s if self._answered else 0.0, first_s=0.5, longest_s=20.0)
        while True:
            if self.stopped.is_set():
                raise Stopped
            store = self._store
            try:
                found = act(store)
                self._answered = True
                return found
            except (StoreUnavailable, CredentialsExpired) as error:
                if not self._answered or not retry.has_time():
                    raise
                self._pause(retry, str(error))
                if isinstance(error, CredentialsExpired):
                    self._reopen(store)
            except ConditionFailed as error:
                self._answered = True
                raise DataChanged(str(error)) from error
            except StoreError:
                raise

    def _reopen(self, old: ObjectStore) -> None:
        """With whatever credentials there are by now."""
        with self._opening:
            if self._store is old:
                self._store = open_store(self.url, retry_timeout=_TRY_S)

    def _pause(self, retry: Retry, why: str) -> None:
        now = time.monotonic()
        if now - self._waiting_said > _SAID_EVERY_S:
            self._waiting_said = now
            log.warning("waiting for the data: %s", why)
        if self.stopped.wait(retry.pause_s):
            raise Stopped
        retry.pause_s = min(2 * retry.pause_s, 20.0)


def expanded(url: str, field: str = "url") -> str:
    """A URL with its environment variables put in.

    :raises InputError: one is not set
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise InputError(field, url, f"the environment variable {name} is not set: set it, or write its value")
        return os.environ[name]

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, url)


def _version(store: ObjectStore, key: str, etag: str) -> Body:
    assert isinstance(store, FileStore)
    return store.version(key, f'"{etag}"')


def _beginning(store: ObjectStore, key: str, size: int) -> Body | None:
    if not isinstance(store, BucketStore):
        return None
    try:
        return store.beginning(key, size)
    except ConditionFailed:
        return None


def _first_page(store: ObjectStore) -> Iterator[ObjectInfo]:
    """A listing whose first answer is there, so that errors come now."""
    listing = iter(store.list())
    try:
        return chain([next(listing)], listing)
    except StopIteration:
        return iter(())


def _files(store: FolderStore, wanted: Callable[[str], bool]) -> Iterator[Record]:
    """Files as a listing of S3 would show them."""
    if not store.root.is_dir():
        raise InputError("url", store.url, "there is no such folder: correct the path")
    infos = [info for info in store.list() if wanted(info.key)]
    # MD5 lets go of the interpreter for all but the smallest files.
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        digests = threads.map(lambda info: _md5((store.root / info.key).read_bytes()), infos)
        for info, digest in zip(infos, digests, strict=True):
            yield Record(info.key, info.size, digest, 0.0)  # a copy's times are another machine's: no part of the state


def _md5(body: Body) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def folder_of(url: str) -> Path | None:
    """The local folder that a URL names; None for a bucket."""
    store = open_store(url)
    return store.root if isinstance(store, FolderStore) else None
