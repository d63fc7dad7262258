"""``train-cloud upload``: a folder of data to S3; what is there already does not travel again."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from train_cloud.data.source import expanded
from train_cloud.errors import InputError
from train_cloud.store import open_store
from train_cloud.store.folder import FolderStore
from train_cloud.store.protocol import is_key

_AT_ONCE = 16
_PART = 16 << 20
"""Bytes of the parts in which the store sends what is larger: the e-tag of such an object is made of theirs."""


class Uploaded(NamedTuple):
    files: int
    sent: int
    sent_bytes: int
    kept: int
    """files that were there already, byte for byte"""


def upload(folder: Path, url: str, *, each: Callable[[int, int, int], None] = lambda files, of, size: None) -> Uploaded:
    """Send all files below ``folder`` to the same names below ``url``. Repeated, it goes on where it broke off.

    Hidden files are left out, and nothing is deleted.

    :param each: called with the files that are done, how many there are, and the bytes sent so far
    :raises InputError: there is nothing to send
    """
    store = open_store(expanded(url))
    if isinstance(store, FolderStore) and store.root.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "URL", url, "it lies inside of the folder, and would be sent into itself: name a place outside"
        )
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    names = {name: path for name, path in names.items() if not name.startswith(".") and "/." not in name}
    wrong = [name for name in names if not is_key(name)]
    if wrong:
        raise InputError("DIR", wrong[0], "this name is no key of an object: rename it")
    if not names:
        raise InputError("DIR", str(folder), "there are no files in it")
    there = {info.key: (info.size, info.etag.strip('"')) for info in store.list()}
    lock = threading.Lock()
    sent = sent_bytes = done = 0

    def send(name: str, path: Path) -> None:
        nonlocal sent, sent_bytes, done
        body = path.read_bytes()
        if there.get(name) is not None and _is_there(store, name, there[name], body):
            new = 0
        else:
            store.put(name, body)
            new = len(body)
        with lock:
            done += 1
            sent += bool(new) or there.get(name) is None
            sent_bytes += new
            each(done, len(names), sent_bytes)

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        waiting = [threads.submit(send, name, path) for name, path in names.items()]
        try:
            for one in as_completed(waiting):
                one.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return Uploaded(len(names), sent, sent_bytes, len(names) - sent)


def _is_there(store: object, name: str, found: tuple[int, str], body: bytes) -> bool:
    size, etag = found
    if size != len(body):
        return False
    if isinstance(store, FolderStore):
        return (store.root / name).read_bytes() == body
    return etag == etag_of(body)


def etag_of(body: bytes) -> str:
    """What S3 calls a body that our store has sent: its MD5, or where it went in parts, that of the parts' MD5s."""
    if len(body) <= _PART:
        return hashlib.md5(body, usedforsecurity=False).hexdigest()
    parts = [hashlib.md5(body[at : at + _PART], usedforsecurity=False).digest() for at in range(0, len(body), _PART)]
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"
