"""Where an initial model is read from: a run's checkpoint, an object in S3, a file that came with the code."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train_cloud.checkpoint import Manifest, find, restore
from train_cloud.checkpoint.survey import committed
from train_cloud.config import InitialModel
from train_cloud.config.initial_model import NORMALIZER
from train_cloud.errors import InputError, ObjectMissing
from train_cloud.run import layout
from train_cloud.runtime.exporting import is_pytorch
from train_cloud.snapshot import Snapshot
from train_cloud.store import open_store

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from train_cloud.sb3.initial import Initial

log = logging.getLogger(__name__)

_FIELD = "initial_model"


@dataclass(frozen=True)
class Found:
    """An initial model that was read.

    :ivar digest: SHA-256 of the model.zip, or of the checkpoint's manifest: what exactly the run began with
    """

    initial: Initial
    digest: str


def begin_with(model: BaseAlgorithm, wanted: InitialModel, run_url: str) -> dict[str, Any]:
    """Put an initial model into one that was just built.

    :param run_url: of the run that begins; a ``run:`` is looked for beside it
    :return: what exactly it was, for the checkpoints' facts
    :raises InputError: as :func:`read_initial`, or it does not fit
    """
    from train_cloud.sb3.initial import begin_with as put

    found = read_initial(wanted, layout.root_of(run_url))
    put(model, found.initial, buffer=wanted.buffer)
    log.info("begins with %s%s", wanted.source, ", replay buffer and all" if wanted.buffer else "")
    return {"source": found.initial.named, "digest": found.digest, "buffer": wanted.buffer}


def read_initial(wanted: InitialModel, root: str) -> Found:
    """Read what a run is to begin with.

    :param root: store root, in which a ``run:`` is looked for
    :raises InputError: it is not there, or nothing that Stable-Baselines3 has saved
    :raises CorruptCheckpoint: a run's checkpoint is not what was committed
    """
    from train_cloud.sb3.initial import from_snapshot, from_zip

    if wanted.run is not None:
        snapshot, digest = _checkpoint(wanted, root)
        _check_digest(wanted, digest)
        return Found(from_snapshot(wanted.source, snapshot), digest)
    if wanted.path is not None:
        model, beside = wanted.path.read_bytes(), wanted.path.with_name(NORMALIZER)
        normalizer = beside.read_bytes() if beside.is_file() else None
    else:
        folder, _, name = wanted.source.rpartition("/")
        store = open_store(folder)
        try:
            model = bytes(store.get(name).body)
        except ObjectMissing as error:
            raise InputError(_FIELD, wanted.source, "there is no such object") from error
        try:
            normalizer = bytes(store.get(NORMALIZER).body)
        except ObjectMissing:
            normalizer = None
    digest = hashlib.sha256(model).hexdigest()
    _check_digest(wanted, digest)
    return Found(from_zip(wanted.source, model, normalizer), digest)


def checkpoint_digest(manifest: Manifest) -> str:
    """SHA-256 (hexadecimal) of what a run begins with that begins with this checkpoint, whether or not its replay
    buffer is still there.
    """
    return hashlib.sha256(manifest.without_rows().model_dump_json().encode()).hexdigest()


def _check_digest(wanted: InitialModel, found: str) -> None:
    if wanted.digest is not None and wanted.digest != found:
        fix = f"{wanted.source} is {found} now, another model than this run was to begin with: restore it"
        raise InputError(f"{_FIELD}.digest", wanted.digest, fix)


def read_for_loop(wanted: InitialModel, run_url: str) -> tuple[Any, dict[str, Any]]:
    """For a PyTorch loop of the user's own.

    :param run_url: of the run that begins
    :return: what ``pytorch.initial`` begins with, and what exactly it was, for the checkpoints' facts
    :raises InputError: it is not there, or of another trainer
    """
    from train_cloud.pytorch import initial

    if wanted.run is not None:
        snapshot, digest = _checkpoint(wanted, layout.root_of(run_url))
        _check_digest(wanted, digest)
        if not is_pytorch(snapshot.facts):
            raise InputError(_FIELD, wanted.source, "it is a run of Stable-Baselines3")
        return initial.from_snapshot(snapshot), {"source": wanted.source, "digest": digest}
    if wanted.path is not None:
        body = wanted.path.read_bytes()
    else:
        folder, _, name = wanted.source.rpartition("/")
        try:
            body = bytes(open_store(folder).get(name).body)
        except ObjectMissing as error:
            raise InputError(_FIELD, wanted.source, "there is no such object") from error
    digest = hashlib.sha256(body).hexdigest()
    _check_digest(wanted, digest)
    return initial.from_file(wanted.source, body), {"source": wanted.source, "digest": digest}


def _checkpoint(wanted: InitialModel, root: str) -> tuple[Snapshot, str]:
    assert wanted.run is not None
    run_id, timesteps = wanted.run
    store = open_store(layout.run_url(root, run_id))
    try:
        _, newest = committed(store, run_id)
    except InputError as error:
        raise InputError(_FIELD, wanted.source, f"{run_id} has no checkpoint under {root}") from error
    manifest = find(store, newest, timesteps)
    if wanted.buffer and manifest.lacks_rows():
        fix = f"the checkpoint at {manifest.timesteps} is preserved without its replay buffer: leave it out"
        raise InputError(f"{_FIELD}.buffer", True, fix)
    parts = None if wanted.buffer else {"model", "normalizer"}
    return restore(store, manifest, parts=parts), checkpoint_digest(manifest)
