"""What a job is told to do: one object in the store, named by its digest, and the user's code, named by its own.

The launch writes both and the job reads them, so that what is trained is what was launched, whatever has changed since
on the machine that launched it. Nothing of it may be written by the job's role.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from train_cloud.config import RunFile
from train_cloud.errors import ConditionFailed, CorruptCheckpoint, ObjectMissing
from train_cloud.run import layout
from train_cloud.store import ObjectStore

#: As Terraform lays it out for workers of EC2 (terraform/storage.tf): the user's files, and a listing, written last.
_CODE, _USER, _SUMS = "code/", "user/", "SHA256SUMS"
_PARALLEL = 8


class Launched(BaseModel):
    """What one job trains, as it was launched."""

    model_config = ConfigDict(frozen=True)

    command: tuple[str, ...]
    """Of `train-cloud`, before the file's name: ``train``, or ``pipeline run``."""
    main: str
    """Which of ``files`` it is given."""
    files: Mapping[str, str]
    """Name → text: run file, or pipeline file with its run files."""
    run_ids: tuple[str, ...]
    """The runs that it trains, in this order."""
    overrides: Mapping[str, Any] = Field({})
    """Keys of the run file with their values, as given with ``--set``."""
    code: str | None = None
    """Digest of the user's code; None where there is none."""
    options: tuple[str, ...] = ()
    machine: Mapping[str, Any] = Field({})
    """What a session's start says of its machine: ``instance_type``, ``price`` and the like."""

    @property
    def several(self) -> bool:
        """Whether it is a pipeline, whose own engine says when all is over, and counts the attempts at each session."""
        return self.command[0] != "train"


def put_launch(root: ObjectStore, folder: str, launched: Launched) -> str:
    """Write it, and return its key below the store's root.

    :param folder: of the run, relative to the root
    """
    body = json.dumps(launched.model_dump(mode="json"), sort_keys=True, indent=1).encode()
    key = f"{folder}/{layout.launch_key(hashlib.sha256(body).hexdigest())}"
    with contextlib.suppress(ConditionFailed):  # the same has been launched before
        root.create(key, body)
    return key


def read_launch(root: ObjectStore, key: str) -> Launched:
    """:raises CorruptCheckpoint: it is gone, or something else than was launched"""
    try:
        body = bytes(root.get(key).body)
        if hashlib.sha256(body).hexdigest() != PurePosixPath(key).stem:
            raise ValueError("its SHA-256 is another one than its name says")
        return Launched.model_validate_json(body)
    except (ObjectMissing, ValueError, ValidationError) as error:
        raise CorruptCheckpoint(f"{root.url}/{key} is not what was launched: {error}: launch it again") from error


def put_code(root: ObjectStore, config: RunFile) -> str | None:
    """Upload the user's code where it is not there yet.

    :return: its digest; None where there is no code folder
    :raises InputError: the folder cannot be read
    """
    folder, digests = config.code.folder, config.code.digests()
    if folder is None:
        return None
    sums = "".join(f"{digest}  {_USER}{path}\n" for path, digest in sorted(digests.items())).encode()
    name = hashlib.sha256(sums).hexdigest()
    prefix = f"{_CODE}{name}/"
    if next(iter(root.list(f"{prefix}{_SUMS}")), None) is None:
        with ThreadPoolExecutor(_PARALLEL) as threads:
            list(threads.map(lambda path: root.put(f"{prefix}{_USER}{path}", (folder / path).read_bytes()), digests))
        root.put(f"{prefix}{_SUMS}", sums)
    return name


def fetch_code(root: ObjectStore, digest: str, into: Path) -> None:
    """Bring the user's code into a folder, which is made.

    :raises CorruptCheckpoint: a file of it is gone, or another one than was launched
    """
    prefix = f"{_CODE}{digest}/"
    into.mkdir(parents=True, exist_ok=True)

    def fetch(line: str) -> None:
        expected, _, path = line.partition("  ")
        key = f"{prefix}{path}"
        try:
            body = bytes(root.get(key).body)
        except ObjectMissing as error:
            raise CorruptCheckpoint(f"{root.url}/{key} is gone: launch it again") from error
        if hashlib.sha256(body).hexdigest() != expected:
            raise CorruptCheckpoint(f"{root.url}/{key} is not what was launched: launch it again")
        target = into / path.removeprefix(_USER)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)

    try:
        sums = bytes(root.get(f"{prefix}{_SUMS}").body)
    except ObjectMissing as error:
        raise CorruptCheckpoint(f"{root.url}/{prefix}{_SUMS} is gone: launch it again") from error
    if hashlib.sha256(sums).hexdigest() != digest:
        raise CorruptCheckpoint(f"{root.url}/{prefix}{_SUMS} is not what was launched: launch it again")
    with ThreadPoolExecutor(_PARALLEL) as threads:
        list(threads.map(fetch, sums.decode().splitlines()))
