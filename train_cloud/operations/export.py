"""export: a checkpoint's model as a folder that plain Stable-Baselines3, or plain PyTorch, reads."""

from __future__ import annotations

from pathlib import Path

from train_cloud.checkpoint import find, restore
from train_cloud.checkpoint.survey import committed
from train_cloud.errors import InputError
from train_cloud.run import layout
from train_cloud.store import open_store

_PARTS = {"model", "skeleton", "normalizer", "lock", "run"}


def export(root: str, run_id: str, *, at: int | None = None, out: str | Path | None = None) -> Path:
    """Write a checkpoint's model as a folder that plain Stable-Baselines3 reads, and return the folder's path.

    :param root: store root
    :param at: timesteps of a preserved checkpoint; None for the newest
    :param out: must not exist or be empty; ``<run_id>-<timesteps>`` by default
    :raises InputError: no such run or checkpoint, or the folder has something in it
    :raises CorruptCheckpoint: what is stored is not what was committed
    """
    store = open_store(layout.run_url(root, run_id))
    _, newest = committed(store, run_id)
    manifest = find(store, newest, at)
    snapshot = restore(store, manifest, parts={name for name in manifest.parts if name.rpartition("/")[2] in _PARTS})
    folder = Path(out or f"{run_id}-{snapshot.timesteps}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("--out", str(folder), "it is not an empty folder: name another")

    from train_cloud.runtime.exporting import write_export

    write_export(
        snapshot,
        folder,
        run_yaml=snapshot.parts["run"].blob.decode(),
        lock=snapshot.parts["lock"].blob.decode(),
        environment=snapshot.facts["identity"].get("environment"),
    )
    return folder
