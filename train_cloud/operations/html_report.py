"""report: everything that the store has of a run, on one page."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_cloud.artifacts import tensorboard
from train_cloud.errors import ObjectMissing
from train_cloud.report.html_report import MEDIA_BYTES, PRETRAIN, page
from train_cloud.report.status import run_status
from train_cloud.run import layout
from train_cloud.run.session import now
from train_cloud.runtime.evaluations import recorded
from train_cloud.store import ObjectStore, open_store


def write_page(root: str, run_id: str, out: Path, *, reached: Mapping[int, int] | None = None) -> Path:
    """Write the page of a run, whatever state it is in. Reads the store and nothing else.

    :param reached: session → the last step that it took, where somebody knows it better than the run's records
    :raises InputError: there is no such run
    """
    run = run_status(root, run_id, reached=reached)
    store = open_store(layout.run_url(root, run_id))
    # What came after the newest checkpoint is not the run's yet, or was taken back by a rollback.
    there = run.timesteps if run.state == "running" else run.committed_timesteps
    evaluations = [
        json.loads(each.model_dump_json(by_alias=True))
        for each in recorded(store)
        if each.timesteps <= run.committed_timesteps
    ]
    media, left_out = _media(store, evaluations)
    with tempfile.TemporaryDirectory() as folder:
        tensorboard.pull(store, Path(folder))
        scalars = tensorboard.read_scalars(Path(folder))
    text = page(
        run,
        run_yaml=_run_yaml(store),
        scalars={
            tag: [(at, value) for at, value in points if at <= there or tag.startswith(PRETRAIN)]
            for tag, points in scalars.items()
        },
        evaluations=evaluations,
        media=media,
        left_out=left_out,
        made=now(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


_PICTURES = 6
"""Of the script's own; more say no more."""


def _media(store: ObjectStore, evaluations: list[dict[str, Any]]) -> tuple[dict[str, bytes], list[str]]:
    """Videos and routes of the newest evaluation, and the last of the script's ``pictures/``, as far as they are
    there and fit; and names of those that do not.
    """
    episodes = evaluations[-1]["episodes"] if evaluations else []
    wanted = {name for episode in episodes for name in (episode["route"], episode["video"]) if name}
    there = {info.key.removeprefix(layout.ARTIFACTS): info for info in store.list(layout.ARTIFACTS)}
    wanted |= set(sorted(name for name in there if name.startswith("pictures/") and name.endswith(".png"))[-_PICTURES:])
    found: dict[str, bytes] = {}
    left_out, room = [], MEDIA_BYTES
    for name in sorted(wanted & there.keys(), key=lambda name: there[name].size):
        if there[name].size > room:
            left_out.append(name)
            continue
        room -= there[name].size
        found[name] = bytes(store.get(layout.ARTIFACTS + name).body)
    return found, left_out


def _run_yaml(store: ObjectStore) -> str:
    try:
        return bytes(store.get(layout.RUN_YAML).body).decode(errors="replace")
    except ObjectMissing:
        return "(the run file as launched is not there)"
