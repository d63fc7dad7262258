"""A local folder as an object store, with S3's conditions across processes.

An object is a file. It is written whole beside the others, flushed to disk, and renamed into place: a reader, also one
after a power cut, sees the old content or the new one. Checking a condition and renaming happen under one lock per
store, which the kernel frees when its holder dies.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import BucketMissing, ConditionFailed, ObjectMissing, StoreForbidden, StoreUnavailable
from .foreign import ignore
from .protocol import RESERVED, Body, ObjectInfo, StoredObject, check_key, check_prefix, is_key

log = logging.getLogger(__name__)

_ABANDONED = 24 * 3600.0
"""Seconds after which an unfinished file is a dead process's."""
_CHUNK = 4 << 20
"""Bytes."""
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_SAY_AFTER = 3.0
"""Seconds of waiting for another process, after which it is said."""


class FolderStore:
    """Objects as files under ``root``, which the first write creates.

    Writers of one object must open the same ``root``: the lock lies there, or above what people take home. An object
    and a folder cannot share a name.
    """

    def __init__(self, root: Path, *, retry_timeout: float) -> None:
        self.root = root.absolute()
        self._private = _private_of(self.root)
        self._lock = FileLock(self._private / "lock", timeout=retry_timeout)
        self._retry_timeout = retry_timeout
        self._swept = False

    @property
    def url(self) -> str:
        return str(self.root)

    def get(self, key: str) -> StoredObject:
        path = self._path(key)
        with self._errors(key):
            try:
                # Windows lets nobody rename over a file that is being read.
                with self._locked() if os.name == "nt" and self._private.is_dir() else contextlib.nullcontext():
                    body = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_root()
                raise ObjectMissing(f"{self.url}/{key} does not exist") from None
        return StoredObject(body, _etag(body))

    def put(self, key: str, body: Body) -> str:
        return self._write(key, body, lambda path: None)

    def create(self, key: str, body: Body) -> str:
        def absent(path: Path) -> None:
            if path.is_file():
                raise ConditionFailed(f"{self.url}/{key} exists already")

        return self._write(key, body, absent)

    def swap(self, key: str, body: Body, etag: str) -> str:
        def unchanged(path: Path) -> None:
            try:
                standing = _etag(path.read_bytes())
            except (FileNotFoundError, NotADirectoryError):
                raise ConditionFailed(f"{self.url}/{key} is gone") from None
            if standing != etag:
                raise ConditionFailed(f"{self.url}/{key} has changed since it was read")

        return self._write(key, body, unchanged)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder, _, _ = check_prefix(prefix).rpartition("/")
        found = []
        with self._errors(prefix):
            self._check_root()
            for parent, folders, names in os.walk(self.root / folder, onerror=_raise):
                if RESERVED in folders:
                    folders.remove(RESERVED)
                for path in (Path(parent, name) for name in names):
                    key = path.relative_to(self.root).as_posix()
                    if not key.startswith(prefix):
                        continue
                    if not is_key(key):
                        ignore(self.url, [key])
                        continue
                    try:
                        status = path.stat()
                    except OSError as error:
                        if error.errno not in _NOWHERE:
                            raise
                        continue  # deleted since, or a link to nowhere
                    if stat.S_ISREG(status.st_mode):
                        modified = datetime.fromtimestamp(status.st_mtime, timezone.utc)
                        found.append(ObjectInfo(key, status.st_size, modified))
        yield from sorted(found, key=lambda info: info.key)

    def within(self, folder: str) -> FolderStore:
        return FolderStore(self.root / check_key(folder), retry_timeout=self._retry_timeout)

    def folders(self, prefix: str = "") -> builtins.list[str]:
        check_prefix(prefix)
        with self._errors(prefix):
            self._check_root()
            try:
                below = sorted(path for path in (self.root / prefix).iterdir() if path.is_dir())
            except FileNotFoundError:
                return []
            there = [path.name for path in below if path.name != RESERVED and _holds_a_file(path)]
        ignore(self.url, (f"{prefix}{name}" for name in there if not is_key(name)))
        return [name for name in there if is_key(name)]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            with self._errors(key):
                self._check_root()
                if not path.is_file():
                    continue
                _make_folder(self._private)
                with self._locked():
                    path.unlink(missing_ok=True)
                    for parent in path.parents:  # in S3, too, a folder goes with its last object
                        if parent == self.root or any(parent.iterdir()):
                            break
                        parent.rmdir()
                    _flush_folder(parent)

    def clear(self) -> tuple[int, builtins.list[str]]:
        left: builtins.list[str] = []

        def keep(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
            if not isinstance(error[1], FileNotFoundError):
                left.append(f"{ascii(Path(path).relative_to(self.root).as_posix())[1:-1]} ({error[1]})")

        with self._errors(""):
            self._check_root()
            if not self.root.is_dir():
                return 0, left
            there = sum(len(names) for parent, _, names in os.walk(self.root) if RESERVED not in Path(parent).parts)
            with self._locked() if self._private.is_dir() else contextlib.nullcontext():
                for path in self.root.iterdir():
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path, onerror=keep)  # which takes a link within for what it is
                        continue
                    try:
                        path.unlink(missing_ok=True)
                    except OSError as error:
                        keep(None, str(path), (type(error), error, None))
            with contextlib.suppress(OSError):  # not empty
                self.root.rmdir()
        return max(0, there - len(left)), left

    def stream(self, key: str, chunks: Iterator[bytes]) -> str:
        return self._write(key, chunks, lambda path: None)

    def extend(self, key: str, tail: Iterator[bytes], etag: str) -> str:
        path = self._path(key)

        def unchanged(path: Path) -> None:
            # By the digest of what was copied: whoever wrote since has replaced the file.
            if copied.hexdigest() != etag or _identity(path) != before:
                raise ConditionFailed(f"{self.url}/{key} has changed since it was written, or is gone")

        def whole() -> Iterator[bytes]:
            if before is not None:
                for chunk in _chunks(path):
                    copied.update(chunk)
                    yield chunk
            yield from tail

        copied, before = hashlib.sha256(), _identity(path)
        return self._write(key, whole(), unchanged)

    def version(self, key: str, etag: str) -> Body:
        try:
            found = self.get(key)
        except ObjectMissing as error:
            raise ConditionFailed(f"{self.url}/{key} is gone") from error
        if found.etag != etag:
            raise ConditionFailed(f"{self.url}/{key} has changed since it was read")
        return found.body

    def tail(self, key: str, start: int) -> Body:
        path = self._path(key)
        with self._errors(key):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                self._check_root()
                raise ObjectMissing(f"{self.url}/{key} does not exist") from None

    def _write(self, key: str, body: Body | Iterator[bytes], check: Callable[[Path], None]) -> str:
        path = self._path(key)
        digest = hashlib.sha256()
        with self._errors(key):
            _make_folder(self._private)
            self._sweep()
            unfinished = self._private / uuid.uuid4().hex
            try:
                with unfinished.open("xb") as file:
                    for chunk in body if isinstance(body, Iterator) else (body,):
                        file.write(chunk)
                        digest.update(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                with self._locked():
                    check(path)
                    _make_folder(path.parent)
                    unfinished.replace(path)
                _flush_folder(path.parent)
            finally:
                unfinished.unlink(missing_ok=True)
        return digest.hexdigest()

    def _locked(self) -> contextlib.AbstractContextManager[object]:
        if self._retry_timeout > _SAY_AFTER:
            with contextlib.suppress(Timeout):
                return self._lock.acquire(timeout=_SAY_AFTER, poll_interval=0.005)
            log.warning(
                "waiting for another process to release %s, for %.0f s in all",
                self._lock.lock_file,
                self._retry_timeout,
            )
        return self._lock.acquire(poll_interval=0.005)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        if self._swept:
            return
        self._swept = True
        for path in self._private.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name != "lock" and time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _check_root(self) -> None:
        """A missing folder is an empty store; a file in its place, or above it, is none."""
        for path in (self.root, *self.root.parents):
            if path.exists():
                if not path.is_dir():
                    raise BucketMissing(f"{self.url} cannot be a folder: {path} is a file")
                return

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise StoreUnavailable(f"{self.url}: another process holds its lock, {error.lock_file}") from error
        except PermissionError as error:
            raise StoreForbidden(f"{self.url}/{key}: {error}; give this user the right to it") from error
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            self._check_root()
            raise StoreForbidden(f"{self.url}/{key}: a file and a folder cannot have the same name: {error}") from error
        except OSError as error:
            raise StoreUnavailable(f"{self.url}/{key}: {error}") from error


def _private_of(root: Path) -> Path:
    """Where a store keeps its lock and its unfinished files: not among a run's artifacts, or an experiment's files,
    which people take home as they are.
    """
    if root.name == "artifacts" and root.parent.parent.name == "runs":
        return root.parent / RESERVED
    if root.parent.name == "experiments":
        return root.parent.parent / RESERVED
    return root / RESERVED


def _etag(body: Body) -> str:
    return hashlib.sha256(body).hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    """Changes when another file is renamed to this name."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_ino, status.st_mtime_ns


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _make_folder(path: Path) -> None:
    """With its parents, each durable in the one above it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _flush_folder(path.parent)


def _flush_folder(path: Path) -> None:
    """Make renames within ``path`` durable. Windows has no such call."""
    if os.name != "nt":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _holds_a_file(folder: Path) -> bool:
    for _, folders, names in os.walk(folder, onerror=_raise):
        if names:
            return True
        folders[:] = [name for name in folders if name != RESERVED]
    return False
