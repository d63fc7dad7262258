"""The runs of an experiment file as run files, for what launches each of them by itself: Terraform's `experiment_file`.

Beside them lies a listing that says what they were made of and what was written. Terraform compares it with what it
finds (terraform/experiment.tf), so that neither an experiment that was changed since nor a part of one is launched. The
listing goes first and comes last: while files are written there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train_cloud.config import Experiment, load_experiment
from train_cloud.config.code import MARKS, mark_as_cache
from train_cloud.errors import InputError
from train_cloud.operations.seeds import write_cell
from train_cloud.whole_file import write_whole

LISTING = "experiment.json"


def runs_folder(path: Path, experiment: str) -> Path:
    """Where Terraform looks for the run files of an experiment: beside the experiment file."""
    return path.parent / f"{experiment}-runs"


def expand_experiment(path: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Write `<run_id>.yaml` for each run of an experiment file, and the listing, into :func:`runs_folder`.

    The folder is this command's: what was in it before is replaced, and run files of runs that are no more are removed.

    :param overrides: as given with ``--set``
    :return: the run files, in the order of the experiment's cells
    :raises InputError: the experiment file is bad, before anything is written; the folder is somebody else's
    """
    experiment = load_experiment(path, overrides)
    refuse_search(experiment)
    folder = runs_folder(path, experiment.experiment)
    _take(folder)
    (folder / LISTING).unlink(missing_ok=True)
    for gone in set(folder.glob("*.yaml")) - {folder / f"{cell.run_id}.yaml" for cell in experiment.cells}:
        gone.unlink()
    written = [write_cell(cell, folder, path.name, replace=True) for cell in experiment.cells]
    listing = _listing(experiment, path, overrides, folder)
    write_whole(folder / LISTING, (json.dumps(listing, indent=1) + "\n").encode())
    return written


def refuse_search(experiment: Experiment) -> None:
    """:raises InputError: which runs it has is decided while it is trained"""
    if experiment.search is not None:
        fix = "its runs are drawn one after the other while it is searched: use train-cloud train, on many machines too"
        raise InputError("search", list(experiment.search.space), fix)


def _take(folder: Path) -> None:
    """Make it, or see that an earlier call has made it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made_by_us = (folder / MARKS[0]).exists() or next(folder.iterdir(), None) is None
    except OSError as error:
        raise InputError("experiment", str(folder), f"its run files go there: make it writable: {error}") from error
    if not made_by_us:
        raise InputError("experiment", str(folder), "its run files go there: move what is in this folder elsewhere")
    mark_as_cache(folder)  # so that none of it is code where the experiment file lies in the code folder


def _listing(experiment: Experiment, path: Path, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Paths in it are relative to ``folder``; digests are SHA-256, hexadecimal."""
    sources = (path.absolute(), experiment.base)
    names = [Path(os.path.relpath(source, folder.absolute())).as_posix() for source in sources]
    return {
        "experiment": experiment.experiment,
        "options": shlex.join(word for override in overrides for word in ("--set", override)),
        "sources": {name: _digest(source) for name, source in zip(names, sources, strict=True)},
        "limits": experiment.limits.model_dump(mode="json"),
        "runs": {
            cell.run_id: {
                "sha256": _digest(folder / f"{cell.run_id}.yaml"),
                "levels": dict(cell.levels),
                "seed": cell.seed,
            }
            for cell in experiment.cells
        },
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
