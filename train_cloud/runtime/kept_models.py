"""The models of kept checkpoints as zips, as a child process.

``python -m train_cloud.runtime.kept_models [--final] RUN_URL FOLDER [NAME...]``

A process of its own, so that the training neither waits for torch to write them nor shares its interpreter lock with
that. It reads what is committed, verified, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.errors import CorruptCheckpoint, StoreError
from train_cloud.run.head import Reference, read_head
from train_cloud.safe_text import adopt, guard
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_whole

FINAL_MODEL = "final_model.zip"
KEPT = re.compile(r"checkpoints/checkpoint_(\d+)\.zip")
_PARTS = {"model", "skeleton", "normalizer", "lock", "run"}
_NICENESS = 15


def name_of(timesteps: int) -> str:
    return f"checkpoints/checkpoint_{timesteps}.zip"


def keep(store: ObjectStore, newest: Reference | None, folder: Path, there: Collection[str]) -> list[str]:
    """Export every preserved checkpoint that is not there yet; the new names.

    :param newest: manifest of the newest checkpoint, which names those before it
    :param folder: artifact folder
    :param there: names that need not be made
    :raises Exception: what the first raised that could not be exported, once all others are
    """
    if newest is None:
        return []
    made, failures = [], list[Exception]()
    manifest = read_manifest(store, newest)
    for timesteps, reference in {
        **{kept.timesteps: kept.manifest for kept in manifest.kept},
        manifest.timesteps: newest,
    }.items():
        name = name_of(timesteps)
        if timesteps == 0 or name in there or (folder / name).exists():
            continue
        try:
            made += [name] if _export(store, read_manifest(store, reference), folder / name) else []
        except CorruptCheckpoint:  # deleted meanwhile: kept no longer
            continue
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)
    if failures:
        raise failures[0]
    return made


def _export(store: ObjectStore, manifest: Manifest, path: Path) -> bool:
    from train_cloud.sb3.export import write_export

    parts = {name for name in manifest.parts if name.rpartition("/")[2] in _PARTS}
    snapshot = restore(store, manifest, parts=parts)
    with tempfile.TemporaryDirectory() as scratch:
        write_export(snapshot, Path(scratch), run_yaml="", lock="", environment=None)
        model = Path(scratch) / "model.zip"
        if not model.exists():
            return False  # of several learners each has a zip of its own: `train-cloud export` writes them
        write_whole(path, model.read_bytes())
    return True


def main(arguments: list[str]) -> None:
    """``--final``: the newest one is the final model too, as of a run that has failed."""
    adopt()
    guard()
    final = arguments[:1] == ["--final"]
    url, folder, *there = arguments[final:]
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    store = open_store(url)
    read = read_head(store)
    if read is not None:
        keep(store, read[0].manifest, Path(folder), there)
        newest = Path(folder) / name_of(read[0].timesteps)
        if final and newest.exists():
            write_whole(Path(folder) / FINAL_MODEL, newest.read_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
