"""A folder of results, kept in a store while it is being written.

Only what changed travels. A large file that has only grown is extended in the store by what is new. Every upload is
announced in the manifest first (``pending``): at any instant, also when the process dies, each object is one that
the manifest names. A file that is written in one go belongs under another name first, ending in ``.unfinished``, and is
renamed when it is whole.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from train_cloud.artifacts.uploads import MANIFEST, Upload, Uploads, as_json, make, now, read_uploads, where
from train_cloud.errors import ConditionFailed, CorruptCheckpoint, Fenced, InputError, ObjectMissing
from train_cloud.run import layout
from train_cloud.store import FileStore, ObjectStore, open_store
from train_cloud.store.protocol import RESERVED
from train_cloud.whole_file import UNFINISHED, write_whole

if TYPE_CHECKING:
    from hashlib import _Hash

FOLDER = "artifacts"
"""Of a run, below its state directory: what lies in it reaches the store."""

_CHUNK = 4 << 20
_IN_MEMORY = 16 << 20
"""Bytes; larger files are read twice, once for their digest and once while they travel."""
_LARGE = 8 << 20
"""Bytes from which on a file that grew is extended; S3 copies no part of less than 5 MiB."""
_BATCH_FILES, _BATCH_BYTES = 100, 32 << 20
"""Announced together; the bytes are those held in memory."""
_RACY_NS = 2_000_000_000
"""A file that changed as recently as this may change again without its times showing it."""

log = logging.getLogger(__name__)


class _Seen(NamedTuple):
    """A file on disk as it was when its digest was taken."""

    size: int
    modified_ns: int
    settled: bool


class _Stored(NamedTuple):
    """An object as this process wrote or read it."""

    etag: str
    size: int
    sha256: str


@dataclass(frozen=True)
class _File:
    """A file that differs from its object."""

    path: Path
    upload: Upload
    seen: _Seen
    body: bytes | None
    """None where it is too large to be held."""
    grown_from: _Stored | None
    """The object whose content it begins with, where only the rest needs to travel."""


class _Changed(Exception):
    """The file is another one than a moment ago."""


class _OutOfTime(Exception):
    """Something more urgent waits for the line, or the time that was given is over."""


class Sync:
    """One folder and where it goes. Safe to be called from several threads.

    :param store: begins where the folder's files are to lie
    :param name: ``experiment_name`` in the manifest
    :param writer: session and restart; whoever has a higher one replaces this writer for good
    :param alone: nothing else lies there, so that the manifest is to name every object
    :param yields: asked before each piece of a file: something more urgent needs the line, so that this is to end
    """

    def __init__(
        self,
        store: ObjectStore,
        folder: Path,
        *,
        name: str,
        writer: tuple[int, int] = (0, 0),
        alone: bool = True,
        yields: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._folder, self._name = store, folder, name
        self._writer, self._alone, self._yields = writer, alone, yields
        self._prefix = where(store.url)[1]
        self._lock = threading.Lock()
        """Over the four tables."""
        self._writing = threading.Lock()
        """Over the manifest in the store."""
        self._objects: dict[str, threading.Lock] = {}
        """Over each object."""
        self._passing = threading.RLock()
        """Over a pass through the folder."""
        self._uploads: dict[str, Upload] = {}
        self._pending: dict[str, Upload] = {}
        self._seen: dict[str, _Seen] = {}
        self._stored: dict[str, _Stored] = {}
        self._created = now()
        self._etag: str | None = None
        self._written: Uploads | None = None
        self._begun = False
        self._root = folder.resolve()
        self._left_out: set[str] = set()
        self.failed: dict[str, str] = {}
        """What the last pass could not read or send, and why."""
        self.sent_bytes = 0
        """That travelled so far, without manifests."""

    # -------------------------------------------------------------------------------------------------- both directions

    def begin(self) -> None:
        """Take the manifest over, and see that it is what lies in the store. Needed once, before anything else.

        :raises Fenced: a newer writer has it
        :raises CorruptCheckpoint: it cannot be read, and may be somebody else's
        """
        self._read()
        if self._writer != (0, 0) or self._written is not None:
            self._write()  # from here on, who wrote before cannot announce anything
        if self.check():
            self._write()
        self._begun = True

    def check(self) -> list[str]:
        """Compare manifest and listing, and mend the manifest: what died in mid-upload may have left either version.

        :return: names of the files whose entry may have changed; the next pass writes them down
        """
        with self._passing:
            return self._check()

    def _check(self) -> list[str]:
        with self._lock:  # before the listing: what is sent meanwhile may be in neither or in both
            known, pending = dict(self._uploads), dict(self._pending)
        found = {info.key: info.size for info in self._store.list() if info.key != MANIFEST}
        changed = []
        for name, size in found.items():
            upload = known.get(name)
            if upload is None and name not in pending and not self._alone:
                continue
            if upload is None or upload.size_bytes != size or name in pending:
                changed.append(name)
                with self._object(name):
                    self._adopt(name)
        for name in known.keys() - found.keys():
            with self._lock:
                self._uploads.pop(name, None)
            changed.append(name)
        with self._lock:
            for name, upload in pending.items():
                if self._pending.get(name) is upload:
                    del self._pending[name]
        return changed

    def restore(self, wanted: Callable[[str], bool]) -> list[str]:
        """Write the wanted files that are not on this disk; their names."""
        with self._lock:
            known = dict(self._uploads)
        restored = []
        for name, upload in known.items():
            path = self._folder / name
            if path.exists() or not wanted(name):
                continue
            body = self._store.get(name)
            stored = _Stored(body.etag, len(body.body), hashlib.sha256(body.body).hexdigest())
            if stored.sha256 != upload.sha256:
                log.warning("%s is not what the manifest says of it: it is taken as it is", name)
            write_whole(path, body.body)
            self._note(name, stored, path)
            restored.append(name)
        return restored

    def names(self) -> list[str]:
        """Of the files in the store."""
        with self._lock:
            return sorted(self._uploads)

    def sent(self, name: str) -> int:
        """Bytes of a file that are in the store; 0 where it is not."""
        with self._lock:
            upload = self._uploads.get(name)
        return upload.size_bytes if upload is not None else 0

    def total(self) -> tuple[int, int]:
        """Files and bytes in the store."""
        with self._lock:
            return len(self._uploads), sum(upload.size_bytes for upload in self._uploads.values())

    # ------------------------------------------------------------------------------------------------------- uploading

    def everything(self, *, until: float = float("inf"), urgent: bool = False) -> bool:
        """Send what changed since, the smallest first.

        :param until: on ``time.monotonic()``: begin no other piece after it
        :param urgent: do not yield
        :return: whether all is sent that could be read
        :raises Fenced: a newer writer has the manifest
        :raises StoreError: the store does not take it; what was sent until then is sent
        """

        def over() -> bool:
            return time.monotonic() > until or (not urgent and self._yields())

        wait = -1.0 if until == float("inf") else max(0.0, until - time.monotonic())
        if not self._passing.acquire(timeout=wait):
            return False
        try:
            return self._pass(over)
        finally:
            self._passing.release()

    def _pass(self, over: Callable[[], bool]) -> bool:
        if not self._begun:
            self.begin()
        self.failed = {}
        try:
            for batch in self._batches(over):
                if over():
                    raise _OutOfTime
                with self._lock:
                    self._pending.update({file.upload.local_path: file.upload for file in batch})
                self._write()
                for file in batch:
                    with self._object(file.upload.local_path):
                        if self._pending.get(file.upload.local_path) is file.upload:  # else somebody sent a newer one
                            self._send(file, over)
        except _OutOfTime:
            return False
        self._write()
        return not self.failed

    def now(self, paths: Iterable[Path]) -> None:
        """Send these small files as they are now, and wait for nothing else that is being sent."""
        if not self._begun:
            self.begin()
        taken: list[threading.Lock] = []
        files: list[_File] = []
        try:
            for path in paths:
                lock = self._object(self._name_of(path))
                lock.acquire()
                taken.append(lock)
                file = self._look(path)
                if file is not None:
                    files.append(file)
            if files:
                with self._lock:
                    self._pending.update({file.upload.local_path: file.upload for file in files})
                self._write()
            for file in files:
                self._send(file, lambda: False)
        finally:
            for lock in taken:
                lock.release()

    def forget(self, names: Iterable[str]) -> None:
        """Delete objects, by name, that are needed no longer."""
        with self._lock:
            gone = [name for name in names if self._uploads.pop(name, None) is not None]
            for name in gone:
                self._pending.pop(name, None)
                self._stored.pop(name, None)
                self._seen.pop(name, None)
        if gone:
            self._write()
            self._store.delete(gone)

    def plan(self) -> Uploads:
        """What :meth:`everything` would send, as a manifest with ``dry_run``; nothing is written."""
        self._read()
        self.failed = {}
        files = [file.upload for batch in self._batches(lambda: False) for file in batch]
        return make(self._name, self._store.url, files, created_at=self._created, dry_run=True)

    # ------------------------------------------------------------------------------------------------------ the files

    def _batches(self, over: Callable[[], bool]) -> Iterator[list[_File]]:
        batch: list[_File] = []
        held = 0
        for _, path in sorted(self._scan()):
            if over():
                raise _OutOfTime
            try:
                file = self._look(path)
            except (FileNotFoundError, _Changed):
                continue
            except (OSError, InputError) as error:
                self._fail(path, error)
                continue
            if file is None:
                continue
            batch.append(file)
            held += len(file.body or b"")
            if len(batch) >= _BATCH_FILES or held >= _BATCH_BYTES:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _scan(self) -> Iterator[tuple[int, Path]]:
        for parent, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if name != RESERVED and not name.endswith(UNFINISHED)]
            for name in folders:  # not walked into
                if Path(parent, name).is_symlink():
                    self._leave_out(Path(parent, name), "a link to a folder")
            for name in names:
                path = Path(parent, name)
                if name.endswith(UNFINISHED) or path == self._folder / MANIFEST:
                    continue
                try:
                    if not path.is_file():
                        continue
                    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(self._root):
                        self._leave_out(path, "a link that leads out of the folder")
                    else:
                        yield path.stat().st_size, path
                except OSError as error:
                    self._fail(path, error)

    def _leave_out(self, path: Path, what: str) -> None:
        """Said once of each: what a link shows is not of this folder."""
        name = path.relative_to(self._folder).as_posix()
        if name not in self._left_out:
            self._left_out.add(name)
            log.warning("%s is not sent: it is %s", name, what)

    def _fail(self, path: Path, error: Exception) -> None:
        name = path.relative_to(self._folder).as_posix()
        log.warning("%s is not sent: %s", name, error)
        self.failed[name] = str(error)

    def _object(self, name: str) -> threading.Lock:
        return self._objects.setdefault(name, threading.Lock())

    def _name_of(self, path: Path) -> str:
        name = path.relative_to(self._folder).as_posix()
        if not name.isprintable() or "\\" in name:
            raise InputError("file", name, "rename it: a key has printable characters and no backslash")
        return name

    def _look(self, path: Path) -> _File | None:
        """The file, if it differs from its object."""
        name = self._name_of(path)
        status = path.stat()
        seen = self._seen.get(name)
        if seen is not None and seen.settled and (seen.size, seen.modified_ns) == (status.st_size, status.st_mtime_ns):
            return None
        stored = self._stored.get(name)
        body: bytes | None = None
        if status.st_size <= _IN_MEMORY:
            body = path.read_bytes()
            chunks: Iterator[bytes] = iter((body,))
        else:
            chunks = _read(path, 0, status.st_size)
        hashed, begins = _digest(chunks, stored)
        size = len(body) if body is not None else status.st_size
        found = _Seen(size, status.st_mtime_ns, time.time_ns() - status.st_mtime_ns > _RACY_NS)
        upload = self._uploads.get(name)
        if upload is not None and (upload.size_bytes, upload.sha256) == (size, hashed):
            self._seen[name] = found
            return None
        growing = begins and stored is not None and stored.size >= _LARGE and isinstance(self._store, FileStore)
        new = Upload(local_path=name, s3_key=f"{self._prefix}{name}", timestamp=now(), size_bytes=size, sha256=hashed)
        return _File(path, new, found, body, stored if growing else None)

    def _send(self, file: _File, over: Callable[[], bool]) -> None:
        """The object is announced, and this thread's alone."""
        name = file.upload.local_path
        try:
            etag = self._extend(file, over) or self._put(file, over)
        except (_Changed, OSError) as error:  # not sent: the next pass sends what it has become
            with self._lock:
                if self._pending.get(name) is file.upload:
                    del self._pending[name]
            if not isinstance(error, _Changed | FileNotFoundError):
                self._fail(file.path, error)
            return
        with self._lock:
            self._uploads[name] = file.upload
            self._seen[name] = file.seen
            self._stored[name] = _Stored(etag, file.upload.size_bytes, file.upload.sha256)
            if self._pending.get(name) is file.upload:
                del self._pending[name]

    def _extend(self, file: _File, over: Callable[[], bool]) -> str | None:
        before = file.grown_from
        if before is None or not isinstance(self._store, FileStore):
            return None
        try:
            return self._store.extend(file.upload.local_path, self._pieces(file, before.size, over), before.etag)
        except ConditionFailed:
            return None

    def _put(self, file: _File, over: Callable[[], bool]) -> str:
        name = file.upload.local_path
        if file.body is not None:
            if over():
                raise _OutOfTime
            self.sent_bytes += len(file.body)
            return self._store.put(name, file.body)
        pieces = self._pieces(file, 0, over)
        return (
            self._store.stream(name, pieces)
            if isinstance(self._store, FileStore)
            else self._store.put(name, b"".join(pieces))
        )

    def _pieces(self, file: _File, start: int, over: Callable[[], bool]) -> Iterator[bytes]:
        """From ``start`` on, if the whole is still what was announced."""
        size = file.upload.size_bytes
        hashed = hashlib.sha256()
        for chunk in _read(file.path, 0, start) if file.body is None else (file.body[:start],):
            hashed.update(chunk)
        for chunk in _read(file.path, start, size) if file.body is None else iter((file.body[start:],)):
            if over():
                raise _OutOfTime
            hashed.update(chunk)
            self.sent_bytes += len(chunk)
            yield chunk
        if hashed.hexdigest() != file.upload.sha256:
            raise _Changed

    def _adopt(self, name: str) -> None:
        """Enter an object as it is."""
        try:
            body = self._store.get(name)
        except ObjectMissing:
            with self._lock:
                self._uploads.pop(name, None)
            return
        size, hashed = len(body.body), hashlib.sha256(body.body).hexdigest()
        with self._lock:
            for upload in (self._uploads.get(name), self._pending.get(name)):
                if upload is not None and (upload.size_bytes, upload.sha256) == (size, hashed):
                    self._uploads[name] = upload
                    break
            else:
                self._uploads[name] = Upload(
                    local_path=name, s3_key=f"{self._prefix}{name}", timestamp=now(), size_bytes=size, sha256=hashed
                )
            self._seen.pop(name, None)
            self._stored[name] = _Stored(body.etag, size, hashed)

    def _note(self, name: str, stored: _Stored, path: Path) -> None:
        status = path.stat()
        with self._lock:
            before = self._uploads[name]
            self._uploads[name] = before.model_copy(update={"size_bytes": stored.size, "sha256": stored.sha256})
            self._stored[name] = stored
            self._seen[name] = _Seen(status.st_size, status.st_mtime_ns, False)

    # --------------------------------------------------------------------------------------------------- the manifest

    def _standing(self) -> tuple[Uploads, str] | None:
        """The manifest that stands there. Where all is this folder's, one that is damaged is written anew from what
        there is; elsewhere it may be somebody else's.
        """
        try:
            return read_uploads(self._store)
        except CorruptCheckpoint as error:
            if not self._alone:
                raise
            log.warning("%s: it is written anew", error)
        try:
            etag = self._store.get(MANIFEST).etag
        except ObjectMissing:
            return None
        return make(self._name, self._store.url, (), created_at=self._created), etag

    def _read(self) -> None:
        read = self._standing()
        if read is None:
            return
        found, self._etag = read
        if found.writer > self._writer:
            raise Fenced(f"{self._store.url}: session {found.writer[0]} sends its artifacts there")
        with self._lock:
            self._uploads, self._created = found.by_path(), found.created_at
            self._pending = {upload.local_path: upload for upload in found.pending}
        self._written = found

    def _write(self) -> None:
        """Swap in a manifest of what is known now, unless that one stands."""
        with self._writing:
            while True:
                with self._lock:
                    uploads = make(
                        self._name,
                        self._store.url,
                        self._uploads.values(),
                        created_at=self._created,
                        pending=self._pending.values(),
                        writer=self._writer,
                        version=uuid.uuid4().hex,
                    )
                if self._written is not None and _same(uploads, self._written):
                    return
                body = as_json(uploads)
                try:
                    if self._etag is None:
                        self._etag = self._store.create(MANIFEST, body)
                    else:
                        self._etag = self._store.swap(MANIFEST, body, self._etag)
                    self._written = uploads
                except ConditionFailed:
                    if not self._lost(uploads.version):
                        continue
                    self._written = uploads
                self._keep_copy(body)
                return

    def _lost(self, version: str) -> bool:
        """After a refusal: whether our own version stands after all (a reply was lost). Else what another has entered
        is entered here too.
        """
        read = self._standing()
        if read is None:
            self._etag = None
            return False
        found, self._etag = read
        if found.version == version:
            return True
        if found.writer > self._writer:
            raise Fenced(f"{self._store.url}: session {found.writer[0]} sends its artifacts there")
        with self._lock:
            for upload in (*found.uploaded_files, *found.pending):
                if self._uploads.get(upload.local_path) != upload:  # which of the two it is, check() will see
                    self._pending.setdefault(upload.local_path, upload)
                    self._stored.pop(upload.local_path, None)
        self._written = None
        return False

    def _keep_copy(self, body: bytes) -> None:
        """Beside the files, for whoever reads it there."""
        try:
            write_whole(self._folder / MANIFEST, body)
        except OSError as error:
            log.debug("%s is not kept in the folder: %s", MANIFEST, error)


