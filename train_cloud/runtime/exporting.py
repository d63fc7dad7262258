"""A checkpoint's model for people, whichever trainer it is of."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train_cloud.snapshot import Snapshot
from train_cloud.whole_file import write_whole


def is_pytorch(facts: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of a PyTorch loop of the user's own.

    :param facts: of the checkpoint
    """
    return facts.get("kind") == "pytorch"


def write_export(
    snapshot: Snapshot, folder: Path, *, run_yaml: str, lock: str, environment: Mapping[str, Any] | None
) -> None:
    """A folder that plain Stable-Baselines3, or plain PyTorch, reads.

    :param environment: the run file's section; None where a script builds its own
    """
    if is_pytorch(snapshot.facts):
        from train_cloud.pytorch import export

        export.write_export(snapshot, folder, run_yaml=run_yaml, lock=lock)
        return
    from train_cloud.sb3 import export as sb3_export

    sb3_export.write_export(snapshot, folder, run_yaml=run_yaml, lock=lock, environment=environment)


def write_model(snapshot: Snapshot, path: Path) -> bool:
    """The model in one file.

    :param path: whose suffix is of this trainer
    :return: False where there is no one file: of several learners each has a zip of its own
    """
    if is_pytorch(snapshot.facts):
        from train_cloud.pytorch import export

        export.write_model(snapshot, path)
        return True
    with tempfile.TemporaryDirectory() as scratch:
        write_export(snapshot, Path(scratch), run_yaml="", lock="", environment=None)
        model = Path(scratch) / "model.zip"
        if not model.exists():
            return False
        write_whole(path, model.read_bytes())
    return True
