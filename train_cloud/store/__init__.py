"""Where bytes live: one protocol of six verbs, over an S3 bucket or a local folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import InputError
from .protocol import Body, FileStore, ObjectInfo, ObjectStore, StoredObject, check_key

__all__ = ["Body", "FileStore", "ObjectInfo", "ObjectStore", "StoredObject", "check_exists", "open_store"]

RETRY_TIMEOUT = 60.0
"""Seconds. Well below the two minutes of a spot interruption notice: an outage is known while there is time."""


def open_store(url: str, *, retry_timeout: float = RETRY_TIMEOUT) -> ObjectStore:
    """The store at ``url``; neither looks nor creates, so a missing bucket shows at the first verb.

    :param url: ``s3://bucket[/prefix]``, a local path (``~`` is the home folder) or ``file:///path``
    :param retry_timeout: seconds that a verb goes on trying while the store does not answer, until ``StoreUnavailable``
    :raises InputError: neither of these
    """
    if not retry_timeout > 0:
        raise InputError("retry_timeout", retry_timeout, "give a number of seconds above 0")
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3":
        from .s3 import BucketStore  # boto3 and obstore take half a second that a local run need not spend

        bucket, _, prefix = rest.partition("/")
        if not _bucket_name(bucket):
            raise InputError("store", url, "give s3://bucket/prefix with a bucket name that S3 allows")
        prefix = prefix.removesuffix("/")
        if "?" in prefix or "#" in prefix:
            raise InputError("store", url, "give s3://bucket/prefix without '?' and '#'")
        return BucketStore(bucket, check_key(prefix, "store") if prefix else "", retry_timeout=retry_timeout)

    from .folder import FolderStore

    if separator and scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.strip("/"):
            raise InputError("store", url, "give an absolute path: file:///path/to/folder")
        path = unquote(parts.path)
        folder = Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path)
    elif re.match(r"[A-Za-z][\w+.-]+:", url) or not url.strip():  # C:\runs is a folder
        raise InputError("store", url, "give s3://bucket/prefix or a local folder")
    else:
        try:
            folder = Path(url).expanduser()
        except RuntimeError:
            raise InputError("store", url, "there is no such user: give a path without '~'") from None
    if "\0" in str(folder):
        raise InputError("store", url, "give a path without NUL")
    return FolderStore(folder, retry_timeout=retry_timeout)


def check_exists(url: str, field: str = "--store") -> None:
    """For commands that read: refuse a local folder that is not there. A bucket that is not shows at the first verb.

    :raises InputError: naming ``field``
    """
    from .folder import FolderStore

    store = open_store(url)
    if isinstance(store, FolderStore) and not store.root.is_dir():
        raise InputError(field, url, f"there is no folder {store.root}: correct the path")


def _bucket_name(name: str) -> bool:
    """Amazon S3 User Guide, "General purpose bucket naming rules"."""
    return bool(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name)) and ".." not in name
