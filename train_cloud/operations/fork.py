"""fork: a new run that begins with the state of another one's checkpoint, and has nothing else from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_cloud.checkpoint import Manifest, copy, find
from train_cloud.checkpoint.survey import committed
from train_cloud.config import RunFile, check_fork, dump_run_file
from train_cloud.errors import ConditionFailed, CorruptCheckpoint, InputError
from train_cloud.report.code import as_part, code_changes
from train_cloud.report.recorded_run_file import recorded_run_file
from train_cloud.run import layout
from train_cloud.run.head import Token, found, read_head, trace
from train_cloud.run.session import now
from train_cloud.snapshot import ENDED_EARLY, Part
from train_cloud.store import ObjectStore, open_store

#: Facts of a checkpoint that are about its own run.
_OWN = ("schedules", "set_anew", ENDED_EARLY)
#: Before every session's.
_TOKEN = Token(0, 0)


@dataclass(frozen=True)
class Forked:
    """What was made."""

    run_file: Path
    timesteps: int
    changes: list[tuple[str, Any, Any]]
    """(field, before, after) of the identity, without the code's."""
    code: str
    """What differs in the code folder, in words; empty where nothing does."""
    bytes: int
    rows: bool
    """Whether a replay buffer came along, or none was there."""


def fork(
    root: str,
    run_id: str,
    new_id: str,
    *,
    at: int | None = None,
    overrides: Sequence[str] = (),
    with_rows: bool = True,
    base: Path | None = None,
    out: Path | None = None,
) -> Forked:
    """Copy a preserved checkpoint into a run of its own, and write that run's file.

    :param root: store root of both
    :param at: timesteps of the checkpoint; None for the newest
    :param overrides: ``key=value``, of the new run's file
    :param with_rows: False leaves the replay buffer behind
    :param base: folder of the run's file, which its paths are relative to; the current one by default
    :param out: where the new run's file goes; ``<new_id>.yaml`` by default. It must not exist.
    :raises InputError: no such checkpoint, a change that its state does not fit, a run id or file that exists
    :raises CorruptCheckpoint: an object is missing or changed
    """
    source, target = (open_store(layout.run_url(root, name)) for name in (run_id, new_id))
    out = (out or Path(f"{new_id}.yaml")).absolute()
    if out.exists() or not out.parent.is_dir():
        raise InputError("--out", str(out), "name a file that is not there yet, in a folder that is")
    manifest = _find(source, run_id, root, at)
    if with_rows and manifest.lacks_rows():
        raise InputError(
            "at",
            manifest.timesteps,
            "this checkpoint is preserved without its replay buffer: add --without-buffer to begin with an empty one",
        )
    if not with_rows:
        manifest = manifest.without_rows()
    run_file = recorded_run_file(source, manifest, new_id, overrides, base=(base or Path()).absolute())
    changes = check_fork(manifest.facts["identity"], run_file.identity(), replays=bool(manifest.streams))
    if run_file.total_timesteps <= manifest.timesteps:
        fix = f"the checkpoint is at {manifest.timesteps} timesteps: --set total_timesteps to more than that"
        raise InputError("total_timesteps", run_file.total_timesteps, fix)
    if not with_rows:
        _check_hindsight(run_file, manifest.timesteps)
    code = code_changes(source, manifest, run_file) or ""
    if read_head(target) is not None or any(target.list(layout.SESSIONS)) or not _by_a_fork(trace(target)):
        raise InputError("--as", new_id, f"there is a run of this name under {root}: choose another")

    parent = f"{source.url}@{manifest.timesteps}"
    text = dump_run_file(run_file, out.parent, f"forked from {parent}")
    set_anew = sorted({field.split(".")[1] for field, _, _ in changes if field.startswith("hyperparameters.")})
    facts = {name: value for name, value in manifest.facts.items() if name not in _OWN}
    facts |= {"run_id": new_id, "identity": run_file.identity(), "set_anew": set_anew, "forked_from": parent}
    # The curves up to here are the other run's: it has them, and what it logged last is no beginning of new ones.
    own = {"run": Part(blob=text.encode()), layout.LOGGED: Part(), layout.CODE: as_part(run_file.code.digests())}
    try:
        reference = copy(source, manifest, target, token=_TOKEN, parts=own, facts=facts)
    except CorruptCheckpoint:
        # Its worker may have deleted it meanwhile, by the policy.
        _find(source, run_id, root, manifest.timesteps)
        raise
    try:
        found(target, reference, manifest.timesteps, owner=f"fork on {platform.node()}", parent=parent)
    except ConditionFailed as error:
        raise InputError("--as", new_id, f"somebody began a run of this name under {root} just now") from error
    launch = {"run_id": new_id, "launched_by": "fork", "launched": now(), "forked_from": parent}
    for key, body in ((layout.RUN_YAML, text), (layout.RUN_JSON, json.dumps(launch))):
        target.put(key, body.encode())  # after the head, so that of two forks to one name only one writes it
    out.write_text(text)
    changes = [change for change in changes if change[0] != "code.digest"]
    return Forked(out, manifest.timesteps, changes, code, manifest.bytes(), with_rows)


def _by_a_fork(left: str | None) -> bool:
    """Whether it is nothing, or what a fork has left that was cut short: that is no run."""
    if left is None:
        return True
    manifest, segment = layout.manifest_of(left), layout.segment_of(left)
    token = manifest[1] if manifest is not None else segment[0] if segment is not None else None
    return token is not None and Token(*token) == _TOKEN


def _check_hindsight(run_file: RunFile, timesteps: int) -> None:
    """``HerReplayBuffer.sample`` raises until an episode has ended that began in it.

    :raises InputError: training would begin at once
    """
    hindsight = str(run_file.hyperparameters.get("replay_buffer_class", "")).endswith("HerReplayBuffer")
    learning_starts = run_file.hyperparameters.get("learning_starts", 100)
    if hindsight and learning_starts <= timesteps:
        fix = (
            f"give more than {timesteps} plus an episode: hindsight replay needs whole episodes, and begins without any"
        )
        raise InputError("hyperparameters.learning_starts", learning_starts, fix)


def _find(source: ObjectStore, run_id: str, root: str, at: int | None) -> Manifest:
    _, newest = committed(source, run_id)
    return find(source, newest, at)
