"""Whether a code folder is still what a run was launched with, file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from train_cloud.checkpoint import Manifest, restore
from train_cloud.config import RunFile
from train_cloud.config.code import compare_code, former_digest
from train_cloud.errors import InputError
from train_cloud.run import layout
from train_cloud.run.session import SessionRecord, read_sessions
from train_cloud.snapshot import Part
from train_cloud.store import ObjectStore


def as_part(digests: Mapping[str, str]) -> Part:
    """For a checkpoint: digests by path, sorted, so that what has not changed is not sent again."""
    return Part(blob=json.dumps(dict(digests), sort_keys=True, indent=0).encode())


def check_code(
    store: ObjectStore, manifest: Manifest, run_file: RunFile, *, alive: datetime | None = None
) -> dict[str, str]:
    """Refuse a code folder that is another one than was launched.

    :param alive: when this machine's last session was seen alive, if anybody knows
    :return: what the next checkpoint compares with, as :func:`as_part` takes it; empty where there is no code
    :raises InputError: naming the files that differ
    """
    words, known = _compare(store, manifest, run_file, alive)
    if words:
        fix = (
            f"run {run_file.run_id} was launched with other code: {words}. Restore it, fork the run (train-cloud "
            "fork), or name what is no code under code.exclude"
        )
        raise InputError("code.folder", str(run_file.code.folder), fix)
    return known


def code_changes(store: ObjectStore, manifest: Manifest, run_file: RunFile) -> str:
    """In words, what differs in the code folder from what a run was launched with; empty where nothing does."""
    return _compare(store, manifest, run_file, None)[0]


def _compare(
    store: ObjectStore, manifest: Manifest, run_file: RunFile, alive: datetime | None
) -> tuple[str, dict[str, str]]:
    folder = run_file.code.folder
    before = manifest.facts["identity"].get("code", {}).get("digest")
    if folder is None or before is None:
        return "", {}  # where only one of them has code, the identities differ
    here = run_file.code.digests()
    if layout.CODE not in manifest.parts:  # a former version's
        same = former_digest(folder, run_file.code.exclude) == before
        return "" if same else "files differ, and which was not recorded then", here
    launched = json.loads(restore(store, manifest, parts={layout.CODE}).parts[layout.CODE].blob)
    later: list[SessionRecord] = []

    def is_output(path: str) -> bool:
        if not later:  # the checkpoint's own session is among them
            later.extend(record for record in read_sessions(store) if record.number >= manifest.session)
        written = datetime.fromtimestamp((folder / path).stat().st_mtime, timezone.utc)
        return any(
            path in (record.end or {}).get("outputs", ()) or _lived(record, written, alive if last else None)
            for record in later
            for last in [record is later[-1]]
        )

    changes, known = compare_code(launched, here, exclude=run_file.code.exclude, is_output=is_output)
    return changes.in_words(), known


def _lived(record: SessionRecord, at: datetime, alive: datetime | None) -> bool:
    """Whether the session trained then, as far as anybody knows: without an end of its own it was killed."""
    began, ended = _time(record.start.get("started")), _time((record.end or {}).get("ended"))
    said = [(record.progress or {}).get("at"), *(notice.get("seen") for notice in record.notices)]
    signs = [time for time in (alive, *map(_time, said)) if time is not None]
    return began is not None and began <= at <= (ended or max(signs, default=began))


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