def run_sync(
    run: ObjectStore, state_dir: Path, name: str, writer: tuple[int, int], *, yields: Callable[[], bool] = lambda: False
) -> Sync:
    """Of a run's artifact folder, for whoever acts for this session.

    :param run: the run's store
    :param name: the run's id
    """
    there = open_store(f"{run.url}/{layout.ARTIFACTS.rstrip('/')}")
    return Sync(there, state_dir / FOLDER, name=name, writer=writer, yields=yields)


def _same(one: Uploads, other: Uploads) -> bool:
    return (one.uploaded_files, one.pending, one.writer) == (other.uploaded_files, other.pending, other.writer)


def _digest(chunks: Iterable[bytes], before: _Stored | None) -> tuple[str, bool]:
    """SHA-256 of all, and whether it begins with the content of an earlier object."""
    hashed: _Hash = hashlib.sha256()
    at, begins = 0, False
    for chunk in chunks:
        if before is not None and at < before.size <= at + len(chunk):
            early = hashed.copy()
            early.update(chunk[: before.size - at])
            begins = early.hexdigest() == before.sha256
        hashed.update(chunk)
        at += len(chunk)
    return hashed.hexdigest(), begins and before is not None and at > before.size


def _read(path: Path, start: int, end: int) -> Iterator[bytes]:
    """A file's bytes from ``start`` to ``end``.

    :raises _Changed: it is shorter, or gone
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise _Changed from None
    with file:
        file.seek(start)
        while start < end:
            chunk = file.read(min(_CHUNK, end - start))
            if not chunk:
                raise _Changed
            yield chunk
            start += len(chunk)
