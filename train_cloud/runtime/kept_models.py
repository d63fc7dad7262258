"""The models of kept checkpoints as zips, as a child process.

``python -m train_cloud.runtime.kept_models [--final] RUN_URL FOLDER [NAME...]``

A process of its own, so that the training neither waits for torch to write them nor shares its interpreter lock with
that. It reads what is committed, verified, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from train_cloud.checkpoint import read_manifest, restore
from train_cloud.checkpoint.manifest import Manifest
from train_cloud.errors import CorruptCheckpoint, StoreError
from train_cloud.run.head import Reference, read_head
from train_cloud.runtime.exporting import is_pytorch, write_model
from train_cloud.safe_text import adopt, guard
from train_cloud.store import ObjectStore, open_store
from train_cloud.whole_file import write_whole

FINAL_MODEL = "final_model"
KEPT = re.compile(r"checkpoints/checkpoint_(\d+)\.(zip|safetensors)")
_PARTS = {"model", "skeleton", "normalizer", "lock", "run"}
_NICENESS = 15


def name_of(timesteps: int, facts: Mapping[str, Any]) -> str:
    """:param facts: of the checkpoint"""
    return f"checkpoints/checkpoint_{timesteps}{'.safetensors' if is_pytorch(facts) else '.zip'}"


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
        name = name_of(timesteps, manifest.facts)
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
    parts = {name for name in manifest.parts if name.rpartition("/")[2] in _PARTS}
    return write_model(restore(store, manifest, parts=parts), path)  # of several learners `train-cloud export` does


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
        for suffix in (".zip", ".safetensors") if final else ():
            newest = Path(folder) / f"checkpoints/checkpoint_{read[0].timesteps}{suffix}"
            if newest.exists():
                write_whole(Path(folder) / f"{FINAL_MODEL}{suffix}", newest.read_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
