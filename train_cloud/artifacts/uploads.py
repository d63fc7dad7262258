"""``s3_manifest.json``: what lies in the store for a folder of results, file by file, with digests.

It is swapped by its e-tag, as the run's head is: a writer that was replaced can write neither it nor, because every
upload is announced in it first, much else.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from train_cloud.errors import CorruptCheckpoint, ObjectMissing
from train_cloud.store import ObjectStore

MANIFEST = "s3_manifest.json"
_CHUNK = 4 << 20


class Upload(BaseModel):
    """One object."""

    model_config = ConfigDict(frozen=True)
    local_path: str
    """Relative to the folder, with slashes."""
    s3_key: str
    """Whole: from the bucket's root."""
    timestamp: str
    """When it was sent; ISO 8601 with a zone."""
    size_bytes: int
    sha256: str


class Uploads(BaseModel):
    """The file. The names are those that users of the predecessor parse; ``sha256``, ``updated_at``, ``pending`` and
    ``writer`` are new."""

    model_config = ConfigDict(frozen=True)
    experiment_name: str
    bucket: str
    """Empty where the store is a local folder."""
    base_prefix: str
    """Begins every ``s3_key``; ends with a slash, unless it is empty."""
    dry_run: bool = False
    uploaded_files: tuple[Upload, ...] = ()
    """In order of their keys, each once."""
    total_files: int = 0
    total_size_bytes: int = 0
    created_at: str
    updated_at: str
    pending: tuple[Upload, ...] = ()
    """Announced: until the next version of this file, the object is this one, or as it stands above, or not there."""
    writer: tuple[int, int] = (0, 0)
    """Session and restart; a lower one writes no more."""
    version: str = ""
    """Random: tells a writer whose lost reply it was."""

    def by_path(self) -> dict[str, Upload]:
        return {upload.local_path: upload for upload in self.uploaded_files}


def make(
    name: str,
    url: str,
    uploads: Iterable[Upload],
    *,
    created_at: str,
    pending: Iterable[Upload] = (),
    writer: tuple[int, int] = (0, 0),
    version: str = "",
    dry_run: bool = False,
) -> Uploads:
    """:param url: of the store that the objects lie in"""
    bucket, prefix = where(url)
    files = tuple(sorted(uploads, key=lambda upload: upload.local_path))
    return Uploads(
        experiment_name=name,
        bucket=bucket,
        base_prefix=prefix,
        dry_run=dry_run,
        uploaded_files=files,
        total_files=len(files),
        total_size_bytes=sum(upload.size_bytes for upload in files),
        created_at=created_at,
        updated_at=now(),
        pending=tuple(sorted(pending, key=lambda upload: upload.local_path)),
        writer=writer,
        version=version,
    )


def where(url: str) -> tuple[str, str]:
    """Bucket and prefix of a store's URL."""
    bucket, prefix = "", url
    if url.startswith("s3://"):
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, f"{prefix.rstrip('/')}/" if prefix else ""


def read_uploads(store: ObjectStore) -> tuple[Uploads, str] | None:
    """The manifest in a store and its e-tag; None where there is none.

    :raises CorruptCheckpoint: it is none
    """
    try:
        stored = store.get(MANIFEST)
    except ObjectMissing:
        return None
    try:
        return Uploads.model_validate_json(bytes(stored.body)), stored.etag
    except ValidationError as error:
        fault = error.errors()[0]
        where_in_it = ".".join(map(str, fault["loc"]))
        raise CorruptCheckpoint(f"{store.url}/{MANIFEST} is no manifest: {where_in_it}: {fault['msg']}") from error


def as_json(uploads: Uploads) -> bytes:
    """One object a line, so that people can read and compare it."""
    lists = {"uploaded_files": uploads.uploaded_files, "pending": uploads.pending}
    head = uploads.model_dump(mode="json", exclude=set(lists))
    lines = []
    for name in Uploads.model_fields:
        text = json.dumps(head[name]) if name in head else "[]"
        if lists.get(name):
            text = "[\n  " + ",\n  ".join(map(_line, lists[name])) + "\n ]"
        lines.append(f' "{name}": {text}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


@functools.lru_cache(maxsize=100_000)
def _line(upload: Upload) -> str:
    """Remembered: a commit waits for it, and most of them are as they were at the last."""
    return json.dumps(upload.model_dump())


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
